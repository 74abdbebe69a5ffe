"""Frozen CLIP image and text towers through open_clip, one instance in the process for all models that use them.

A backbone comes by open_clip's name and pretrained tag, from a local weights file, or from one of our own backbone
files, whose header holds its open_clip config. `clip` and `prompt` build on it; training/contrastive.py writes them.
"""

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.factory import get_tokenizer
from open_clip.tokenizer import SimpleTokenizer
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from models.backbone_file import (
    build_clip,
    clean_name,
    digest_weights,
    find_backbone,
    find_open_clip_weights,
    load_open_clip_weights,
    load_own_weights,
    open_clip_config,
    read_backbone_card,
)
from models.layers import is_recorded, send_ahead
from models.visual_towers import VisualOutput, view_tower

_TEXT_CACHE_ROWS = 4096
_TOKENIZER_WORDS = 4096
"""Words whose byte pairs are kept; open_clip alone would keep each that any caller ever sent."""


class BackboneConfig(BaseModel):
    """Which CLIP, and which of its feature maps a head reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = None
    """One of our own backbone files, by name without suffix; takes the place of the four fields below."""
    name: str | None = None
    """open_clip's model name, such as "ViT-L-14"; with `open_clip_config`, only a label."""
    open_clip_config: dict[str, Any] | None = None
    """A model config in open_clip's own form, for towers that open_clip has no name for."""
    pretrained: str | None = None
    """open_clip's weights tag, such as "openai", or the path of a local weights file; None: fixed random weights."""
    quick_gelu: bool | None = None
    """Whether the weights were trained with QuickGELU, as OpenAI's were; None takes what the tag says."""
    layers: tuple[int, ...] = ()
    """Finer maps besides the grid: ViT blocks or CNN stages, counted from 0."""

    @model_validator(mode="after")
    def _name_one_source(self) -> "BackboneConfig":
        if (self.file is None) == (self.name is None):
            raise ValueError("give either file (one of our backbones) or name (an open_clip model)")
        if self.file is not None and (self.open_clip_config or self.pretrained or self.quick_gelu is not None):
            raise ValueError(f"file {self.file!r} holds its own config and weights; leave out the open_clip fields")
        return self


class ClipBackbone(nn.Module):
    """Both towers of one CLIP, frozen and always in eval().

    Holds nothing that differs between the models that share it: image size and layers are arguments.
    """

    def __init__(
        self,
        clip: Any,
        name: str,
        pixel_mean: Sequence[float] = OPENAI_DATASET_MEAN,
        pixel_std: Sequence[float] = OPENAI_DATASET_STD,
        zero_shot_prompts: dict[str, tuple[str, ...]] | None = None,
        tokenizer_name: str | None = None,
    ) -> None:
        super().__init__()
        self.clip: Any = clip.requires_grad_(False)
        self.name = name
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)
        self.zero_shot_prompts = zero_shot_prompts or {}
        self.tower = view_tower(clip.visual)
        self.embed_dim: int = _embed_dim(clip)
        self.context_length: int = clip.context_length
        self.digest: str = digest_weights(clip.state_dict())
        """sha256 over sorted names and float32 values: the same whatever file they came from."""
        self._tokenizer_name = tokenizer_name
        self._tokenizer: Any = None
        self._tokens: OrderedDict[str, Tensor] = OrderedDict()
        self._texts: OrderedDict[tuple[bytes, torch.device, torch.dtype], Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.eval()

    @property
    def grid_channels(self) -> int:
        """Channels D of the grid, in the joint space with the text embeddings."""
        return self.embed_dim

    @property
    def logit_scale(self) -> Tensor:
        """Factor on cosine similarities before the softmax, a scalar (already exponentiated)."""
        scale: Tensor = self.clip.logit_scale.exp().reshape(())
        return scale

    def layer_channels(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Channels of each of `layers`; known without weights, also on the meta device."""
        self._check_layers(layers)
        return tuple(self.tower.layer_channels[layer] for layer in layers)

    def feature_shapes(self, image_size: int, layers: Sequence[int] = ()) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of the grid, then of each of `layers`, for square images of side `image_size`."""
        self._check_image_size(image_size, image_size)
        channels = (self.grid_channels, *self.layer_channels(layers))
        strides = (self.tower.grid_stride, *(self.tower.layer_strides[layer] for layer in layers))
        return tuple((c, image_size // s, image_size // s) for c, s in zip(channels, strides, strict=True))

    def encode_image(self, images: Tensor, layers: Sequence[int] = ()) -> VisualOutput:
        """Grid, image embedding and layers in one forward pass.

        images: Tensor [B, 3, S, S], normalised with `pixel_mean` and `pixel_std`; S a multiple of the grid's stride.

        Returns the visual tokens without the class token in the joint space, [B, D, h, w]; CLIP's own image embedding
        [B, D], NOT normalised to unit length; and each of `layers` in that order, [B, C, h, w].
        """
        self._check_image_size(images.shape[-2], images.shape[-1])
        self._check_layers(layers)
        return self.tower.encode(images, layers)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """CLIP's text embeddings [B, D], NOT normalised to unit length.

        tokens: Tensor [B, 77], int64, on the CPU or the towers' device. Rows seen before come from a cache, which is
        bypassed while the model is traced.
        """
        if is_recorded(tokens):
            return self._embed_text(tokens)
        weight = self.clip.logit_scale
        keys = [(row.tobytes(), weight.device, weight.dtype) for row in tokens.cpu().numpy()]
        with self._lock:
            known = {key: self._texts[key] for key in keys if key in self._texts}
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        with torch.no_grad():
            if missing:
                embeddings = self._embed_text(send_ahead(tokens[list(missing.values())], weight.device))
                known |= {key: embedding.clone() for key, embedding in zip(missing, embeddings, strict=True)}
            self._remember_texts(known)
            return torch.stack([known[key] for key in keys])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [N, 77] int64; longer ones are cut.

        The latest texts' tokens are kept: callers send the same few again and again, and mending a text's encoding, as
        CLIP's tokenizer does first, takes a millisecond.
        """
        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._tokens]
            if missing:
                if self._tokenizer is None:
                    self._tokenizer = _build_tokenizer(self._tokenizer_name, self.context_length)
                self._tokens |= dict(zip(missing, self._tokenizer(missing).long(), strict=True))
                _forget_words(self._tokenizer)
            tokens = [self._tokens[text] for text in texts]
            for text in texts:
                self._tokens.move_to_end(text)
            while len(self._tokens) > _TEXT_CACHE_ROWS:
                self._tokens.popitem(last=False)
        return torch.stack(tokens)

    def train(self, mode: bool = True) -> "ClipBackbone":
        """Stays in eval(): the towers are frozen, their batch statistics too."""
        return super().train(False)

    def _embed_text(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.clip.encode_text(tokens)
        return embeddings

    def _remember_texts(self, embeddings: dict[tuple[bytes, torch.device, torch.dtype], Tensor]) -> None:
        with self._lock:
            for key, embedding in embeddings.items():
                self._texts[key] = embedding
                self._texts.move_to_end(key)
            while len(self._texts) > _TEXT_CACHE_ROWS:
                self._texts.popitem(last=False)

    def _check_image_size(self, height: int, width: int) -> None:
        stride = self.tower.grid_stride
        if height % stride or width % stride:
            raise ValueError(f"{self.name}: got images of {height} x {width} pixels, wanted multiples of {stride}")

    def _check_layers(self, layers: Sequence[int]) -> None:
        count = len(self.tower.layer_channels)
        if wrong := [layer for layer in layers if not 0 <= layer < count]:
            raise ValueError(f"{self.name}: got layers {wrong}, wanted numbers from 0 to {count - 1}")


_instances: weakref.WeakValueDictionary[str, ClipBackbone] = weakref.WeakValueDictionary()
"""Held only as long as a model uses them: one that is replaced while the service runs takes its backbone along."""
_instances_lock = threading.Lock()


def load_backbone(config: BackboneConfig) -> ClipBackbone:
    """The one instance of these weights in this process, on the CPU in float32 when first loaded.

    Inside `with torch.device("meta")` a fresh backbone without weights is built instead, for looking at sizes.
    Raises CheckpointError or ValueError saying what is missing and where it was looked for.
    """
    if torch.get_default_device().type == "meta":
        return _load_own(config.file, None) if config.file else _load_named(config, None, {})
    with _instances_lock:
        path, facts = _find_weights(config)
        identity = _identify(config, path)
        backbone = _instances.get(identity)
        if backbone is None:
            with torch.device("cpu"):
                backbone = _load_own(config.file, path) if config.file else _load_named(config, path, facts)
            _instances[identity] = backbone
        return backbone


def _find_weights(config: BackboneConfig) -> tuple[Path | None, dict[str, Any]]:
    if config.file is not None:
        return find_backbone(config.file), {}
    if config.pretrained is None:
        return None, {}
    return find_open_clip_weights(config.name or "", config.pretrained)


def _identify(config: BackboneConfig, path: Path | None) -> str:
    """Names the weights, not how they are used: configs that differ in layers share one instance."""
    source = config.model_dump(include={"name", "open_clip_config", "quick_gelu"} if config.file is None else set())
    if path is not None:
        state = path.stat()
        source |= {"path": str(path.resolve()), "bytes": state.st_size, "modified_ns": state.st_mtime_ns}
    return json.dumps(source, sort_keys=True)


def _load_own(name: str, path: Path | None) -> ClipBackbone:
    card = read_backbone_card(path or find_backbone(name))
    clip = build_clip(card.open_clip_config)
    if path is not None:
        load_own_weights(clip, path)
    return ClipBackbone(clip, card.name, card.pixel_mean, card.pixel_std, card.zero_shot_prompts)


def _load_named(config: BackboneConfig, path: Path | None, facts: dict[str, Any]) -> ClipBackbone:
    name = clean_name(config.name or "")
    model = dict(config.open_clip_config or open_clip_config(name))
    quick_gelu = config.quick_gelu if config.quick_gelu is not None else facts.get("quick_gelu")
    if quick_gelu is not None:
        model["quick_gelu"] = quick_gelu
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # a saved head must find the same random tower again
        clip = build_clip(model)
    if path is not None:
        load_open_clip_weights(clip, path)
    mean, std = facts.get("mean") or OPENAI_DATASET_MEAN, facts.get("std") or OPENAI_DATASET_STD
    return ClipBackbone(clip, name, mean, std, tokenizer_name=None if config.open_clip_config else name)


def _build_tokenizer(name: str | None, context_length: int) -> Any:
    """open_clip's own tokenizer for `name`, or CLIP's byte pairs, which come with open_clip."""
    if name is not None:
        return get_tokenizer(name, context_length=context_length)
    return SimpleTokenizer(context_length=context_length)


def _forget_words(tokenizer: Any) -> None:
    """Drop the words that were added to open_clip's own cache once they are too many; its special tokens stay."""
    if isinstance(tokenizer, SimpleTokenizer) and len(tokenizer.cache) > _TOKENIZER_WORDS:
        tokenizer.cache = dict(islice(tokenizer.cache.items(), len(tokenizer.all_special_ids)))


def _embed_dim(clip: Any) -> int:
    """Size D of the joint space, read from the text tower: the image tower's is spelt differently in each kind."""
    projection = getattr(clip, "text_projection", None)
    if projection is None:
        projection = getattr(clip.text, "text_projection", None)
    if projection is None:
        raise ValueError("got a text tower without projection, wanted one into the joint space")
    return projection.out_features if isinstance(projection, nn.Linear) else int(projection.shape[1])
