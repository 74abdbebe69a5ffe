"""From photos to a mask: train, evaluate, serve that very file, and get over HTTP the masks that were counted."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from lightning_fabric import Fabric
from PIL import Image

from models.checkpoint import load_checkpoint
from models.letterbox import Array
from models.prompts import PointPrompt, Prompt
from tests.e2e.server import start, stop, wait_until_ready
from tests.fakes import read
from training.config import load_config
from training.evaluate import PROTOCOLS, evaluate
from training.official_layout import PetRecord, image_path, read_photo, read_records
from training.train import Run, train


def form_fields(prompt: Prompt) -> dict[str, str]:
    if isinstance(prompt, PointPrompt):
        (x, y), *_ = prompt.points
        return {"x": str(x), "y": str(y)}
    return {}


@pytest.mark.parametrize("recipe", ["timm_unet-compact", "prompt-compact"])
def test_the_served_mask_is_the_evaluated_mask(recipe: str, raw_pets: Path, tmp_path: Path) -> None:
    run = Run(recipe, load_config(recipe, smoke=True), raw_pets, tmp_path / "prepared", tmp_path / "served")
    checkpoint = load_checkpoint(train(run, Fabric(accelerator="cpu", devices=1)))
    records = read_records(raw_pets, "test")[:4]
    protocol, prompter = next(iter(PROTOCOLS[checkpoint.model.prompt_kind].items()))
    counted: dict[str, Array] = {}

    def count(record: PetRecord, mask: Array, target: Array) -> None:
        counted[record.name] = mask

    evaluate(checkpoint.model, raw_pets, records, protocol, on_mask=count)

    process, url = start(run.out, tmp_path / "log.txt")
    try:
        wait_until_ready(process, url, tmp_path / "log.txt")
        for record in records:
            photo = read_photo(raw_pets, record)
            answer = httpx.post(
                f"{url}/segment/{checkpoint.name}",
                files={"image": image_path(raw_pets, record.name).read_bytes()},
                data=form_fields(prompter(record, photo.label_map)),
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            served = read(answer.content)
            assert isinstance(served, Image.Image)
            assert served.mode == "P"
            assert np.array_equal(np.asarray(served), counted[record.name])
    finally:
        assert stop(process) == 0
