"""One trained network as one safetensors file, its model card in the header. Never pickle.

Training writes these files, the service and `evaluate` read them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from models.architectures import get_architecture
from models.base import SegmentationModel
from models.prompts import PromptKind
from models.stored_graph import StoredGraph, graph_tensors, read_graphs
from models.tensor_file import Card, CheckpointError, first_problem, halve_matrices, read_card_of, write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ModelCard",
    "Quantization",
    "backbone_digest",
    "load_checkpoint",
    "read_card",
    "save_checkpoint",
    "save_quantized",
    "update_card",
]

FORMAT_VERSION = 1
CARD_KEY = "model_card"


class Quantization(BaseModel):
    """How a checkpoint of 8-bit integers came about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    source: str
    """sha256 of the checkpoint that it was made from."""
    calibration: dict[str, Any]
    """Data, number of photos, and their fingerprint."""
    made_with: str
    """Names and versions of the packages that made the graphs."""


class ModelCard(Card):
    """Everything about a checkpoint that its weights do not say."""

    format_version: int = FORMAT_VERSION
    architecture: str
    config: dict[str, Any]
    """The architecture's Config: sizes, class names and preprocessing."""
    backbone_digest: str | None = None
    """Digest of the frozen backbone's weights; None for models without one."""
    quantization: Quantization | None = None
    """None for a checkpoint of weights. With it, the file holds graphs for OpenVINO in their place."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network in eval() with its card and the sha256 of its file."""

    name: str
    model: SegmentationModel
    """Beside `graphs`, it knows its prompts and its backbone, but has no weights of its own and refuses to run."""
    card: ModelCard
    digest: str
    graphs: Mapping[str, StoredGraph] = field(default_factory=dict)
    """Of a quantized checkpoint: `encode`, unless it is a frozen tower's, and `decode` where a prompt is taken."""


def save_checkpoint(path: Path, model: SegmentationModel, card: ModelCard, *, half: bool = False) -> None:
    """Write `model` without its frozen and training-only parts; with `half`, its matrices in half precision.

    The file appears whole or not at all.
    """
    left_out = model.frozen + model.training_only
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
        if key.split(".")[0] not in left_out
    }
    write_safetensors(path, halve_matrices(tensors) if half else tensors, {CARD_KEY: card.model_dump_json()})


def save_quantized(path: Path, graphs: Mapping[str, StoredGraph], card: ModelCard) -> None:
    """Write a quantized network: its graphs in place of weights, and a card with `quantization`."""
    if card.quantization is None:
        raise ValueError("got a card without quantization, wanted one that says how the graphs came about")
    write_safetensors(path, graph_tensors(graphs), {CARD_KEY: card.model_dump_json()})


def update_card(path: Path, card: ModelCard) -> None:
    """Replace the card of a checkpoint; its tensors stay as they are."""
    write_safetensors(path, load(path.read_bytes()), {CARD_KEY: card.model_dump_json()})


def read_card(path: Path) -> ModelCard:
    """The card alone, from the file's header."""
    return read_card_of(path, ModelCard, CARD_KEY, FORMAT_VERSION, "petseg-train")


def load_checkpoint(path: Path) -> Checkpoint:
    """Build the network that the card describes, in float32 on the CPU, and load its weights strictly.

    The missing keys must be exactly the frozen ones and no key may be unexpected. Raises CheckpointError.
    """
    card = read_card(path)
    data = path.read_bytes()
    try:
        architecture = get_architecture(card.architecture)
        config = architecture.Config.model_validate(without_fields(card.config, architecture.Config.retired))
    except ValidationError as error:
        raise CheckpointError(f"{path}: config: {first_problem(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: architecture: {error}") from error
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged tensors ({error})") from error
    try:
        model = architecture(config)
    except CheckpointError:  # of the backbone's own file
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: config: {error}") from error
    model.drop_training_parts()
    check_backbone(path, model, card)
    graphs = _read_graphs(path, model, card, tensors) if card.quantization else {}
    if not graphs:
        _load_weights(path, model, tensors)
    return Checkpoint(path.stem, model.eval(), card, hashlib.sha256(data).hexdigest(), graphs)


def _load_weights(path: Path, model: SegmentationModel, tensors: dict[str, Tensor]) -> None:
    # Compared by name: load_state_dict does not count a batch norm's missing num_batches_tracked.
    wanted = {key for key in model.state_dict() if key.split(".")[0] not in model.frozen}
    if tensors.keys() != wanted:
        lost, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        raise CheckpointError(f"{path}: tensors: missing {lost[:3]}, unexpected {extra[:3]}, wanted neither")
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: tensors: {error}") from error


def _read_graphs(
    path: Path, model: SegmentationModel, card: ModelCard, tensors: dict[str, Tensor]
) -> dict[str, StoredGraph]:
    """The graphs of a quantized checkpoint; `model` loses the weights that it was built with and refuses to run."""
    try:
        graphs = read_graphs(tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: tensors: {error}") from error
    if set(graphs) != (wanted := quantized_parts(model)):
        got = ", ".join(graphs)
        raise CheckpointError(f"{path}: tensors: got graphs of {got}, wanted {', '.join(sorted(wanted))}")

    def refuse(*_: object) -> NoReturn:
        raise CheckpointError(f"{path}: got graphs for OpenVINO, wanted weights; an EngineBuilder runs it")

    for name, part in model.named_children():
        if name not in model.frozen:
            part.to("meta")
    for method in {*graphs, "decode"}:
        setattr(model, method, refuse)
    return graphs


def quantized_parts(model: SegmentationModel) -> set[str]:
    """What a quantized checkpoint of `model` holds; an encoder that models share stays as they share it."""
    parts = set() if model.encoder_digest() else {"encode"}
    return parts if model.prompt_kind is PromptKind.NONE else {*parts, "decode"}


def without_fields(table: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`table` without the fields of these dotted names, where it has them; `table` itself stays as it is."""
    kept = dict(table)
    for name in names:
        first, _, rest = name.partition(".")
        if not rest:
            kept.pop(first, None)
        elif isinstance(kept.get(first), dict):
            kept[first] = without_fields(kept[first], [rest])
    return kept


def check_backbone(path: Path, model: SegmentationModel, card: ModelCard) -> None:
    """Refuse a head whose frozen backbone is not the one it was trained on."""
    got = backbone_digest(model)
    if got != card.backbone_digest:
        raise CheckpointError(f"{path}: backbone_digest: got a backbone {got}, wanted {card.backbone_digest}")


def backbone_digest(model: SegmentationModel) -> str | None:
    """Digest of the frozen backbone that `model` reads, or None."""
    digests = [getattr(model, name).digest for name in model.frozen]
    return digests[0] if digests else None
