"""The shipped checkpoints as ONNX graphs: onnxruntime alone makes of a real photo what torch makes of it."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from models.checkpoint import CARD_KEY, Checkpoint, ModelCard, load_checkpoint
from models.folders import CHECKPOINT_FOLDER
from models.letterbox import Letterbox
from models.onnx_export import DIGEST_KEY, PART_KEY
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from service.cli import app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs the extra onnx")

PROMPTS: dict[PromptKind, tuple[Prompt, ...]] = {
    PromptKind.NONE: (None,),
    PromptKind.TEXT: (None, TextPrompt("a photo of a cat"), TextPrompt("a photo of a dog")),
    PromptKind.POINTS: (PointPrompt(((220.0, 150.0),), (1,)), PointPrompt(((220.0, 150.0), (430.0, 280.0)), (1, 0))),
}
Run = Callable[[str, dict[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]


def run_in(folder: Path, checkpoint: Checkpoint) -> Run:
    """Runs a part's graph; the metadata of each is looked at on the way."""
    import onnxruntime

    @cache
    def load(part: str) -> Any:
        name = checkpoint.name if part == "image" else f"{checkpoint.name}-{part}"
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        described = session.get_modelmeta().custom_metadata_map
        assert ModelCard.model_validate_json(described[CARD_KEY]) == checkpoint.card
        assert (described[DIGEST_KEY], described[PART_KEY]) == (checkpoint.digest, part)
        return session

    def run(part: str, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        session = load(part)
        found: list[npt.NDArray[Any]] = session.run(None, {key.name: feeds[key.name] for key in session.get_inputs()})
        return found

    return run


def photos(side: int) -> tuple[list[Letterbox], Tensor]:
    """Two real photos of different shapes, as squares [2, 3, S, S]."""
    cat = skimage.data.chelsea()  # type: ignore[no-untyped-call]
    images = [Image.fromarray(cat), Image.fromarray(np.ascontiguousarray(cat[20:, 60:330]))]
    boxes = [Letterbox((image.height, image.width), side) for image in images]
    squares = [box.apply_image(image) for box, image in zip(boxes, images, strict=True)]
    return boxes, torch.stack([torch.from_numpy(square).permute(2, 0, 1).float() / 255 for square in squares])


@pytest.mark.parametrize("name", sorted(path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors")))
def test_onnxruntime_gives_the_same_masks(name: str, tmp_path: Path) -> None:
    path = CHECKPOINT_FOLDER / f"{name}.safetensors"
    said = CliRunner().invoke(app, ["export", str(path), "--onnx", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert "within" in said.output
    checkpoint = load_checkpoint(path)
    model, run = checkpoint.model, run_in(tmp_path, checkpoint)
    boxes, images = photos(model.config.image_size)
    with torch.no_grad():
        features = model.encode(images)
    levels: dict[str, npt.NDArray[Any]] = {}
    if model.prompt_kind is not PromptKind.NONE:
        found = run("encoder", {"images": images.numpy()})
        levels = {f"feature{level}": each for level, each in enumerate(found)}
    for prompt in PROMPTS[model.prompt_kind]:
        tensors = [model.prompt_tensors(prompt, box) for box in boxes]
        batch = {key: torch.stack([each[key] for each in tensors]) for key in tensors[0]}
        with torch.no_grad():
            wanted = model.decode(features, batch)
        given = {"images": images.numpy(), **levels, **{key: value.numpy() for key, value in batch.items()}}
        (logits,) = run("decoder" if levels else "image", given)
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-3)
        for box, ours, torchs in zip(boxes, torch.from_numpy(logits), wanted, strict=True):
            agreement = np.mean(box.restore_mask(ours) == box.restore_mask(torchs))
            assert agreement >= 0.999, f"{prompt}: {agreement:.5f}"
