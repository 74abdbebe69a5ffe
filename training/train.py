"""The training loop: stages one after another, each epoch validated, the best weights kept. Called by cli.py.

Lightning Fabric does devices, precision and several processes; a killed run goes on after its last whole epoch.
"""

import math
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Sampler

from models.architectures import get_architecture
from models.base import SegmentationModel
from models.checkpoint import ModelCard, backbone_digest, load_checkpoint, save_checkpoint
from models.letterbox import Letterbox
from models.prompts import Prompt, PromptTensors
from training.augmentation import Augmentation
from training.config import StageConfig, TrainConfig
from training.dataset import PetDataset
from training.encoding import describe, encode_missing
from training.feature_cache import CachedPets, FeatureCache
from training.imagenet_weights import INITIAL_WEIGHTS
from training.lessons import BREED_HEAD, add_breed_head, breed_naming, distillation
from training.losses import (
    Batch,
    Lesson,
    Objective,
    frequency_weights,
    get_loss,
    logits_of,
    reconstruction,
    segmentation,
)
from training.metrics import confusion_matrix, scores
from training.official_layout import IGNORE
from training.preparation import fingerprint, prepare, read_manifest, seed_of
from training.prompt_sampling import make_sampler
from training.run_log import RunLog
from training.run_state import RunState, WeightAverage, own_weights
from training.teacher import load_teacher


@dataclass(frozen=True)
class Run:
    """One run's config and its places on disk."""

    name: str
    config: TrainConfig
    data: Path
    """The official layout."""
    prepared: Path
    """Parent of the prepared sets, one for each image size, made where missing."""
    out: Path
    """Receives the resumable state, the logs and `<name>.safetensors`."""
    workers: int = 0
    """Processes that load and augment; 0 does so between the steps."""
    begin_after: Path | None = None
    """A checkpoint of this recipe's first stages, which a new run then skips; one that is under way goes on."""

    def prepared_set(self, image_size: int) -> Path:
        """Folder of the photos prepared at that side, for this run's data settings."""
        data = self.config.data
        parts = [f"pets-{image_size}", f"v{data.validation_fraction:g}", f"s{self.config.seed}"]
        parts += [f"t{data.test_fraction:g}"] * (data.test_fraction > 0) + [f"c{data.copies}"] * (data.copies > 0)
        return self.prepared / "-".join(parts)

    @property
    def features(self) -> Path:
        """Parent of the feature caches, shared by all runs on these prepared sets."""
        return self.prepared / "features"

    def prepare(self, image_size: int) -> Path:
        """That folder, prepared."""
        folder, data = self.prepared_set(image_size), self.config.data
        prepare(
            self.data,
            folder,
            image_size,
            copies=data.copies,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            seed=self.config.seed,
            splits=("trainval",),
            augmentation=self.config.augmentation if data.copies else None,
        )
        return folder


def train(run: Run, fabric: Fabric) -> Path:
    """Run all stages and write the checkpoint of the best weights; returns its path.

    A stage of segmentation before the last leaves its own checkpoint beside it, `<name>-<stage>.safetensors`.
    """
    fabric.seed_everything(run.config.seed, verbose=False)
    model = build_model(run.config)
    if any(stage.breed_weight for stage in run.config.stages):
        add_breed_head(model)
    state = RunState(run.out / "state.ckpt", run.config)
    state.restore(model)
    if run.begin_after is not None and not state.path.exists():
        state.begin_after(load_checkpoint(run.begin_after), model)
    log = RunLog(run.out, enabled=fabric.is_global_zero)
    for index, stage in enumerate(run.config.stages):
        if index >= state.progress.stage:
            train_stage(run, index, stage, model, state, fabric, log)
    log.close()
    return write_checkpoint(run, run.name, model, state, fabric)


def write_checkpoint(run: Run, name: str, model: SegmentationModel, state: RunState, fabric: Fabric) -> Path:
    """Save the model as `<name>.safetensors` with its card; every process waits for the first, which writes."""
    checkpoint = run.out / f"{name}.safetensors"
    if fabric.is_global_zero:
        save_checkpoint(checkpoint, model, write_card(run, model, state), half=run.config.half_precision)
    fabric.barrier()
    return checkpoint


def train_stage(
    run: Run, index: int, stage: StageConfig, model: SegmentationModel, state: RunState, fabric: Fabric, log: RunLog
) -> None:
    """Train one stage to its end and leave its best weights in `model`."""
    config, progress = run.config, state.progress
    if progress.epoch == 0:
        progress.best_score, progress.best_epoch = -math.inf, 0
    with fabric.rank_zero_first():
        folder = run.prepare(stage.image_size or model.config.image_size)
    train_set = open_training_set(config, model, folder, stage)
    validation_set = open_validation_set(config, model, folder)

    objective = build_objective(stage, train_set, model, fabric)
    optimizer = build_optimizer(stage, model)
    wrapped, optimizer = fabric.setup(model.to(memory_format=torch.channels_last), optimizer)
    if stage.objective == "reconstruction":
        wrapped.mark_forward_method("reconstruct")
    else:
        wrapped.mark_forward_method("features_and_logits")
    average = WeightAverage(model, stage.ema_decay)
    state.restore_stage(optimizer, average)
    examples: PetDataset | CachedPets = train_set
    checked: PetDataset | CachedPets = validation_set
    if config.data.cache_features:
        examples = cache_features(run, stage, model, train_set, fabric, log)
        checked = cache_features(run, stage, model, validation_set, fabric, log)

    order = ShuffledOrder(len(train_set), fabric.world_size, fabric.global_rank, stage.batch_size)
    batches = fabric.setup_dataloaders(
        DataLoader(
            examples, stage.batch_size, sampler=order, num_workers=run.workers, persistent_workers=run.workers > 0
        ),
        use_distributed_sampler=False,
    )
    checks = fabric.setup_dataloaders(DataLoader(checked, stage.batch_size), use_distributed_sampler=False)
    steps_per_epoch = math.ceil(len(batches) / stage.accumulate)

    for epoch in range(progress.epoch, stage.epochs):
        examples.set_epoch(seed_of(index, epoch))
        order.seed = seed_of(config.seed, index, epoch)
        torch.manual_seed(seed_of(config.seed, index, epoch, fabric.global_rank))  # a resumed epoch drops out alike
        set_modes(model, stage)
        step, loss_sum = epoch * steps_per_epoch, 0.0
        with log.progress(f"{stage.name} {epoch + 1}/{stage.epochs}", len(batches)) as bar:
            for number, batch in enumerate(batches, start=1):
                is_step = number % stage.accumulate == 0 or number == len(batches)
                with fabric.no_backward_sync(wrapped, enabled=not is_step):
                    loss = objective(wrapped, channels_last(batch))
                    fabric.backward(loss / stage.accumulate)
                loss_sum += loss.item()
                if is_step:
                    set_learning_rate(optimizer, stage, step, stage.epochs * steps_per_epoch)
                    if stage.gradient_clip is not None:
                        fabric.clip_gradients(wrapped, optimizer, max_norm=stage.gradient_clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    average.update(model)
                    step += 1
                bar.advance(loss=loss_sum / number)

        with average.applied(model):
            judged = validate(wrapped, model, objective, stage, checks)
            score = judged["mean_iou"] if "mean_iou" in judged else -judged["validation_loss"]
            if score > progress.best_score:
                progress.best_score, progress.best_epoch, state.best = score, epoch + 1, own_weights(model)
        progress.epoch = epoch + 1
        log.epoch(stage.name, epoch + 1, {"loss": loss_sum / len(batches), **judged})
        state.save(fabric, model, optimizer, average)
        if epoch + 1 - progress.best_epoch >= stage.patience:
            break

    model.load_state_dict(state.best, strict=False)
    if index + 1 < len(config.stages) and stage.objective != "reconstruction":
        seen = replace(run, config=config.model_copy(update={"stages": config.stages[: index + 1]}))
        write_checkpoint(seen, f"{run.name}-{stage.name}", model, state, fabric)
    progress.stage, progress.epoch = index + 1, 0
    state.save(fabric, model)


def build_model(config: TrainConfig) -> SegmentationModel:
    """The architecture at the config's sizes, with pretrained submodules where it names them."""
    model = get_architecture(config.architecture)(config.architecture_config())
    for submodule, source in config.pretrained.items():
        if source not in INITIAL_WEIGHTS:
            raise ValueError(f"pretrained.{submodule}: got {source!r}, wanted one of {', '.join(INITIAL_WEIGHTS)}")
        INITIAL_WEIGHTS[source](model.get_submodule(submodule))
    return model


def open_training_set(
    config: TrainConfig, model: SegmentationModel, folder: Path, stage: StageConfig | None = None
) -> PetDataset:
    """Augmented examples with sampled prompts; offline copies are not augmented a second time.

    stage: whose augmentation and share of collages stand in for the run's, and which may repeat large photos.
    """
    stage = stage or StageConfig()
    collages = stage.collage_probability
    return PetDataset(
        folder,
        "train",
        boundary=config.data.boundary,
        augment=None if config.data.copies else Augmentation(stage.augmentation or config.augmentation),
        sampler=make_sampler(model.prompt_kind, config.prompts),
        make_prompt=prompt_maker(model),
        seed=config.seed,
        collage_probability=config.data.collage_probability if collages is None else collages,
        views=config.data.views,
        repeat_large=stage.repeat_large,
        in_memory=not config.data.cache_features,
    )


def open_validation_set(config: TrainConfig, model: SegmentationModel, folder: Path) -> PetDataset:
    """The validation photos as they are, each with the same sampled prompt in every epoch."""
    return PetDataset(
        folder,
        "validation",
        boundary=config.data.boundary,
        sampler=make_sampler(model.prompt_kind, config.prompts),
        make_prompt=prompt_maker(model),
        seed=config.seed,
        views=min(1, config.data.views),  # nothing is augmented, so all views would be the same
        in_memory=not config.data.cache_features,
    )


def cache_features(
    run: Run, stage: StageConfig, model: SegmentationModel, pets: PetDataset, fabric: Fabric, log: RunLog
) -> CachedPets:
    """`pets` with the features of all its views, encoded now where they are not on disk yet."""
    cache = FeatureCache(run.features, pets, describe(model, pets, run.config.precision))
    encode_missing(cache, model, fabric, log, stage.batch_size, run.workers)
    return CachedPets(cache)


def prompt_maker(model: SegmentationModel) -> Any:
    """Prompt in pixels of the model's square -> tensors; a training example is its own upload."""
    side = model.config.image_size
    square = Letterbox((side, side), side)

    def make_prompt(prompt: Prompt) -> PromptTensors:
        return model.prompt_tensors(prompt, square)

    return make_prompt


def build_objective(stage: StageConfig, train_set: PetDataset, model: SegmentationModel, fabric: Fabric) -> Objective:
    """The stage's objective; class frequencies are counted and the teacher loaded where it needs them."""
    if stage.objective == "reconstruction":
        return reconstruction
    weights = None
    if stage.loss == "weighted_cross_entropy":
        weights = fabric.to_device(frequency_weights(pixel_counts(train_set, len(model.config.class_names))))
    lessons: list[Lesson] = []
    if stage.teacher is not None:
        teacher = load_teacher(stage.teacher, fabric.device)
        lessons.append(distillation(teacher, stage.teacher_weight, stage.teacher_feature_weight))
    if stage.breed_weight > 0:
        lessons.append(breed_naming(model.get_submodule(BREED_HEAD), stage.breed_weight))
    return segmentation(get_loss(stage.loss, weights), lessons)


def pixel_counts(dataset: PetDataset, classes: int) -> Tensor:
    """Pixels [classes] of each class over all label maps of the data set; more classes than the last fall into it."""
    labels = (dataset.read(index)[1] for index in range(len(dataset)))
    counted = (label[label != IGNORE].long().clamp(max=classes - 1) for label in labels)
    return torch.stack([torch.bincount(pixels, minlength=classes) for pixels in counted]).sum(0)


def build_optimizer(stage: StageConfig, model: SegmentationModel) -> torch.optim.Optimizer:
    """Optimiser over the stage's trainable parameters; biases and norms are not decayed."""
    learning = trainable_parts(model, stage)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parameter.requires_grad_(part in learning)
        if part in learning:
            factor = stage.learning_rate_factors.get(part, 1.0)
            decay = stage.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimizer]
    optimizer: torch.optim.Optimizer = kind(
        [
            {"params": parameters, "lr": stage.learning_rate * factor, "factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ]
    )
    return optimizer


def trainable_parts(model: SegmentationModel, stage: StageConfig) -> set[str]:
    """Names of the submodules that learn in this stage."""
    parts = {name for name, _ in model.named_children()}
    if unknown := (set(stage.trainable) | set(stage.learning_rate_factors)) - parts:
        raise ValueError(f"stage {stage.name}: got submodules {sorted(unknown)}, wanted some of {sorted(parts)}")
    default = parts - set(model.frozen) - set(model.training_only)
    return (set(stage.trainable) or default) | ({BREED_HEAD} if stage.breed_weight > 0 else set())


def set_modes(model: SegmentationModel, stage: StageConfig) -> None:
    """train() for what learns, eval() for what rests: no dropout and fixed batch statistics there."""
    model.train()
    for name, part in model.named_children():
        part.train(name in trainable_parts(model, stage))


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int, total_steps: int) -> None:
    """Linear warm-up, then the stage's schedule (cosine to zero: Loshchilov & Hutter 2017, equation 5)."""
    rate = stage.learning_rate * min(1.0, (step + 1) / (stage.warmup_steps + 1))
    if stage.schedule == "cosine":
        done = max(0, step - stage.warmup_steps) / max(1, total_steps - stage.warmup_steps)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def validate(
    wrapped: Any, model: SegmentationModel, objective: Objective, stage: StageConfig, batches: Any
) -> dict[str, Any]:
    """Scores on the prepared squares, for choosing the epoch; evaluate.py measures at the photos' own size.

    A reconstruction stage gives the validation loss alone.
    """
    model.eval()
    classes = len(model.config.class_names)
    confusion, loss_sum = torch.zeros(classes, classes, dtype=torch.int64), 0.0
    for batch in batches:
        if stage.objective == "reconstruction":
            loss_sum += objective(wrapped, channels_last(batch)).item()
            continue
        mask = logits_of(wrapped, channels_last(batch)).argmax(1)
        confusion += confusion_matrix(mask, batch["target"], classes).cpu()
    if stage.objective == "reconstruction":
        return {"validation_loss": loss_sum / len(batches)}
    return scores(confusion, model.config.class_names)


def channels_last(batch: Batch) -> Batch:
    """The batch with its images and features in the memory order that convolutions are fastest in."""
    batch = {**batch, "image": batch["image"].contiguous(memory_format=torch.channels_last)}
    if "features" in batch:
        batch["features"] = [each.contiguous(memory_format=torch.channels_last) for each in batch["features"]]
    return batch


class ShuffledOrder(Sampler[int]):
    """One epoch's order from `seed`, dealt out to the processes in turn; whole batches only where there is one."""

    def __init__(self, count: int, processes: int, rank: int, batch_size: int) -> None:
        self.count, self.processes, self.rank = count, processes, rank
        share = count // processes
        self.share = share - share % batch_size if share >= batch_size else share
        self.seed = 0

    def __len__(self) -> int:
        return self.share

    def __iter__(self) -> Any:
        order = torch.randperm(self.count, generator=Generator().manual_seed(self.seed)).tolist()
        return iter(order[self.rank :: self.processes][: self.share])


def write_card(run: Run, model: SegmentationModel, state: RunState) -> ModelCard:
    """All that the weights do not say; test scores are added by `petseg-train evaluate --record`."""
    folder = run.prepare(model.config.image_size)  # which stages at other sizes did not need
    examples = read_manifest(folder).examples
    return ModelCard(
        architecture=run.config.architecture,
        config=model.config.model_dump(mode="json"),
        summary=run.config.summary,
        metrics={
            "validation": {
                "mean_iou": round(state.progress.best_score, 4),
                "protocol": f"prepared squares of {model.config.image_size} px, boundary {run.config.data.boundary}",
            }
        },
        data={
            "name": f"{run.data.resolve().name}, trainval list",
            "fingerprint": fingerprint(folder),
            "train": sum(example.split == "train" for example in examples),
            "validation": sum(example.split == "validation" for example in examples),
            "boundary": run.config.data.boundary,
        },
        training=run.config.model_dump(mode="json"),
        seed=run.config.seed,
        git_commit=git_commit(),
        backbone_digest=backbone_digest(model),
    )


def git_commit() -> str | None:
    """The commit that trains, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
