"""Safetensors files with text in the header: written whole or not at all, the header read without the tensors.

Checkpoints and frozen backbones are both such files. Never pickle.
"""

import json
import struct
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

_MAX_HEADER_BYTES = 16 << 20


class CheckpointError(ValueError):
    """A file that is not usable as a checkpoint or backbone; names the file, the field, got and wanted."""


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors and text header to `path`, atomically; the format's own `save`, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(save(tensors, metadata))
    unfinished.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The text header of a safetensors file, without reading its tensors."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: got a header of {length} bytes, wanted a safetensors file")
            header = json.loads(file.read(length))
            metadata: dict[str, str] = header.get("__metadata__", {})
    except (OSError, struct.error, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable safetensors file ({type(error).__name__})") from error
    return metadata


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings as `field: message`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
