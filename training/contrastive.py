"""Trains a compact CLIP on pet photos and their breeds' names, and writes it as a frozen backbone file.

Both towers learn one joint space: an image lies near its breed's, its species' and neutral prompts and far from words
for other things. `petseg-train backbone <config>` calls `train_backbone`; `clip` and `prompt` then build on the file.
"""

import copy
import csv
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from open_clip.tokenizer import SimpleTokenizer
from rich.progress import Progress, TextColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.backbone_file import BackboneCard, build_clip, save_backbone
from models.tensor_file import halve_matrices
from training.contrastive_config import ContrastiveConfig
from training.contrastive_loss import contrastive_loss
from training.dataset import PetDataset
from training.imagenet_weights import EFFICIENTNET_LITE0_MEAN as PIXEL_MEAN
from training.imagenet_weights import EFFICIENTNET_LITE0_STD as PIXEL_STD
from training.imagenet_weights import INITIAL_WEIGHTS
from training.pet_names import zero_shot_prompts
from training.preparation import fingerprint, seed_of
from training.prompt_texts import sample_texts
from training.text_stage import train_text_tower
from training.train import git_commit
from training.views import Squares, Views
from training.zero_shot import embed_text, measure_zero_shot

_LARGEST_LOGIT_SCALE = math.log(100)
"""CLIP (Radford et al. 2021) clips the temperature here, for stability."""


def train_backbone(
    config: ContrastiveConfig,
    prepared: Path,
    out: Path,
    run_folder: Path,
    *,
    resume: bool = True,
    fabric: Fabric | None = None,
) -> dict[str, float]:
    """Train on the train split of the folder `prepared`, write the backbone file `out`; returns its validation figures.

    `run_folder` takes log.csv and, after each epoch, state.pt, from which a stopped run goes on.
    """
    fabric = fabric or Fabric(accelerator="auto", devices=1)
    fabric.seed_everything(config.seed, verbose=False)
    run_folder.mkdir(parents=True, exist_ok=True)
    photos, held_out = PetDataset(prepared, "train"), PetDataset(prepared, "validation")
    clip = _build(config)
    averaged = copy.deepcopy(clip).requires_grad_(False).eval()
    trainer = _Trainer(fabric, config, clip, averaged, len(photos))
    first_epoch = trainer.restore(run_folder / "state.pt") if resume else 0
    for epoch in range(first_epoch, config.epochs):
        started = time.monotonic()
        loss = trainer.train_epoch(photos, epoch)
        figures = measure(fabric, averaged, held_out, config.batch_size)
        row = {"epoch": epoch + 1, "image_size": config.image_size_of(epoch), "loss": round(loss, 4), **figures}
        _append_row(run_folder / "log.csv", row | {"seconds": round(time.monotonic() - started)}, new=epoch == 0)
        trainer.save(run_folder / "state.pt", epoch + 1, config)
    if config.text_steps:
        train_text_tower(fabric, averaged, *embed_photos(fabric, averaged, photos, config.batch_size), config)
    averaged.load_state_dict({name: value.float() for name, value in halve_matrices(averaged.state_dict()).items()})
    figures = measure(fabric, averaged, held_out, config.batch_size)  # of the weights as they are stored
    save_backbone(out, averaged, _card(config, prepared, photos, held_out, figures))
    return figures


def _build(config: ContrastiveConfig) -> Any:
    clip: Any = build_clip(config.open_clip_config)
    if config.image_weights != "random":
        INITIAL_WEIGHTS[config.image_weights](clip.visual.trunk)
    clip.visual.to(memory_format=torch.channels_last)  # depthwise convolutions run 1.5 times faster so
    return clip


class _Trainer:
    """The loop's state: both towers, the averaged copy, optimiser and step count."""

    def __init__(self, fabric: Fabric, config: ContrastiveConfig, clip: Any, averaged: Any, photo_count: int) -> None:
        self.fabric, self.config = fabric, config
        self.steps_per_epoch = max(1, photo_count // config.batch_size)
        self.step = 0
        self.tokenizer = SimpleTokenizer(context_length=clip.context_length)
        self.averaged = averaged.to(fabric.device)
        optimizer = torch.optim.AdamW(_parameter_groups(clip, config))
        self.clip, self.optimizer = fabric.setup(clip, optimizer)
        self.clip.mark_forward_method("encode_image")

    def train_epoch(self, photos: PetDataset, epoch: int) -> float:
        """One pass over the photos; returns the mean loss."""
        views = Views(photos, self.config.image_size_of(epoch), self.config.views, self.config.seed, epoch)
        order = torch.Generator().manual_seed(seed_of(self.config.seed, "order", epoch))
        loader = DataLoader(
            views, self.config.batch_size, shuffle=True, drop_last=len(views) > self.config.batch_size, generator=order
        )
        batches = self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        self.clip.train()
        _rest_batch_norm(self.clip)
        losses = []
        columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"))
        with Progress(*columns) as progress:
            task = progress.add_task(
                f"epoch {epoch + 1}/{self.config.epochs}, {views.image_size} px", total=len(loader), loss=""
            )
            for images, breed_rows in batches:
                losses.append(self.train_step(images, breed_rows))
                progress.update(task, advance=1, loss=f"loss {sum(losses[-20:]) / len(losses[-20:]):.3f}")
        return sum(losses) / len(losses)

    def train_step(self, images: Tensor, breed_rows: Tensor) -> float:
        """images: Tensor [B, 3, S, S] in [0, 1]; breed_rows: [B] int64."""
        self._set_learning_rates()
        texts = sample_texts(
            random.Random(seed_of(self.config.seed, "texts", self.step)), self.config.distractors_per_step
        )
        tokens = self.tokenizer(list(texts.all)).to(images.device)
        image_embeddings = F.normalize(self.clip.encode_image(normalise(images)).float(), dim=-1)
        with self.fabric.autocast():
            text_embeddings = F.normalize(embed_text(self.clip.module, tokens).float(), dim=-1)
        logits = self.clip.logit_scale.exp() * image_embeddings @ text_embeddings.T  # [B, texts]
        loss = contrastive_loss(*texts.split(logits), breed_rows, self.config.label_smoothing)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.clip, self.optimizer, max_norm=1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=_LARGEST_LOGIT_SCALE)
        self.step += 1
        self._average()
        return loss.item()

    def save(self, path: Path, epochs_done: int, config: ContrastiveConfig) -> None:
        """What `restore` needs, whole or not at all."""
        state = {
            "epochs_done": epochs_done,
            "step": self.step,
            "config": config.model_dump_json(),
            "clip": self.clip.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = path.with_name(path.name + ".partial")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def restore(self, path: Path) -> int:
        """Number of epochs that are done already; 0 without a state file. ValueError for another run's state."""
        if not path.is_file():
            return 0
        state = torch.load(path, map_location=self.fabric.device, weights_only=True)
        if ContrastiveConfig.model_validate_json(state["config"]) != self.config:
            raise ValueError(f"{path}: got the state of a run with another config; choose another folder or delete it")
        self.clip.module.load_state_dict(state["clip"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        epochs_done: int = state["epochs_done"]
        return epochs_done

    def _set_learning_rates(self) -> None:
        """Linear warm-up, then cosine to zero."""
        total = self.steps_per_epoch * self.config.epochs
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        progress = min(1.0, self.step / total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * warm * 0.5 * (1 + math.cos(math.pi * progress))

    def _average(self) -> None:
        """Exponential moving average; its memory grows with the steps, so that the random start is soon forgotten."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.clip.module.state_dict()
        with torch.no_grad():
            for name, value in self.averaged.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(current[name], 1 - decay)
                else:
                    value.copy_(current[name])


def normalise(images: Tensor) -> Tensor:
    """[0, 1] RGB -> the statistics of the ImageNet weights."""
    normalised = (images - images.new_tensor(PIXEL_MEAN).view(3, 1, 1)) / images.new_tensor(PIXEL_STD).view(3, 1, 1)
    return normalised.contiguous(memory_format=torch.channels_last)


def measure(fabric: Fabric, clip: Any, photos: PetDataset, batch_size: int) -> dict[str, float]:
    """Zero-shot figures on whole letterboxed squares at the prepared size."""
    tokenizer = SimpleTokenizer(context_length=clip.context_length)
    scale = clip.logit_scale.exp().item()
    return measure_zero_shot(clip, tokenizer, *embed_photos(fabric, clip, photos, batch_size), scale)


@torch.no_grad()
def embed_photos(fabric: Fabric, clip: Any, photos: PetDataset, batch_size: int) -> tuple[Tensor, Tensor]:
    """Image embeddings [N, D] and breed rows [N] of whole photos."""
    clip.eval()
    batches = [
        (clip.encode_image(normalise(images.to(fabric.device))), breed_rows.to(fabric.device))
        for images, breed_rows in DataLoader(Squares(photos), batch_size)
    ]
    embeddings, rows = zip(*batches, strict=True)
    return torch.cat(embeddings), torch.cat(rows)


def _parameter_groups(clip: Any, config: ContrastiveConfig) -> list[dict[str, Any]]:
    """The pretrained tower apart from what starts at random; vectors and scalars take no weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in clip.named_parameters():
        pretrained = name.startswith("visual.trunk.") and config.image_weights != "random"
        rate = config.image_learning_rate if pretrained else config.text_learning_rate
        decay = config.weight_decay if parameter.ndim > 1 and "embedding" not in name else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _rest_batch_norm(model: nn.Module) -> None:
    """Batch statistics stay those of ImageNet: small batches at changing sizes would blur them, and this is faster."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _append_row(path: Path, row: dict[str, Any], new: bool) -> None:
    with path.open("w" if new else "a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _card(
    config: ContrastiveConfig, prepared: Path, photos: PetDataset, held_out: PetDataset, figures: dict[str, float]
) -> BackboneCard:
    return BackboneCard(
        name=config.name,
        open_clip_config=config.open_clip_config,
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        zero_shot_prompts=zero_shot_prompts(),
        summary=config.summary,
        metrics={
            "protocol": "zero-shot, letterboxed validation part of trainval",
            "image_size": photos.image_size,
            **figures,
        },
        data={
            "name": "Oxford-IIIT Pet",
            "fingerprint": fingerprint(prepared),
            "train": len(photos),
            "validation": len(held_out),
        },
        training=json.loads(config.model_dump_json()),
        seed=config.seed,
        git_commit=git_commit(),
    )
