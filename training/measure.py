"""All that is measured of a checkpoint, chosen by its prompt kind, as JSON. Called by `petseg-train evaluate`."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from models.base import SegmentationModel
from models.prompts import PromptKind
from training.click_evaluation import evaluate_clicks
from training.encoded_pictures import BATCH_SIZE, CPU
from training.evaluate import PROTOCOLS, evaluate_protocols
from training.official_layout import PetRecord
from training.referring import evaluate_absent, evaluate_referring


def _clicks(
    model: SegmentationModel, root: Path, records: Sequence[PetRecord], *, intervals: bool, **options: Any
) -> dict[str, Any]:
    return evaluate_clicks(model, root, records, **options).summary(intervals=intervals)


def _absent(
    model: SegmentationModel, root: Path, records: Sequence[PetRecord], *, intervals: bool, **options: Any
) -> dict[str, Any]:
    return evaluate_absent(model, root, records, **options).summary(intervals=intervals)


def _collages(
    model: SegmentationModel, root: Path, records: Sequence[PetRecord], *, intervals: bool, **options: Any
) -> dict[str, Any]:
    results = evaluate_referring(model, root, records, **options)
    return {key: result.summary(intervals=intervals) for key, result in results.items()}


EXTENDED: dict[PromptKind, dict[str, Callable[..., dict[str, Any]]]] = {
    PromptKind.NONE: {},
    PromptKind.TEXT: {"absent": _absent, "collages": _collages},
    PromptKind.POINTS: {"clicks": _clicks},
}
"""What the models of each kind are asked beyond one prompt for each photo."""


def protocol_names(kind: PromptKind) -> tuple[str, ...]:
    """All protocols for models of `kind`, the headline first."""
    return (*PROTOCOLS[kind], *EXTENDED[kind])


def measure(
    model: SegmentationModel,
    root: Path,
    records: Sequence[PetRecord],
    protocols: Sequence[str] = (),
    *,
    intervals: bool = True,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Protocol -> rounded scores of `records` in the official layout under `root`; all protocols where none is named.

    Raises ValueError for a protocol that models of this kind do not have.
    """
    kind = model.prompt_kind
    chosen = tuple(protocols) or protocol_names(kind)
    if unknown := set(chosen) - set(protocol_names(kind)):
        raise ValueError(f"got protocol {min(unknown)!r}, wanted one of {', '.join(protocol_names(kind))}")
    options: dict[str, Any] = {"device": device, "batch_size": batch_size}
    plain = [name for name in chosen if name in PROTOCOLS[kind]]
    results: dict[str, Any] = {}
    if plain:
        evaluated = evaluate_protocols(model, root, records, plain, **options)
        results.update({name: each.summary(intervals=intervals) for name, each in evaluated.items()})
    for name, extended in EXTENDED[kind].items():
        if name in chosen:
            results[name] = extended(model, root, records, intervals=intervals, **options)
    return results


def as_json(results: dict[str, Any]) -> str:
    """Indented, but an interval stays on its line."""
    return re.sub(r"\[\s+([^\s,\[\]]+),\s+([^\s,\[\]]+)\s+\]", r"[\1, \2]", json.dumps(results, indent=2))
