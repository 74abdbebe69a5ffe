"""Click-prompted masks on the same frozen CLIP grid (study, prompt): the clicked animal against the rest."""

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Features
from models.frozen_clip import FrozenClip, FrozenClipConfig, cosine_map
from models.layers import is_recorded, resize_to, send_ahead, shrink_mean
from models.prompts import PADDING_LABEL, PromptKind, PromptTensors


class PromptConfig(FrozenClipConfig):
    """Defaults are the study's."""

    class_names: tuple[str, ...] = ("background", "object")
    sigma_px: float = 10.0
    """Standard deviation of a click's Gaussian in pixels of the model's square."""
    similarity_map: int = Field(0, ge=0)
    """Pyramid head: which map is compared with the clicked spot; 0 the grid, i the i-th backbone layer."""


class PromptModel(FrozenClip):
    """Clicks as a Gaussian heatmap, encoded onto the grid; any number of clicks, positive and negative."""

    Config = PromptConfig
    prompt_kind = PromptKind.POINTS
    prompt_required = True
    config: PromptConfig

    def __init__(self, config: PromptConfig) -> None:
        super().__init__(config, guide_channels=3, attention=False)
        channels, side, _ = self.backbone.feature_shapes(config.image_size)[0]
        stride = config.image_size // side
        self.pointer_encoder = nn.Sequential(
            nn.Conv2d(1, channels, stride, stride=stride, bias=False),  # [B, 1, S, S] -> [B, D, h, w]
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def embed_prompt(self, features: Features, prompt: PromptTensors) -> PromptTensors:
        """`positive` and `negative` [B, 1, S, S] float32 in [0, 1]: Gaussians of peak 1, added and clipped.

        On the device of the features.
        """
        return prompt if "positive" in prompt else self._heatmaps(prompt, features[0].device)

    def decode_native(self, features: Features, prompt: PromptTensors) -> Tensor:
        grid = features[2]
        heatmaps = self.embed_prompt(features, prompt)
        positive, negative = heatmaps["positive"].to(grid.dtype), heatmaps["negative"].to(grid.dtype)
        condition = self.pointer_encoder(positive - negative)
        # Where the backbone sees what it saw under the clicks: tells one animal from another beside it.
        source = features[2 + self.config.similarity_map]
        weights = shrink_mean(positive, int(source.shape[-1]))
        clicked = (source * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-6)  # [B, C]
        similarity = resize_to(cosine_map(source, clicked), positive)
        return self.segment(features, condition, torch.cat([positive, negative, similarity], dim=1))

    def _heatmaps(self, prompt: PromptTensors, device: torch.device) -> PromptTensors:
        points, labels = prompt["points"].float(), prompt["point_labels"]
        if not (labels.is_cuda or is_recorded(labels)):  # a GPU would be waited for; elsewhere padding costs most of it
            is_click = (labels != PADDING_LABEL).any(0)
            points, labels = points[:, is_click], labels[:, is_click]
        points, labels = send_ahead(points, device), send_ahead(labels, device)
        pixels = torch.arange(self.config.image_size, device=points.device)
        across = (-0.5 * ((pixels - points[..., :1]) / self.config.sigma_px).square()).exp()  # [B, N, S]
        down = (-0.5 * ((pixels - points[..., 1:]) / self.config.sigma_px).square()).exp()  # [B, N, S]
        return {
            name: torch.einsum("bny,bnx->byx", down * (labels == label)[..., None], across).clamp(max=1)[:, None]
            for name, label in (("positive", 1), ("negative", 0))
        }
