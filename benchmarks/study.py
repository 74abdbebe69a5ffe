"""The study task: a UNet of base 32 at 128 px, as a checkpoint that every contestant loads."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.photos import COUNT, write_photos
from models.architectures import get_architecture
from models.architectures.unet import UNet, UNetConfig
from models.base import SegmentationModel
from models.checkpoint import ModelCard, backbone_digest, load_checkpoint, read_card, save_checkpoint
from models.engine import takes_prompt
from models.folders import CHECKPOINT_FOLDER
from training.config import load_config
from training.official_layout import CAT, PetRecord, trimap_path
from training.quantize import METHOD, quantize

NAME = "study"
INT8 = "int8"
"""Name of a precision that is a checkpoint of its own, not a setting."""
FULL_SIZE, FULL_SIZE_TEXT = "prompt-vitl14", "clip-vitl14"
"""Recipes on OpenAI's ViT-L/14, beside whose encoder a mask head takes little time."""
WIDTHS = (32, 64, 128, 256, 512)
IMAGE_SIZE = 128
"""The study's; the shipped UNet may see more."""


def write_study_checkpoint(folder: Path, weights: str = "shipped", widths: tuple[int, ...] = WIDTHS) -> Path:
    """study.safetensors in `folder`.

    weights: `shipped` widens the shipped UNet to `widths` without changing what it computes, so that its masks are
    those of a trained network; `random` draws them.
    """
    if weights == "shipped":
        source = cast(UNet, load_checkpoint(CHECKPOINT_FOLDER / "unet.safetensors").model)
        model = widen(source, widths[0] // cast(UNetConfig, source.config).widths[0])
        model.config = model.config.model_copy(update={"image_size": IMAGE_SIZE})
    else:
        torch.manual_seed(0)
        model = cast(UNet, get_architecture("unet")(UNetConfig(image_size=IMAGE_SIZE, widths=widths)))
    return _save(folder, NAME, "unet", model, f"UNet of base {widths[0]}, {weights} weights, for the benchmarks.")


def write_full_size_checkpoint(folder: Path, name: str = FULL_SIZE) -> Path:
    """<name>.safetensors in `folder`: a recipe on the study's own backbone, with random weights."""
    recipe = load_config(name)
    architecture = get_architecture(recipe.architecture)
    random = {"pretrained": None, "quick_gelu": True}
    model = architecture(
        architecture.Config.model_validate(recipe.model | {"backbone": recipe.model["backbone"] | random})
    )
    return _save(folder, name, recipe.architecture, model, f"{recipe.summary} Random weights, for the benchmarks.")


def copy_shipped_checkpoint(folder: Path, model: str) -> Path:
    """A shipped checkpoint alone in `folder`. Raises ValueError for one that is not there, or that wants prompts."""
    source = CHECKPOINT_FOLDER / f"{model}.safetensors"
    if not source.is_file() or takes_prompt(load_checkpoint(source).model):
        raise ValueError(f"got model {model}, wanted {NAME} or a shipped one that takes no prompt")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, folder))


def int8_path(checkpoint: Path) -> Path:
    """Where the same network in 8-bit integers lies, under the same name, so that it is asked for alike."""
    return checkpoint.parent / INT8 / checkpoint.name


def write_int8_checkpoint(checkpoint: Path, photos: int = 96) -> Path:
    """`checkpoint` in 8-bit integers, calibrated on other crops than are sent; made where it is not there yet.

    Raises ValueError where NNCF is missing.
    """
    path, source = int8_path(checkpoint), load_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = read_card(path).quantization if path.is_file() else None
    if made is not None and (made.source, made.method) == (source.digest, METHOD):
        return path
    with TemporaryDirectory() as folder:
        quantize(source, Path(folder), write_calibration(Path(folder), photos), path)
    return path


def write_calibration(root: Path, count: int) -> list[PetRecord]:
    """`count` photos that no load holds, in the official layout under `root`; their trimaps say nothing."""
    photos = sorted(write_photos(root / "images", count, first=COUNT).iterdir())
    records = [PetRecord(photo.stem, breed="Chelsea", species=CAT) for photo in photos]
    trimap_path(root, photos[0].stem).parent.mkdir(parents=True)
    for photo in photos:
        with Image.open(photo) as image:
            Image.new("L", image.size, color=1).save(trimap_path(root, photo.stem))
    return records


def widen(source: UNet, factor: int) -> UNet:
    """A UNet with `factor` times the channels that computes the same (Chen et al. 2016, Net2Net).

    Each channel is there `factor` times; weights that read a repeated channel are divided by `factor`.
    """
    config = cast(UNetConfig, source.config)
    wide = UNet(config.model_copy(update={"widths": tuple(factor * width for width in config.widths)}))
    with torch.no_grad():
        for (name, module), copy in zip(source.named_modules(), wide.modules(), strict=True):
            if isinstance(module, nn.Conv2d):
                target = cast(nn.Conv2d, copy)
                weight = module.weight if module.in_channels == 3 else _repeat(module.weight, factor, 1) / factor
                target.weight.copy_(weight if name in ("head", "vote") else _repeat(weight, factor, 0))
                if module.bias is not None and target.bias is not None:
                    target.bias.copy_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                for key, value in copy.state_dict(keep_vars=True).items():
                    own = module.state_dict()[key]
                    value.copy_(own if own.ndim == 0 else _repeat(own, factor, 0))
    return wide.eval()


def _save(folder: Path, name: str, architecture: str, model: SegmentationModel, summary: str) -> Path:
    card = ModelCard(
        architecture=architecture,
        config=model.config.model_dump(mode="json"),
        summary=summary,
        backbone_digest=backbone_digest(model),
    )
    path = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, card)
    return path


def _repeat(tensor: Tensor, factor: int, axis: int) -> Tensor:
    return tensor.repeat_interleave(factor, dim=axis)
