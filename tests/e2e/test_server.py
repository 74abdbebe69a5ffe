"""A real server process: ready, asked over HTTP, asked to stop with a request in flight, gone with exit code 0."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from models.checkpoint import Checkpoint
from models.letterbox import Letterbox, decode_image, image_tensor
from tests.e2e.server import free_port, start, stop, wait_until_ready
from tests.fakes import decode_rle, encode, read


@pytest.fixture(scope="module")
def server(
    checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple["subprocess.Popen[bytes]", str, Path]]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    process, url = start(checkpoint_folder, log)
    try:
        wait_until_ready(process, url, log)
        yield process, url, log
    finally:
        process.kill()
        process.wait(timeout=60)


@pytest.fixture
def cat() -> bytes:
    pixels = skimage.data.chelsea()  # type: ignore[no-untyped-call]
    return encode(Image.fromarray(pixels), "JPEG", quality=92)


def test_a_photo_in_a_mask_out(
    server: tuple["subprocess.Popen[bytes]", str, Path], cat: bytes, unet: Checkpoint
) -> None:
    _, url, log = server
    png = httpx.post(f"{url}/segment/unet", files={"image": cat}, timeout=20)
    assert png.status_code == 200, png.text
    mask = np.asarray(read(png.content))
    photo, size = decode_image(cat)
    letterbox = Letterbox(size, 32)
    with torch.inference_mode():
        logits = unet.model(image_tensor(letterbox.apply_image(photo))[None], {})[0]
    assert mask.shape == size == (300, 451)
    assert (mask == letterbox.restore_mask(logits)).mean() > 0.999

    raw = httpx.post(f"{url}/segment/unet?output=rle", content=cat, headers={"content-type": "image/jpeg"}, timeout=20)
    for segment in raw.json()["segments"]:
        assert (decode_rle(**segment["segmentation"]) == (mask == segment["category_id"])).all()
    assert "petseg on " + url in log.read_text()


def test_a_large_body_is_refused_while_it_comes(
    server: tuple["subprocess.Popen[bytes]", str, Path],
) -> None:
    _, url, _ = server

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)

    try:
        response = httpx.post(
            f"{url}/segment/unet", content=chunks(), headers={"content-type": "image/png"}, timeout=20
        )
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server has hung up on the rest, as it may
    else:
        assert response.json()["type"] == "/problems/body-too-large"
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_sigterm_finishes_what_was_accepted(checkpoint_folder: Path, tmp_path: Path, cat: bytes) -> None:
    log = tmp_path / "log.txt"
    operation_port = free_port()
    process, url = start(checkpoint_folder, log, {"PETSEG_OPERATION_PORT": operation_port})
    try:
        wait_until_ready(process, url, log)
        assert httpx.get(f"http://127.0.0.1:{operation_port}/readyz").status_code == 200
        photos = [("image", (f"{index}.jpg", cat)) for index in range(24)]
        with (
            ThreadPoolExecutor(1) as pool,
            httpx.stream("POST", f"{url}/segment/unet/batch", files=photos, timeout=30) as response,
        ):
            lines = response.iter_lines()
            first = next(lines)
            ended = pool.submit(stop, process)
            rest = list(lines)
        assert ended.result() == 0
    finally:
        process.kill()
        process.wait(timeout=60)
    assert all('"segments"' in line for line in (first, *rest))
    assert len(rest) == 23


def test_a_start_that_cannot_be_says_so_in_one_line(tmp_path: Path) -> None:
    process, _ = start(tmp_path, tmp_path / "log.txt")
    assert process.wait(timeout=240) == 2
    assert (tmp_path / "log.txt").read_text() == (
        f"petseg: {tmp_path}: got no *.safetensors, wanted at least one; train one with petseg-train\n"
    )
