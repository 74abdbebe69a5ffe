"""Every choice of one training run: typed, frozen, an unknown key is an error. Read from configs/*.toml."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.architectures import get_architecture
from models.base import ArchitectureConfig
from training.augmentation import AugmentationConfig
from training.dataset import Boundary
from training.prompt_sampling import SamplingConfig

CONFIG_FOLDER = Path(__file__).parent / "configs"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """What of the prepared photos is trained on, and how."""

    boundary: Boundary = "ignore"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of the official trainval list that chooses the epoch; by photograph, stratified by breed."""
    test_fraction: float = Field(0.0, ge=0, lt=1)
    """Part of trainval held out as the study's third split; 0 leaves testing to the official test list."""
    copies: int = Field(0, ge=0)
    """Augmented copies written beside each photo (the study: 10); 0 augments on the fly."""
    collage_probability: float = Field(0.0, ge=0, le=1)
    """How often two photos are joined into one example."""
    views: int = Field(0, ge=0)
    """Fixed augmented views of each photo, one of which an epoch shows; 0 draws a fresh one in every epoch."""
    cache_features: bool = False
    """Whether a frozen encoder's features of all views are kept on disk, so that an epoch costs only the head."""

    @model_validator(mode="after")
    def _cached_views_are_fixed(self) -> "DataConfig":
        if self.cache_features and not self.views:
            raise ValueError("got cache_features without views; a fresh view in every epoch cannot be kept")
        return self


class StageConfig(_Frozen):
    """One stretch of training with its own objective, optimiser and stopping rule."""

    name: str = "segmentation"
    objective: Literal["segmentation", "reconstruction", "distillation"] = "segmentation"
    loss: str = "hybrid"
    """A name from losses.py; `reconstruction` has its own."""
    trainable: tuple[str, ...] = ()
    """Submodules that learn; the others rest in eval(). Empty: all but the architecture's frozen ones."""
    teacher: Path | None = None
    """Checkpoint whose logits are learned as well, under the objective `distillation`."""
    teacher_weight: float = Field(1.0, ge=0)
    teacher_feature_weight: float = Field(0.0, ge=0)
    """How much the likeness of the deepest features to each other is learned from the teacher's; 0 not at all."""
    breed_weight: float = Field(0.0, ge=0)
    """How much naming the breed from the mean of the deepest features counts; 0 not at all."""
    repeat_large: int = Field(1, ge=1)
    """How many times an epoch shows each photo of more than 256 pixels: where most are small, the large ones are the
    sharp ones, and count most where every photo is measured at its own size."""
    augmentation: AugmentationConfig | None = None
    """This stage's augmentation in place of the run's."""
    collage_probability: float | None = Field(None, ge=0, le=1)
    """This stage's share of collages in place of the run's."""
    image_size: int | None = None
    """Side in pixels of this stage's images, for convolutional models; None: the model's own."""
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    learning_rate_factors: dict[str, float] = {}
    """Factor on the learning rate for a submodule, such as a pretrained encoder."""
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    batch_size: int = Field(16, ge=1)
    """Examples per optimiser step and process."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients make one optimiser step."""
    epochs: int = Field(100, ge=1)
    patience: int = Field(30, ge=1)
    """Epochs without a better validation score after which the stage ends."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of the averaged weights that are validated and saved; None saves the weights as they are."""

    @model_validator(mode="after")
    def _teacher_fits_objective(self) -> "StageConfig":
        if (self.teacher is not None) != (self.objective == "distillation"):
            raise ValueError(
                f"got objective {self.objective!r} and teacher {self.teacher}; distillation takes a teacher"
            )
        if self.breed_weight and self.objective == "reconstruction":
            raise ValueError("got breed_weight under the objective reconstruction, which reads pixels alone")
        return self


class TrainConfig(_Frozen):
    """One run: an architecture, its sizes, the data and the stages one after another."""

    architecture: str
    summary: str = ""
    """One sentence for the model card."""
    seed: int = 0
    model: dict[str, Any] = {}
    """The architecture's own settings; what is left out keeps the study's value."""
    pretrained: dict[str, str] = {}
    """Submodule -> name of its initial weights, see imagenet_weights.py."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    prompts: SamplingConfig = SamplingConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning Fabric's name of the arithmetic."""
    half_precision: bool = True
    """Whether the checkpoint holds its matrices and kernels as 16-bit floats."""

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, name: str) -> str:
        get_architecture(name)
        return name

    @model_validator(mode="after")
    def _breeds_are_learned_by_an_encoder(self) -> "TrainConfig":
        if get_architecture(self.architecture).frozen and any(stage.breed_weight for stage in self.stages):
            raise ValueError(f"got breed_weight for {self.architecture}, whose encoder is frozen and learns no breeds")
        return self

    @model_validator(mode="after")
    def _cached_features_are_frozen(self) -> "TrainConfig":
        if not self.data.cache_features:
            return self
        frozen = set(get_architecture(self.architecture).frozen)
        if not frozen:
            raise ValueError(f"got cache_features for {self.architecture}, whose encoder learns; wanted a frozen one")
        for stage in self.stages:
            if stage.objective != "segmentation":
                raise ValueError(f"got objective {stage.objective!r} with cache_features; it needs the encoder itself")
            if learning := sorted(frozen & set(stage.trainable)):
                raise ValueError(f"got trainable {learning} with cache_features; what learns cannot be kept")
        return self

    def architecture_config(self) -> ArchitectureConfig:
        """The model table, checked by the architecture that reads it."""
        return get_architecture(self.architecture).Config.model_validate(self.model)


def load_config(name_or_path: str, *, smoke: bool = False) -> TrainConfig:
    """Read a config by the name of a shipped recipe or by path; with `smoke`, its [smoke] table laid over.

    `smoke.stage` is laid over every stage, which learns without its teacher; an empty string there takes a setting
    away. Raises ValueError naming file, field, got and wanted.
    """
    path = find_config(name_or_path)
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    small = table.pop("smoke", {})
    if smoke:
        stage = small.pop("stage", {})
        table = merge_tables(table, small)
        alone = {"objective": "segmentation", "teacher": ""}
        table["stages"] = [
            merge_tables(each, stage | (alone if "teacher" in each else {})) for each in table.get("stages", [])
        ]
    try:
        config = TrainConfig.model_validate(table)
        config.architecture_config()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {field}: got {first['input']!r}; {first['msg']}") from error
    return config


def find_config(name_or_path: str) -> Path:
    """The file of a shipped recipe's name, or the path itself."""
    for path in (Path(name_or_path), CONFIG_FOLDER / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    raise ValueError(f"got config {name_or_path!r}, wanted a TOML file or one of {', '.join(list_configs())}")


def list_configs() -> list[str]:
    """Names of the recipes that ship with the package and train a model that is served."""
    return sorted(
        path.stem for path in CONFIG_FOLDER.glob("*.toml") if "architecture" in tomllib.loads(path.read_text())
    )


def merge_tables(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, table by table; an empty string takes a key away."""
    merged = dict(base)
    for key, value in over.items():
        if value == "":
            merged.pop(key, None)
            continue
        merged[key] = merge_tables(base.get(key, {}), value) if isinstance(value, dict) else value
    return merged
