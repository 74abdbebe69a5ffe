"""The teacher of a distillation: compiled or not, it says the same."""

from pathlib import Path

import pytest
import torch

from models.architectures.unet import UNet, UNetConfig
from models.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from training import teacher
from training.teacher import load_teacher

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = UNet(UNetConfig(image_size=32, widths=(4, 8), vote=True))
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, model, ModelCard(architecture="unet", config=model.config.model_dump(mode="json")))
    return path


def test_a_compiled_teacher_says_what_torch_says(checkpoint: Path) -> None:
    pytest.importorskip("openvino")
    images = torch.rand(3, 3, 32, 32)
    deepest, logits = load_teacher(checkpoint, CPU).features_and_logits(images, {})
    with torch.no_grad():
        wanted_features, wanted_logits = load_checkpoint(checkpoint).model.eval().features_and_logits(images, {})
    # bfloat16 where the CPU computes in it: 8 bits of mantissa.
    torch.testing.assert_close(logits, wanted_logits, rtol=0.02, atol=0.02 * float(wanted_logits.abs().max()))
    wanted = wanted_features[-1]
    torch.testing.assert_close(deepest[-1], wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_without_openvino_the_teacher_is_torch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "is_installed", lambda: False)
    model = load_teacher(checkpoint, CPU)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    features, logits = model.features_and_logits(torch.rand(2, 3, 32, 32), {})
    assert (len(features), logits.shape) == (2, (2, 3, 32, 32))
