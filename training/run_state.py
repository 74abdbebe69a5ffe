"""What a run must keep to go on after a kill, and the averaged weights that it judges. Used by train.py."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from pydantic import ValidationError
from torch import Tensor

from models.base import SegmentationModel
from models.checkpoint import Checkpoint
from training.config import StageConfig, TrainConfig

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """How far a run has come."""

    stage: int = 0
    epoch: int = 0
    """Whole epochs of this stage that are done."""
    best_score: float = -math.inf
    best_epoch: int = 0


class WeightAverage:
    """Exponential moving average of a model's own floating-point weights and statistics (Polyak & Juditsky 1992).

    With decay None it holds nothing and `applied` changes nothing. The first steps average over what there is.
    """

    def __init__(self, model: SegmentationModel, decay: float | None) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: Weights = {} if decay is None else own_weights(model)

    @torch.no_grad()
    def update(self, model: SegmentationModel) -> None:
        """Take in the weights after one optimiser step."""
        if self.decay is None:
            return
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        current = model.state_dict()
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(current[name].to(average), 1 - decay)
            else:
                average.copy_(current[name])

    @contextmanager
    def applied(self, model: SegmentationModel) -> Iterator[None]:
        """Within this block the model carries the averaged weights."""
        if self.decay is None:
            yield
            return
        trained = own_weights(model)
        model.load_state_dict(self.weights, strict=False)
        yield
        model.load_state_dict(trained, strict=False)


def own_weights(model: SegmentationModel) -> Weights:
    """Copies of all tensors but the frozen backbone's."""
    return {k: v.detach().clone() for k, v in model.state_dict().items() if k.split(".")[0] not in model.frozen}


class RunState:
    """The state file of one run: written after each epoch, read when the run starts again."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self.progress = Progress()
        self.best: Weights = {}
        self._resumed: dict[str, Any] = {}

    def restore(self, model: SegmentationModel) -> None:
        """Take up an earlier run where there is one; ValueError if what it has done was done by another config.

        Stages that it has not begun may have changed, or been added to a run that had ended.
        """
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.progress = Progress(**state["progress"])
        begun = self.progress.stage + (self.progress.epoch > 0)
        if not self._agrees(state["config"], begun):
            raise ValueError(f"{self.path} is of a run with another config; choose another --out, or delete it")
        self.best = state["best"]
        self._resumed = state
        model.load_state_dict(state["model"], strict=False)

    def begin_after(self, earlier: Checkpoint, model: SegmentationModel) -> None:
        """Count the stages that a checkpoint of this recipe has seen as done, and take its weights.

        Whole submodules that it does not have keep their first weights. Raises ValueError where it was not trained by
        this recipe's first stages on the same part of the photos, leaves none to train, or does not fit `model`.
        """
        stages = earlier.card.training.get("stages", [])
        if not self._begins_with(earlier, stages, model.config.image_size):
            raise ValueError(
                f"got {earlier.name}, an {earlier.card.architecture} after the stages "
                f"{', '.join(stage['name'] for stage in stages) or '(none)'}; wanted an {self.config.architecture} "
                "after some of the first stages of this recipe, under its seed and validation_fraction, and in weights"
            )
        weights, own = earlier.model.state_dict(), model.state_dict()
        parts = {name.split(".")[0] for name in weights}
        for name in sorted(weights.keys() | {name for name in own if name.split(".")[0] in parts}):
            if name not in weights or name not in own or weights[name].shape != own[name].shape:
                raise ValueError(f"got {earlier.name}, whose weights do not fit this recipe's network in {name}")
        model.load_state_dict(weights, strict=False)
        self.best = own_weights(model)
        self.progress = Progress(stage=len(stages))

    def _begins_with(self, earlier: Checkpoint, stages: list[dict[str, Any]], image_size: int) -> bool:
        card, config = earlier.card, self.config
        if card.architecture != config.architecture or earlier.graphs or not 0 < len(stages) < len(config.stages):
            return False
        # Other photos would be held back for validation: the earlier stages would have trained on some of them.
        validation_fraction = card.training.get("data", {}).get("validation_fraction")
        if (card.seed, validation_fraction) != (config.seed, config.data.validation_fraction):
            return False
        planned = [stage.model_dump(mode="json") for stage in config.stages[: len(stages)]]
        return [_comparable(stage, image_size) for stage in planned] == [
            _comparable(stage, card.config["image_size"]) for stage in stages
        ]

    def _agrees(self, config_json: str, begun: int) -> bool:
        # Compared as configs: a setting that came with a newer version stands at its default in the older file.
        try:
            earlier = TrainConfig.model_validate_json(config_json)
        except ValidationError:
            return False
        return _without_later_stages(earlier, begun) == _without_later_stages(self.config, begun)

    def restore_stage(self, optimizer: torch.optim.Optimizer, average: WeightAverage) -> None:
        """Optimiser and average of a stage that was cut off; nothing at the start of a stage."""
        if self.progress.epoch and self._resumed:
            optimizer.load_state_dict(self._resumed["optimizer"])
            average.steps, average.weights = self._resumed["average_steps"], self._resumed["average"]
        self._resumed = {}

    def save(
        self,
        fabric: Fabric,
        model: SegmentationModel,
        optimizer: torch.optim.Optimizer | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        """Write the file anew, whole or not at all; collective over all processes."""
        content = {
            "config": self.config.model_dump_json(),
            "progress": asdict(self.progress),
            "model": own_weights(model),
            "best": self.best,
            "optimizer": optimizer.state_dict() if optimizer else {},
            "average": average.weights if average else {},
            "average_steps": average.steps if average else 0,
        }
        if fabric.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".partial")
            torch.save(content, unfinished)
            unfinished.replace(self.path)
        fabric.barrier()


def _comparable(stage: dict[str, Any], image_size: int) -> StageConfig:
    """A card's stage with its image size spelled out; settings that are no more do not count."""
    known = {key: value for key, value in stage.items() if key in StageConfig.model_fields}
    return StageConfig.model_validate({**known, "image_size": known.get("image_size") or image_size})


def _without_later_stages(config: TrainConfig, begun: int) -> TrainConfig:
    return config.model_copy(update={"stages": config.stages[:begun]})
