"""What PyTorch as the engine does to a network that it takes over."""

from threading import Thread

import pytest
import torch
from torch import Tensor

from models import clip_backbone
from models.base import Features
from models.clip_backbone import ClipBackbone
from models.engine import Precision
from models.torch_engine import TorchEngine
from training.config import load_config
from training.train import build_model

CPU = torch.device("cpu")


def test_a_text_embedded_meanwhile_leaves_its_tower_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_backbone, "_instances", {})  # what is cast here no other test is to share
    clip, prompt = (build_model(load_config(recipe, smoke=True)).eval() for recipe in ("clip", "prompt"))
    backbone, encode = prompt.get_submodule("backbone"), prompt.encode
    assert isinstance(backbone, ClipBackbone)
    assert backbone is clip.get_submodule("backbone")

    def encode_beside_a_text(images: Tensor) -> Features:
        other = Thread(target=backbone._embed_text, args=(torch.ones(1, 77, dtype=torch.int64),))
        other.start()
        other.join()
        return encode(images)

    monkeypatch.setattr(prompt, "encode", encode_beside_a_text)
    TorchEngine(prompt, CPU, Precision.BF16)
    parts = {"visual": False, "transformer": False}
    for name, parameter in backbone.named_parameters():
        for part in parts:
            parts[part] |= name.startswith(f"clip.{part}.") and parameter.dtype is torch.bfloat16
    assert parts == {"visual": True, "transformer": False}
