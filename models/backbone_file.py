"""CLIP weights on disk: our own backbone files with everything in the header, and open_clip's, strictly loaded.

`clip_backbone.py` reads through these functions; training/contrastive.py writes `save_backbone` files.
"""

import difflib
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

from open_clip.factory import get_model_config, list_models
from open_clip.factory import load_checkpoint as load_open_clip_checkpoint
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.folders import BACKBONE_FOLDER, BACKBONE_FOLDER_VARIABLE
from models.tensor_file import Card, CheckpointError, halve_matrices, read_card_of, write_safetensors

CARD_KEY = "backbone_card"
FORMAT_VERSION = 1


class BackboneCard(Card):
    """Everything about one of our own backbone files that its weights do not say."""

    format_version: int = FORMAT_VERSION
    name: str
    open_clip_config: dict[str, Any]
    """embed_dim, vision_cfg and text_cfg, as open_clip reads them."""
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    zero_shot_prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class name -> prompts that stand for it when the model picks its own."""


def save_backbone(path: Path, clip: nn.Module, card: BackboneCard) -> None:
    """Write `clip` as one of our backbone files, its matrices in half precision."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in halve_matrices(clip.state_dict()).items()}
    write_safetensors(path, tensors, {CARD_KEY: card.model_dump_json()})


def read_backbone_card(path: Path) -> BackboneCard:
    """The card of one of our backbone files, from its header alone."""
    return read_card_of(path, BackboneCard, CARD_KEY, FORMAT_VERSION, "petseg-train backbone")


def find_backbone(name: str) -> Path:
    """The file of one of our own backbones; CheckpointError naming the folders that were searched."""
    override = os.environ.get(BACKBONE_FOLDER_VARIABLE)
    folders = ([Path(override)] if override else []) + [BACKBONE_FOLDER]
    for folder in folders:
        if (path := folder / f"{name}.safetensors").is_file():
            return path
    searched = ", ".join(map(str, folders))
    raise CheckpointError(f"backbone {name!r}: no {name}.safetensors in {searched}; set {BACKBONE_FOLDER_VARIABLE}")


def build_clip(config: dict[str, Any]) -> CLIP | CustomTextCLIP:
    """The network that an open_clip model config describes, with random weights."""
    known = {key: value for key, value in config.items() if key not in ("custom_text", "multimodal_cfg")}
    if "multimodal_cfg" in config:
        raise ValueError("got a CoCa config, wanted a CLIP of two towers")
    vision = {**known["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    text = {**known["text_cfg"]}
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom_text = config.get("custom_text", False) or "hf_model_name" in text
    build = CustomTextCLIP if custom_text else CLIP
    clip: CLIP | CustomTextCLIP = build(**{**known, "vision_cfg": vision, "text_cfg": text})
    return clip


def digest_weights(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and values in the names' order, floats as float32; the names alone on the meta device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            values = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(values.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def load_own_weights(clip: nn.Module, path: Path) -> None:
    """Fill `clip` from one of our backbone files; every key there and none besides."""
    try:
        clip.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged tensors ({error})") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path}: tensors: {error}") from error


def load_open_clip_weights(clip: CLIP | CustomTextCLIP, path: Path) -> None:
    """Fill `clip` from a .safetensors, .pt or .bin file in any form open_clip reads; strictly, never running pickle."""
    try:
        load_open_clip_checkpoint(clip, str(path), strict=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors; save its state dict as .safetensors first") from error
    except (SafetensorError, OSError, EOFError, StopIteration) as error:
        raise CheckpointError(f"{path}: not a readable weights file ({type(error).__name__}: {error})") from error
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path}: tensors do not fit the model: {error}") from error


def open_clip_config(name: str) -> dict[str, Any]:
    """open_clip's own config of a model that it has a name for; ValueError with close names otherwise."""
    config: dict[str, Any] | None = get_model_config(clean_name(name))  # type: ignore[no-untyped-call]
    if config is None:
        close = difflib.get_close_matches(clean_name(name), list_models(), n=3, cutoff=0.3)  # type: ignore[no-untyped-call]
        raise ValueError(f"got open_clip model {name!r}, wanted one it knows, such as {', '.join(close) or 'ViT-L-14'}")
    return config


def find_open_clip_weights(name: str, pretrained: str) -> tuple[Path, dict[str, Any]]:
    """The weights file of a tag, downloaded if need be, or the local file at `pretrained`; and what is known of it.

    The second value may hold `mean`, `std` and `quick_gelu`.
    """
    facts: dict[str, Any] = get_pretrained_cfg(clean_name(name), pretrained)
    if facts:
        try:
            return Path(download_pretrained(facts)), facts
        except Exception as error:  # the hub's client raises many kinds without a network; all mean the same here
            raise CheckpointError(
                f"{name}, weights {pretrained!r}: no network or not on the hub ({error}); give the path of a local file"
            ) from error
    path = Path(pretrained)
    if not path.is_file():
        tags = ", ".join(list_pretrained_tags_by_model(clean_name(name))) or "none"
        raise CheckpointError(
            f"{name}, weights {pretrained!r}: no file {path.absolute()} and no such tag; tags: {tags}"
        )
    return path, {}


def clean_name(name: str) -> str:
    """OpenAI's spelling of model names to open_clip's: ViT-L/14 -> ViT-L-14."""
    return name.replace("/", "-")
