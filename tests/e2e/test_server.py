"""A real server process: ready, asked over HTTP, asked to stop with a request in flight, gone with exit code 0."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import skimage.data
import torch
from PIL import Image

from models.checkpoint import Checkpoint
from models.letterbox import Letterbox, decode_image, image_tensor
from service.image_processes import can_have_processes
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


needs_processes = pytest.mark.skipif(not can_have_processes(), reason="this system has no fork server")


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


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=needs_processes)])
def test_sigterm_finishes_what_was_accepted(
    checkpoint_folder: Path, tmp_path: Path, cat: bytes, processes: int
) -> None:
    log = tmp_path / "log.txt"
    operation_port = free_port()
    settings = {"PETSEG_OPERATION_PORT": operation_port, "PETSEG_IMAGE_PROCESSES": processes}
    process, url = start(checkpoint_folder, log, settings)
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
            children = psutil.Process(process.pid).children(recursive=True)
            for child in children:  # as a service manager does, which ends all processes of a service
                child.terminate()
            ended = pool.submit(stop, process)
            rest = list(lines)
        assert ended.result() == 0
    finally:
        process.kill()
        process.wait(timeout=60)
    assert all('"segments"' in line for line in (first, *rest))
    assert len(rest) == 23
    assert len(children) >= processes
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []


@needs_processes
def test_a_killed_image_process_costs_no_photo(checkpoint_folder: Path, tmp_path: Path, cat: bytes) -> None:
    log = tmp_path / "log.txt"
    process, url = start(checkpoint_folder, log, {"PETSEG_IMAGE_PROCESSES": 2})
    try:
        wait_until_ready(process, url, log)
        before = httpx.post(f"{url}/segment/unet", files={"image": cat}, timeout=20)
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [each for each in family if each.ppid() != process.pid]
        for each in workers:
            each.kill()
        answers = [httpx.post(f"{url}/segment/unet", files={"image": cat}, timeout=20) for _ in range(4)]
        broken = httpx.post(f"{url}/segment/unet", files={"image": cat[: len(cat) // 2]}, timeout=20)
    finally:
        process.kill()
        process.wait(timeout=60)
    assert len(workers) == 2
    assert {answer.content for answer in answers} == {before.content}
    assert broken.json()["type"] == "/problems/unsupported-image"
    assert "a process that works on photos ended: exit code" in log.read_text()


def test_a_start_that_cannot_be_says_so_in_one_line(tmp_path: Path) -> None:
    process, _ = start(tmp_path, tmp_path / "log.txt")
    assert process.wait(timeout=240) == 2
    assert (tmp_path / "log.txt").read_text() == (
        f"petseg: {tmp_path}: got no *.safetensors, wanted at least one; train one with petseg-train\n"
    )
