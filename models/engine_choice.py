"""Which engine runs a checkpoint on this machine, in which precision. The service asks once, at start."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models import openvino_graph
from models.checkpoint import Checkpoint
from models.engine import Engine, EngineError, Precision
from models.openvino_engine import OpenVinoCompiler
from models.openvino_graph import GraphFolder, GraphOptions
from models.torch_engine import StandInEngine, TorchEngine

logger = logging.getLogger("petseg.engine")

EngineName = Literal["auto", "torch", "openvino"]
PrecisionName = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class EngineOptions:
    """What an operator may choose; the defaults choose what was fastest where we measured."""

    engine: EngineName = "auto"
    """`auto` is OpenVINO on a CPU where it is installed, torch otherwise."""
    precision: PrecisionName = "auto"
    """`auto` is bf16 where the device computes in it natively, fp32 elsewhere."""
    compiles: bool = False
    """Whether the torch engine hands its networks to `torch.compile`."""
    streams: int = 1
    threads: int = 1
    alone_threads: int = 0
    """Of a batch while no other runs, under OpenVINO; up to `threads` is no difference."""
    cache_folder: Path | None = None


class EngineBuilder:
    """Makes engines for checkpoints, one after another; frozen towers that they share are compiled once.

    Raises EngineError where the engine that was asked for cannot run here.
    """

    def __init__(self, device: torch.device, options: EngineOptions) -> None:
        self.device = device
        self.options = options
        self._compiler: OpenVinoCompiler | None = None
        is_cpu, is_installed = device.type == "cpu", openvino_graph.is_installed()
        if options.engine == "openvino" and not is_cpu:
            raise EngineError(f"got openvino on {device.type}, wanted it on a cpu; set the device to cpu or take torch")
        if options.engine == "openvino" and not is_installed:
            raise EngineError("got openvino, which is not installed; pip install 'petseg[openvino]', or take torch")
        if options.engine != "torch" and is_cpu and is_installed:
            graph_options = GraphOptions(
                _precision(options.precision, openvino_graph.has_native_bf16()),
                options.streams,
                options.threads,
                options.alone_threads,
                row_by_row=True,
            )
            self._compiler = OpenVinoCompiler(graph_options, GraphFolder(options.cache_folder))

    @property
    def passes_per_stream(self) -> int:
        """The most batches that its engines want under way for each stream."""
        return self._compiler.passes_per_stream if self._compiler is not None else 1

    def stand_in(self, checkpoint: Checkpoint) -> Engine | None:
        """What can run `checkpoint` at once where `build` would convert it first, which takes seconds; None elsewhere.

        The network belongs to the stand-in then: `build` wants it loaded once more.
        """
        converts = self._compiler is not None and not self._compiler.holds(checkpoint)
        if not converts or checkpoint.graphs or self.options.engine != "auto":
            return None
        return StandInEngine(checkpoint.model)

    def build(self, checkpoint: Checkpoint) -> Engine:
        """An engine for `checkpoint`; `auto` falls back on torch and says so. Raises EngineError."""
        if self._compiler is not None:
            try:
                return self._compiler.compile(checkpoint)
            except EngineError as error:
                if self.options.engine == "openvino" or checkpoint.graphs:
                    raise
                logger.warning("%s", error)
        if checkpoint.graphs:
            raise EngineError(
                f"{checkpoint.name}: got a checkpoint of 8-bit integers for torch on {self.device.type}, wanted "
                "OpenVINO on a cpu; pip install 'petseg[openvino]' and leave the engine to auto, or serve its source"
            )
        precision = _precision(self.options.precision, _torch_has_bf16(self.device))
        return TorchEngine(checkpoint.model, self.device, precision, compiles=self.options.compiles)


def default_cache_folder() -> Path | None:
    """The user's own cache folder; None for a user without a home."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "petseg"


def _precision(name: PrecisionName, has_bf16: bool) -> Precision:
    if name == "auto":
        return Precision.BF16 if has_bf16 else Precision.FP32
    return Precision(name)


def _torch_has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
