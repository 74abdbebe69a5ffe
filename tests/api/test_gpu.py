"""The service on a GPU as it starts by itself: every shipped network, alone and in batches, against torch on a CPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.utils.data import default_collate

from models.checkpoint import load_checkpoint
from models.folders import CHECKPOINT_FOLDER
from models.letterbox import Array, Letterbox, decode_planes, planes_tensor
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from tests.e2e.server import start, stop, wait_until_ready
from tests.fakes import encode, read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="serves on a GPU, and torch sees none here")

NAMES = sorted(path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors"))
ASKED: dict[PromptKind, tuple[dict[str, str], Prompt]] = {
    PromptKind.NONE: ({}, None),
    PromptKind.TEXT: ({"text": "a photo of a cat"}, TextPrompt("a photo of a cat")),
    PromptKind.POINTS: ({"x": "220", "y": "150"}, PointPrompt(((220.0, 150.0),), (1,))),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("gpu") / "log.txt"
    settings = {"PETSEG_ENGINE": "auto", "PETSEG_PRECISION": "auto", "PETSEG_DEVICE": "cuda"}
    process, url = start(CHECKPOINT_FOLDER, log, settings)
    try:
        wait_until_ready(process, url, log)
        yield url
        assert stop(process) == 0
    finally:
        process.kill()
        process.wait(timeout=60)


def expected(name: str, photo: bytes) -> tuple[dict[str, str], Array]:
    """What is asked of the network, and the plain network's mask."""
    model = load_checkpoint(CHECKPOINT_FOLDER / f"{name}.safetensors").model
    fields, prompt = ASKED[model.prompt_kind]
    planes, size = decode_planes(photo, model.config.image_size)
    letterbox = Letterbox(size, model.config.image_size)
    tensors = default_collate([model.prompt_tensors(prompt, letterbox)])
    with torch.inference_mode():
        return fields, letterbox.restore_mask(model(planes_tensor(planes)[None], tensors)[0])


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_the_plain_network(url: str, name: str) -> None:
    photo = encode(Image.fromarray(skimage.data.chelsea()), "JPEG", quality=92)  # type: ignore[no-untyped-call]
    fields, wanted = expected(name, photo)

    def ask(number: int) -> Array:
        # Bytes behind the image: no answer comes from the features of another.
        upload = photo + b"%d" % number
        answer = httpx.post(f"{url}/segment/{name}", data=fields, files={"image": upload}, timeout=60)
        assert answer.status_code == 200, answer.text
        return np.asarray(read(answer.content))

    masks = [ask(0)]
    with ThreadPoolExecutor(24) as pool:
        masks += pool.map(ask, range(1, 72))
    assert min(float((mask == wanted).mean()) for mask in masks) >= 0.995
