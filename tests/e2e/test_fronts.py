"""Fronts before one hub: together they are one service, and where one dies the others go on."""

import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from models.checkpoint import Checkpoint
from models.folders import CHECKPOINT_FOLDER
from models.letterbox import Letterbox, decode_image, image_tensor
from service.hub import can_have_fronts
from tests.e2e.server import start, stop, wait_until_ready
from tests.fakes import encode, picture, read

pytestmark = pytest.mark.skipif(not can_have_fronts(), reason="this system forks no processes that share memory")

FRONTS = 2
PNG = {"content-type": "image/png"}
CLICK = {"x": "20", "y": "15"}
FRONT = re.compile(r"multiprocessing\.forkserver")


class Running:
    """A server behind fronts."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @property
    def fronts(self) -> set[int]:
        """Process ids: children of the fork server, which is a child of the hub."""
        (fork_server,) = (
            child for child in psutil.Process(self.process.pid).children() if FRONT.search(" ".join(child.cmdline()))
        )
        return {child.pid for child in fork_server.children()}

    def ask(self, photo: bytes, path: str = "/segment/unet") -> httpx.Response:
        """One request on a connection of its own, which any front may take."""
        return httpx.post(f"{self.url}{path}", content=photo, headers=PNG, timeout=30)

    def click(self, **fields: str) -> httpx.Response:
        """A click on a photo that was sent before."""
        return httpx.post(f"{self.url}/segment/prompt", data=fields | CLICK, timeout=30)

    def figure(self, name: str) -> float:
        """A series' value."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        (value,) = (line.rsplit(" ", 1)[1] for line in text.splitlines() if line.rsplit(" ", 1)[0] == name)
        return float(value)


def until(is_true: Callable[[], bool], what: str) -> None:
    ends_at = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < ends_at, f"waited 60 s until {what}"
        time.sleep(0.05)


def hang_on(url: str, path: str, photo: bytes) -> socket.socket:
    """A connection on which a photo was sent and whose answer nobody reads."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    connection.sendall(head.encode() + photo)
    return connection


@pytest.fixture(scope="module")
def folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network without prompts, and the shipped one that takes clicks and keeps photos."""
    folder = tmp_path_factory.mktemp("fronts") / "checkpoints"
    shutil.copytree(checkpoint_folder, folder)
    shutil.copy(CHECKPOINT_FOLDER / "prompt.safetensors", folder)
    return folder


def run(folder: Path, log: Path, **settings: object) -> Iterator[Running]:
    process, url = start(folder, log, {"PETSEG_FRONTS": FRONTS} | settings)
    try:
        wait_until_ready(process, url, log)
        yield Running(process, url, log)
    finally:
        process.kill()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from run(folder, tmp_path_factory.mktemp("fronts") / "log.txt")


def test_every_photo_gets_its_own_mask_by_whichever_front(server: Running, unet: Checkpoint) -> None:
    sizes = [(60 + 3 * number, 40 + 2 * number) for number in range(24)]
    photos = [encode(picture(*size, seed=number)) for number, size in enumerate(sizes)]
    before = server.figure('petseg_photos_total{model="unet",outcome="ok"}')
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.ask, photos))
    for answer, data in zip(answers, photos, strict=True):
        photo, size = decode_image(data)
        letterbox = Letterbox(size, 32)
        logits = unet.model(image_tensor(letterbox.apply_image(photo))[None], {})[0].detach()
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        mask = np.asarray(read(answer.content))
        assert mask.shape == size
        assert (mask == letterbox.restore_mask(logits)).mean() > 0.999
    until(
        lambda: server.figure('petseg_photos_total{model="unet",outcome="ok"}') == before + len(photos),
        "all fronts have told what they counted",
    )
    until(lambda: server.figure('petseg_photos_in_flight{model="unet"}') == 0, "nothing is in flight")


def test_a_photo_that_one_front_took_is_held_for_all(server: Running) -> None:
    first = httpx.post(f"{server.url}/segment/prompt", files={"image": encode(picture())}, data=CLICK, timeout=30)
    assert first.status_code == 200, first.text
    image_id = first.headers["x-image-id"]
    hits = server.figure('petseg_cache_lookups_total{model="prompt",result="hit"}')
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda _: server.click(image_id=image_id), range(12)))
    assert [answer.status_code for answer in again] == [200] * 12
    assert {answer.content for answer in again} == {first.content}
    assert server.figure('petseg_cache_lookups_total{model="prompt",result="hit"}') == hits + 12
    gone = server.click(image_id="sha256:" + "0" * 64)
    assert (gone.status_code, gone.json()["type"]) == (410, "/problems/image-gone")


def test_connections_are_shared_out_evenly(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    held = dict.fromkeys(server.fronts, 0)

    def count() -> bool:
        for pid in held:
            held[pid] = sum(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(pid).net_connections())
        return sum(held.values()) >= 40

    idle = [socket.create_connection((host, int(port)), timeout=30) for _ in range(40)]
    try:
        until(count, "all are accepted")
        assert min(held.values()) >= 14, held
    finally:
        for connection in idle:
            connection.close()


def test_bad_photos_and_prompts_are_refused_as_ever(server: Running) -> None:
    bad = server.ask(b"no photo")
    assert (bad.status_code, bad.json()["type"]) == (415, "/problems/unsupported-image")
    outside = httpx.post(
        f"{server.url}/segment/prompt", files={"image": encode(picture())}, data={"x": "999", "y": "1"}, timeout=30
    )
    assert (outside.status_code, outside.json()["type"]) == (422, "/problems/invalid-request")
    assert server.ask(encode(picture()), "/segment/prompt").json()["type"] == "/problems/prompt-mismatch"
    assert server.ask(encode(picture()), "/segment/nobody").json()["type"] == "/problems/unknown-model"
    no_id = httpx.post(f"{server.url}/segment/unet", data={"image_id": "sha256:" + "0" * 64}, timeout=30)
    assert no_id.json()["type"] == "/problems/image-id-not-kept"


def test_a_batch_and_the_models_are_answered_too(server: Running) -> None:
    files = [("image", (f"{number}.png", encode(picture(seed=number)), "image/png")) for number in range(5)]
    batch = httpx.post(f"{server.url}/segment/unet/batch", files=[*files, ("image", ("bad", b"no"))], timeout=60)
    lines = batch.text.splitlines()
    assert (batch.status_code, len(lines)) == (200, 6)
    assert sum('"segments"' in line for line in lines) == 5
    models = httpx.get(f"{server.url}/models", timeout=30).json()["models"]
    assert [(each["name"], each["engine"]) for each in models] == [("prompt", "torch fp32"), ("unet", "torch fp32")]
    assert httpx.get(f"{server.url}/healthz", timeout=30).json() == {"status": "ok"}


def test_who_hangs_up_leaves_the_hubs_queue(server: Running) -> None:
    photos = [encode(picture(200, 150, seed=number), "JPEG") for number in range(48)]
    ran, cancelled = 'petseg_batch_size_sum{model="prompt"}', 'petseg_photos_total{model="prompt",outcome="cancelled"}'
    before = server.figure(ran)
    callers = [hang_on(server.url, "/segment/prompt?x=20&y=15", photo) for photo in photos]
    until(lambda: server.figure('petseg_photos_queued{model="prompt"}') >= 20, "photos wait in the hub")
    for caller in callers:
        caller.close()
    until(lambda: server.figure('petseg_photos_in_flight{model="prompt"}') == 0, "nothing is in flight")
    assert server.figure('petseg_photos_queued{model="prompt"}') == 0
    assert server.figure(ran) - before <= 48 - 15
    assert server.figure(cancelled) >= 15
    assert server.ask(encode(picture())).status_code == 200


def test_a_front_that_dies_is_replaced_and_the_others_go_on(server: Running) -> None:
    before = server.fronts
    assert len(before) == FRONTS
    victim = min(before)
    psutil.Process(victim).kill()
    photo = encode(picture())
    assert {server.ask(photo).status_code for _ in range(20)} == {200}
    until(lambda: len(server.fronts) == FRONTS and victim not in server.fronts, "another front has started")
    assert f"ended with exit code {-signal.SIGKILL}" in server.log.read_text()
    assert {server.ask(photo).status_code for _ in range(20)} == {200}


def test_it_stops_with_all_its_fronts(server: Running) -> None:
    fronts = server.fronts
    assert stop(server.process) == 0
    until(lambda: not any(psutil.pid_exists(pid) for pid in fronts), "the fronts are gone")
    with pytest.raises(httpx.ConnectError):
        server.ask(encode(picture()))


def test_quotas_hold_over_all_fronts_which_end_with_their_hub(checkpoint_folder: Path, tmp_path: Path) -> None:
    settings = {"PETSEG_REQUESTS_PER_MINUTE": 5, "PETSEG_OPERATION_PORT": 0}
    for server in run(checkpoint_folder, tmp_path / "log.txt", **settings):
        answers = [server.ask(encode(picture())) for _ in range(9)]
        assert Counter(answer.status_code for answer in answers) == {200: 5, 429: 4}
        remaining = [re.findall(r"r=(\d+)", answer.headers["ratelimit"]) for answer in answers[:5]]
        assert remaining == [["4"], ["3"], ["2"], ["1"], ["0"]]
        fronts = server.fronts
        server.process.kill()
        until(lambda: not any(psutil.pid_exists(pid) for pid in fronts), "the fronts are gone")  # noqa: B023
        assert "the process that runs the networks is gone" in server.log.read_text()
