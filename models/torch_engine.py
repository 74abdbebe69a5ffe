"""PyTorch as the engine: on GPUs, and on CPUs where OpenVINO is not installed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.base import Features, SegmentationModel
from models.cuda_graphs import GraphedFunction, HostLink, Recorder, graph_sizes
from models.engine import (
    EncodeGraph,
    Engine,
    Precision,
    Rows,
    example_images,
    example_prompts,
    join_rows,
    takes_prompt,
)
from models.folding import fold_batch_norms, has_batch_norms
from models.prompts import PromptTensors

_CAST = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers that autocast runs in bfloat16; their weights are cast once instead of in every pass."""


class TorchEngine(Engine):
    """Folded batch norms, channels_last; in bfloat16 under autocast with the weights of large layers cast already.

    Autocast keeps float32 where bfloat16 would lose the answer; what embeds prompts stays float32 throughout. On a GPU
    both halves are replayed as CUDA graphs.
    """

    def __init__(
        self, model: SegmentationModel, device: torch.device, precision: Precision, *, compiles: bool = False
    ) -> None:
        """compiles: hand both halves to `torch.compile`, once for each batch size; needs a C++ compiler on a CPU."""
        model = model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        super().__init__(model, device)
        self.precision = precision
        self.compiles = compiles
        if device.type == "cuda" and precision is Precision.FP32:
            compute_convolutions_in_float32()
        self._encode: Callable[[Tensor], Features] = EncodeGraph(model)
        self._decode: Callable[[Features, PromptTensors], Tensor] = model.decode_native
        self._link = HostLink(device) if device.type == "cuda" else None
        self._recorder: Recorder | None = None
        prepare(self)
        if compiles:
            self._encode = torch.compile(self._encode, dynamic=False)
            self._decode = torch.compile(self._decode, dynamic=False)
        if device.type == "cuda":
            self._recorder = Recorder()
            self._encode = GraphedFunction(self._encode, self._recorder)
            self._decode = GraphedFunction(self._decode, self._recorder)

    @property
    def name(self) -> str:
        return f"torch {self.precision}{', compiled' if self.compiles else ''}"

    def encode(self, images: Rows) -> Features:
        whole = join_rows(images, is_pinned=self._link is not None)
        images = self._send(whole).contiguous(memory_format=torch.channels_last)
        with self._computing():
            if images.dtype is torch.uint8:
                images = images.float().div_(255.0)
            return self._encode(images)

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        if not takes_prompt(self.model):
            return self._fetch(features[0].float())
        embedded = self.embed(features, prompt)
        with self._computing():
            return self._fetch(self._decode(features, embedded).float())

    def warm_up(self, batch_size: int) -> None:
        sizes = graph_sizes(batch_size) if self._recorder is not None and not self.compiles else [batch_size]
        for size in sizes:  # compiled, each would take half a minute
            self.example_run(size)()

    def example_run(self, batch_size: int) -> Callable[[], object]:
        images, prompts = example_images(self.model, batch_size), example_prompts(self.model, batch_size)
        if self._recorder is not None:
            images = (255 * images).byte().pin_memory()  # as photos come
            with self._recorder.on():
                self.decode_native(self.encode(images), prompts)
        return lambda: self.decode_native(self.encode(images), prompts)

    @property
    def graph_sizes(self) -> list[int]:
        """Batch sizes of which a GPU has recorded every half."""
        halves = [half for half in (self._encode, self._decode) if isinstance(half, GraphedFunction)]
        used = halves[: 1 + takes_prompt(self.model)]
        return sorted(set.intersection(*(set(half.sizes) for half in used))) if used else []

    def embed(self, features: Features, prompt: PromptTensors) -> PromptTensors:
        """The model's `embed_prompt`, in float32."""
        with torch.inference_mode():
            return self.model.embed_prompt(features, prompt)

    def _send(self, tensor: Tensor) -> Tensor:
        return self._link.send(tensor) if self._link is not None and not tensor.is_cuda else tensor

    def _fetch(self, tensor: Tensor) -> Tensor:
        return self._link.fetch(tensor) if self._link is not None else tensor.cpu()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        is_bf16 = self.precision is Precision.BF16
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16):
            yield


def compute_convolutions_in_float32() -> None:
    """Keep cuDNN from rounding their factors to 10 bits (TF32), as it does by itself; holds for the whole process."""
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9, which warns of the other way
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:
        torch.backends.cudnn.allow_tf32 = False


FOR_NOW = ", for now"
"""End of a stand-in's name, by which others tell it from afar."""


class StandInEngine(TorchEngine):
    """Serves on a CPU until another engine is ready.

    In float32 whatever that one computes in: both may hold the same frozen backbone, whose weights must stay as they
    are. What it encodes, only it decodes: its name is in the digest of its encoder.
    """

    is_stand_in = True

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__(model, torch.device("cpu"), Precision.FP32)

    @property
    def name(self) -> str:
        return super().name + FOR_NOW


def prepare(engine: TorchEngine) -> None:
    """Fold and cast, in place, what the network computes with."""
    if has_batch_norms(engine.model):
        fold_batch_norms(engine.model, lambda: engine.warm_up(1))
    if engine.precision is Precision.BF16:
        for layer in find_computing_layers(engine):
            layer.to(torch.bfloat16)


def find_computing_layers(engine: TorchEngine) -> set[nn.Module]:
    """Large layers that run in `encode` or `decode` and not where prompts are embedded.

    Only calls of this thread count: others may run a backbone at the same time that `engine` shares with their models.
    """
    ran: set[nn.Module] = set()
    thread = threading.get_ident()

    def note(layer: nn.Module, _: object) -> None:
        if threading.get_ident() == thread:
            ran.add(layer)

    layers = [module for module in engine.model.modules() if isinstance(module, _CAST)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        prompt = example_prompts(engine.model, 1)
        features = engine.encode(example_images(engine.model, 1))
        encoding = ran.copy()
        ran.clear()
        engine.embed(features, prompt)  # before `decode`: texts embedded once come from a cache
        embedding = ran.copy()
        engine.decode_native(features, prompt)
        return (encoding | ran) - embedding
    finally:
        for hook in hooks:
            hook.remove()
