"""One small interface over what runs a network: `encode` and `decode`, compiled for a device.

`torch_engine.py` and `openvino_engine.py` implement it, `engine_choice.py` picks. The predictor knows no other.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from models.base import Features, SegmentationModel
from models.layers import resize
from models.letterbox import Letterbox
from models.prompts import PromptKind, PromptTensors, example_prompt

Rows = Tensor | Sequence[Tensor]
"""A batch [B, ...], or its B rows [...], each in memory of its own."""


class EngineError(ValueError):
    """This engine cannot run that network here; the message says what was got, wanted, and the fix."""


class Precision(StrEnum):
    """In what numbers the layers compute; inputs and logits are float32 always."""

    FP32 = "fp32"
    BF16 = "bf16"


class Engine(ABC):
    """A network on a device. Several threads may call it at once.

    Takes the network over: its batch norms may be folded, its weights moved and cast. What `encode` gives is this
    engine's own affair: only its `decode` reads it, and a cache may keep rows of it in between.
    """

    is_stand_in = False
    """Whether another engine will take its place as soon as that one is ready."""

    has_own_threads = False
    """Whether passes are computed on threads of its own, while the callers' wait."""

    is_row_by_row = False
    """Whether the photos of a batch are computed one after the other."""

    passes_per_stream = 1
    """Batches to have under way for each stream: with more than one, the next is there when one ends."""

    def __init__(self, model: SegmentationModel, device: torch.device) -> None:
        self.model = model
        self.device = device

    @property
    def best_batch_size(self) -> int:
        """Photos of a batch that are best; 0 where trying all sizes has to find out. May take some passes."""
        return 0

    @property
    @abstractmethod
    def name(self) -> str:
        """What runs, in which precision: "torch bf16"."""

    @property
    def encoder_digest(self) -> str | None:
        """Identity of what `encode` gives, where several networks share it; None where it is this network's own.

        Names the engine and its precision as well: one that `decode`s features of another would get other types.
        """
        shared = self.shared_encoder
        return shared and f"{shared}/{self.encoder_name}"

    @property
    def shared_encoder(self) -> str | None:
        """Identity of the function that `encode` computes, whatever computes it; None where nothing shares it."""
        return self.model.encoder_digest()

    @property
    def encoder_name(self) -> str:
        """What runs `encode`, in which precision."""
        return self.name

    @abstractmethod
    def encode(self, images: Rows) -> Features:
        """What the network makes of the pixels alone; of an image-only model, the logits already.

        images: [B, 3, S, S] or B of [3, S, S], float32 in [0, 1], on any device; torch's engine also takes uint8, a
        fourth of the bytes to copy. Returns tensors of B rows on `device`.
        """

    @abstractmethod
    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        """Logits [B, K, s, s] float32 on the CPU, of rows that `encode` gave and as many collated prompts.

        As large as the network's last map, or enlarged to S already; `Letterbox` takes either.
        """

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        """The same at the square's size, [B, K, S, S]."""
        side = self.model.config.image_size
        return resize(self.decode_native(features, prompt), side, side)

    def warm_up(self, batch_size: int) -> None:
        """Run squares of noise, so that no batch of up to `batch_size` waits for what is set up on first use."""
        self.example_run(batch_size)()

    def release_memory(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back the memory that passes so far have left for later ones, which then set up their own."""

    def example_run(self, batch_size: int) -> Callable[[], object]:
        """What runs `batch_size` squares of noise in the way that a busy server runs them, to be timed."""
        images, prompts = example_images(self.model, batch_size), example_prompts(self.model, batch_size)
        return lambda: self.decode_native(self.encode(images), prompts)


def join_rows(rows: Rows, *, is_pinned: bool = False) -> Tensor:
    """`rows` as one tensor [B, ...]; what is in one piece already, or a single row, stays where it is.

    is_pinned: put rows that lie apart into pinned memory, from where the copy to a GPU runs beside the CPU's work: one
    stream collates while another's batch is computed.
    """
    if isinstance(rows, Tensor):
        return rows
    if len(rows) == 1 and not is_pinned:
        return rows[0][None]
    pinned = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True) if is_pinned else None
    return torch.stack(list(rows), out=pinned)


class EncodeGraph(nn.Module):
    """What an engine compiles as `encode`: images [B, 3, S, S] -> tensors of B rows.

    Where no prompt is taken nothing is left for `decode`: the whole network is one graph, and no feature maps have to
    be written out between its halves.
    """

    def __init__(self, model: SegmentationModel, *, enlarges: bool = False) -> None:
        """enlarges: whether logits are those of `decode`, [B, K, S, S], rather than of `decode_native`."""
        super().__init__()
        self.model = model
        self.enlarges = enlarges

    def forward(self, images: Tensor) -> Features:
        """Features, or the logits of an image-only model as the only one."""
        if takes_prompt(self.model):
            return self.model.encode(images)
        decode = self.model.decode if self.enlarges else self.model.decode_native
        return (decode(self.model.encode(images), {}),)


class DecodeGraph(nn.Module):
    """What an engine compiles as `decode`: features and an embedded prompt as one flat row of tensors -> logits."""

    def __init__(
        self, model: SegmentationModel, levels: int, prompt_names: tuple[str, ...], *, enlarges: bool = False
    ) -> None:
        """enlarges: as for `EncodeGraph`."""
        super().__init__()
        self.model = model
        self.enlarges = enlarges
        self.levels = levels
        self.prompt_names = prompt_names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits of `levels` features and then the prompt's tensors in the order of their names."""
        prompt = dict(zip(self.prompt_names, tensors[self.levels :], strict=True))
        decode = self.model.decode if self.enlarges else self.model.decode_native
        return decode(tensors[: self.levels], prompt)


def as_model(engine: Engine) -> SegmentationModel:
    """The engine's network, run by the engine: for what asks models, such as evaluation."""
    served = copy.copy(engine.model)
    served.encode = engine.encode  # type: ignore[method-assign]
    served.decode = engine.decode  # type: ignore[method-assign]
    served.decode_native = engine.decode_native  # type: ignore[method-assign]
    return served


def takes_prompt(model: SegmentationModel) -> bool:
    """Whether there is anything to decode beyond the pixels."""
    return model.prompt_kind is not PromptKind.NONE


def example_images(model: SegmentationModel, batch_size: int) -> Tensor:
    """Noise [B, 3, S, S] float32 in [0, 1], the same every time."""
    side = model.config.image_size
    return torch.rand(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))


def example_prompts(model: SegmentationModel, batch_size: int) -> PromptTensors:
    """Some prompt that `model` takes, `batch_size` times."""
    side = model.config.image_size
    tensors = model.prompt_tensors(example_prompt(model.prompt_kind, side), Letterbox((side, side), side))
    return {name: torch.stack([tensor] * batch_size) for name, tensor in tensors.items()}
