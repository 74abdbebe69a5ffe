"""Safetensors files with text in the header: written whole or not at all, the header read without the tensors.

Checkpoints and frozen backbones are both such files. Never pickle.
"""

import json
import struct
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

_MAX_HEADER_BYTES = 16 << 20


class Card(BaseModel):
    """What a file says of itself in its header, whatever network it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    summary: str = ""
    """One sentence for people choosing a model."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Measured figures, with the data and protocol they were measured on."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Training data: name, fingerprint, split sizes, boundary protocol."""
    training: dict[str, Any] = Field(default_factory=dict)
    """The training config as it ran."""
    seed: int | None = None
    git_commit: str | None = None


CardT = TypeVar("CardT", bound=Card)


class CheckpointError(ValueError):
    """A file that is not usable as a checkpoint or backbone; names the file, the field, got and wanted."""


def halve_matrices(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as our files hold them: matrices and kernels in half precision, vectors as they are.

    Norm statistics and biases are 1 % of the bytes and span a range that half precision does not.
    """
    return {
        name: value.half() if value.is_floating_point() and value.ndim > 1 else value for name, value in tensors.items()
    }


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


def read_card_of(path: Path, kind: type[CardT], key: str, version: int, writer: str) -> CardT:
    """The card of `kind` under `key` in the header of `path`; `writer` is the command that writes such files."""
    metadata = read_metadata(path)
    if key not in metadata:
        raise CheckpointError(f"{path}: header has no {key!r}; wanted a file written by {writer}")
    try:
        card = kind.model_validate_json(metadata[key])
    except ValidationError as error:
        raise CheckpointError(f"{path}: {key}: {first_problem(error)}") from error
    if card.format_version != version:
        raise CheckpointError(f"{path}: format_version: got {card.format_version}, wanted {version}")
    return card


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings as `field: message`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
