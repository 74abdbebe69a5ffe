"""Text-prompted masks on frozen CLIP features (study, CLIP features; Radford et al. 2021).

Without a prompt the model picks its own from a list, zero-shot.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.base import Features
from models.frozen_clip import FrozenClip, FrozenClipConfig, cosine_map
from models.layers import is_recorded, send_ahead
from models.letterbox import Letterbox
from models.prompts import Prompt, PromptKind, PromptTensors, TextPrompt


class ClipConfig(FrozenClipConfig):
    """Defaults are the study's."""

    zero_shot_prompts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Class name -> prompts the model may pick for itself; empty takes the backbone file's own list."""


class Clip(FrozenClip):
    """The prompt's embedding, projected and spread over the grid, beside the visual tokens."""

    Config = ClipConfig
    prompt_kind = PromptKind.TEXT
    config: ClipConfig

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config, guide_channels=1, attention=True)
        self.text_projection = nn.Linear(self.backbone.embed_dim, self.backbone.grid_channels)
        by_class = config.zero_shot_prompts or self.backbone.zero_shot_prompts
        if not by_class:
            raise ValueError("got no zero_shot_prompts, wanted prompts for each class the model may pick itself")
        self._own_prompts = [text for texts in by_class.values() for text in texts]
        self._own_classes = [index for index, texts in enumerate(by_class.values()) for _ in texts]
        self._own: Tensor | None = None

    def prompt_tensors(self, prompt: Prompt, letterbox: Letterbox) -> PromptTensors:
        """`tokens` [77] int64; all zero where the model is to pick its own prompt."""
        super().prompt_tensors(prompt, letterbox)
        if isinstance(prompt, TextPrompt):
            return {"tokens": self.backbone.tokenize([prompt.text])[0]}
        return {"tokens": torch.zeros(self.backbone.context_length, dtype=torch.int64)}

    def embed_prompt(self, features: Features, prompt: PromptTensors) -> PromptTensors:
        """`text` [B, D] float32 of unit length, on the device of the features."""
        return prompt if "text" in prompt else {"text": self._text_embeddings(features, prompt["tokens"])}

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        grid = features[2]
        text = self.embed_prompt(features, prompt)["text"].to(grid)  # [B, D]
        condition = self.text_projection(text)[:, :, None, None].expand(-1, -1, *grid.shape[-2:])  # [B, D, h, w]
        return self.segment(features, condition, cosine_map(grid, text))

    def chosen_prompts(self, features: Features, prompt: PromptTensors) -> list[str | None]:
        given = prompt["tokens"].any(dim=1).tolist()
        if all(given):
            return [None] * len(given)
        picked = self._pick(features).tolist()
        return [None if own else self._own_prompts[index] for index, own in zip(picked, given, strict=True)]

    def _text_embeddings(self, features: Features, tokens: Tensor) -> Tensor:
        """Unit embeddings [B, D] of the given prompts, or of the picked ones where `tokens` [B, 77] are all zero.

        tokens: on the CPU or the device of the features.
        """
        device = features[1].device
        texts = F.normalize(self.backbone.encode_text(tokens).float(), dim=1)
        given = tokens.any(dim=1, keepdim=True)
        # On the CPU while the features are on a GPU: looking there would wait for all that it computes.
        if not (tokens.is_cuda or is_recorded(tokens)) and bool(given.all()):
            return texts
        return torch.where(send_ahead(given, device), texts, self._own_embeddings(device)[self._pick(features)])

    def _pick(self, features: Features) -> Tensor:
        """Index [B] of the own prompt that fits best: first the likeliest class, then its likeliest prompt.

        Summing over a class first lets many middling breeds outvote one lucky one.
        """
        image = F.normalize(features[1].flatten(1).float(), dim=1)  # [B, D]
        own = self._own_embeddings(image.device)
        cosines = (image[:, None] * own).sum(-1)  # [B, P]; a matrix product would be bfloat16 under autocast and tie
        probabilities = (self.backbone.logit_scale * cosines).softmax(dim=1)
        classes = send_ahead(torch.tensor(self._own_classes), image.device)
        by_class = torch.zeros(image.shape[0], int(max(self._own_classes)) + 1, device=image.device)
        best = by_class.index_add(1, classes, probabilities).argmax(dim=1)
        return probabilities.masked_fill(classes != best[:, None], -1).argmax(dim=1)

    def _own_embeddings(self, device: torch.device) -> Tensor:
        """Unit embeddings [P, D] float32 of the own prompts, made once: a constant where the network is exported."""
        if self._own is None or self._own.device != device:
            with torch.no_grad():
                tokens = self.backbone.tokenize(self._own_prompts).to(device)
                self._own = F.normalize(self.backbone.encode_text(tokens).float(), dim=1)
        return self._own
