"""What the export says where it cannot be made, or would not be the same. The graphs themselves: tests/e2e."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from models import onnx_export
from models.base import Features
from models.checkpoint import Checkpoint
from models.onnx_export import ExportError, export_onnx
from models.prompts import PromptTensors
from service.cli import app
from tests.fakes import ColourModel, fake_checkpoint

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")


class BatchOfTwo(ColourModel):
    """Reads the number of rows as if it were a constant."""

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        return super().decode(features, prompt) * int(features[0].shape[0])


def test_a_missing_package_is_named_with_its_extra(
    unet: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.onnx_export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ExportError, match=r"got no onnxscript, .*pip install 'petseg\[onnx\]'"):
        export_onnx(unet, tmp_path)


def test_a_broken_checkpoint_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    said = CliRunner().invoke(app, ["export", str(broken), "--onnx", str(tmp_path / "out")])
    assert said.exit_code == 2
    assert said.stderr.startswith(f"petseg: {broken}: not a readable safetensors file")
    assert not (tmp_path / "out").exists()


@needs_onnx
def test_a_network_that_holds_the_batch_constant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"two\.onnx: got a network that does not convert to ONNX \("):
        export_onnx(fake_checkpoint(BatchOfTwo, "two"), tmp_path)


@needs_onnx
def test_a_graph_that_differs_is_refused(unet: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx_export._Graph._convert

    def convert_and_change(self: Any) -> Any:
        program = convert(self)
        with torch.no_grad():
            next(unet.model.parameters()).mul_(1.5)  # what is compared is no longer what was written
        return program

    monkeypatch.setattr(onnx_export._Graph, "_convert", convert_and_change)
    kept = {name: value.clone() for name, value in unet.model.state_dict().items()}
    try:
        with pytest.raises(ExportError, match=r"unet\.onnx: got logits .* away from torch's, wanted at most"):
            export_onnx(unet, tmp_path)
    finally:
        unet.model.load_state_dict(kept)
