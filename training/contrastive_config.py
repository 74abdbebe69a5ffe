"""Every choice of one contrastive run: typed, frozen, an unknown key is an error. Read from configs/petclip.toml."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from models.tensor_file import first_problem
from training.config import merge_tables
from training.imagenet_weights import INITIAL_WEIGHTS
from training.views import ViewConfig


class StageConfig(BaseModel):
    """Epochs at one image size; small images first, for they train several times faster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(ge=16)
    epochs: int = Field(ge=1)


class ContrastiveConfig(BaseModel):
    """Every choice of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the backbone file."""
    summary: str = ""
    seed: int = 0
    open_clip_config: dict[str, Any]
    """The model in open_clip's own form."""
    image_weights: str = "random"
    """Initial weights of the image tower: "random", or a name from imagenet_weights.py."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    views: ViewConfig = ViewConfig()
    batch_size: int = Field(32, ge=2)
    image_learning_rate: float = Field(2e-4, gt=0)
    """Of the pretrained image tower."""
    text_learning_rate: float = Field(1e-3, gt=0)
    """Of all that starts from random weights: text tower, projection, temperature."""
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(100, ge=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Of the averaged weights that are measured and saved."""
    distractors_per_step: int = Field(32, ge=1)
    text_steps: int = Field(0, ge=0)
    """Steps at the end in which the text tower alone learns, from embeddings of the photos, to turn down any word."""
    text_batch_size: int = Field(256, ge=2)
    text_distractors: int = Field(128, ge=2)
    """Words for other things in each of these steps; half of them are drawn from the whole vocabulary."""

    @field_validator("image_weights")
    @classmethod
    def _known_weights(cls, name: str) -> str:
        if name not in ("random", *INITIAL_WEIGHTS):
            raise ValueError(f"got {name!r}, wanted one of {', '.join(('random', *INITIAL_WEIGHTS))}")
        return name

    @property
    def image_size(self) -> int:
        """Side in pixels of the squares that are measured, and that the views are cut from."""
        size: int = self.open_clip_config["vision_cfg"]["image_size"]
        return size

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return sum(stage.epochs for stage in self.stages)

    def image_size_of(self, epoch: int) -> int:
        """Side of the views in this epoch, counted from 0."""
        sizes = [stage.image_size for stage in self.stages for _ in range(stage.epochs)]
        return sizes[epoch]


def read_contrastive_config(path: Path, smoke: bool = False) -> ContrastiveConfig:
    """The TOML at `path`; with `smoke`, its [smoke] table laid over it. ValueError naming file and field."""
    table = tomllib.loads(path.read_text())
    small = table.pop("smoke", {})
    try:
        return ContrastiveConfig.model_validate(merge_tables(table, small) if smoke else table)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from error
