"""Graphs of an integer network as tensors of a safetensors file, beside or in place of weights.

`checkpoint.py` reads and writes them, training/quantize.py makes them, `openvino_engine.py` runs them.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = ("encode", "decode")
_MAX_XML_BYTES = 64 << 20


@dataclass(frozen=True)
class StoredGraph:
    """One OpenVINO graph: its structure, and the constants that it refers to by their place."""

    xml: bytes
    weights: bytes

    @property
    def digest(self) -> str:
        """sha256 of the constants, scales and offsets among them: whatever the names, the same for one function."""
        return hashlib.sha256(self.weights).hexdigest()


def graph_tensors(graphs: Mapping[str, StoredGraph]) -> dict[str, Tensor]:
    """Part -> graph, as uint8 tensors; the structure, which is text, compressed."""
    tensors = {}
    for part, graph in graphs.items():
        tensors[f"{part}.xml"] = _tensor(zlib.compress(graph.xml, 9))
        tensors[f"{part}.weights"] = _tensor(graph.weights)
    return tensors


def read_graphs(tensors: Mapping[str, Tensor]) -> dict[str, StoredGraph]:
    """The reverse of `graph_tensors`. Raises ValueError for what it does not write."""
    parts = [part for part in PARTS if f"{part}.xml" in tensors]
    wanted = {f"{part}.{kind}" for part in parts for kind in ("xml", "weights")}
    if not parts or tensors.keys() != wanted:
        raise ValueError(f"got {sorted(tensors)[:4]}, wanted the xml and weights of {' or '.join(PARTS)}")
    return {part: StoredGraph(_inflate(tensors[f"{part}.xml"]), _bytes(tensors[f"{part}.weights"])) for part in parts}


def _inflate(tensor: Tensor) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(_bytes(tensor), _MAX_XML_BYTES)
    except zlib.error as error:
        raise ValueError(f"got a damaged structure ({error})") from error
    if not stream.eof:
        raise ValueError(f"got a structure that is cut off or above {_MAX_XML_BYTES} bytes")
    return text


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    if tensor.dtype != torch.uint8:
        raise ValueError(f"got {tensor.dtype}, wanted uint8")
    return tensor.numpy().tobytes()
