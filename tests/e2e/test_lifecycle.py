"""A real server process through its life: checkpoints reloaded by a signal, then stopped with a request under way."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.hub import can_have_fronts
from tests.e2e.server import start, wait_until_ready
from tests.fakes import encode, picture

needs_fronts = pytest.mark.skipif(not can_have_fronts(), reason="this system forks no processes that share memory")

PNG = {"content-type": "image/png"}


def until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < ends_at, "waited 30 s"
        time.sleep(0.05)


@pytest.mark.parametrize("fronts", [0, pytest.param(2, marks=needs_fronts)])
def test_reload_by_signal_then_stop_without_losing_a_request(
    checkpoint_folder: Path, tmp_path: Path, fronts: int
) -> None:
    folder, log, photo = tmp_path / "checkpoints", tmp_path / "log.txt", encode(picture())
    shutil.copytree(checkpoint_folder, folder)
    process, url = start(folder, log, {"PETSEG_LOG_FORMAT": "json", "PETSEG_FRONTS": fronts})
    goes_on = threading.Event()

    def figures() -> str:
        return httpx.get(f"{url}/metrics", timeout=10).text

    def slow_body() -> Iterator[bytes]:
        yield photo[:100]
        assert goes_on.wait(30)
        yield photo[100:]

    try:
        wait_until_ready(process, url, log)
        shutil.copy(folder / "unet.safetensors", folder / "second.safetensors")
        (folder / "broken.safetensors").write_bytes(b"no checkpoint")
        process.send_signal(signal.SIGHUP)
        until(lambda: 'petseg_reloads_total{model="second",result="loaded"} 1.0' in figures())
        assert 'petseg_reloads_total{model="broken",result="failed"} 1.0' in figures()
        assert httpx.post(f"{url}/segment/second", content=photo, headers=PNG, timeout=20).status_code == 200

        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(httpx.post, f"{url}/segment/unet", content=slow_body(), headers=PNG, timeout=60)
            until(lambda: "petseg_requests_in_flight 2.0" in figures())  # the upload, and this question itself
            process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{url}/readyz", timeout=10).status_code == 503)
            refused = httpx.post(f"{url}/segment/unet", content=photo, headers=PNG, timeout=20)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert process.poll() is None
            goes_on.set()
            assert accepted.result().status_code == 200
        assert process.wait(timeout=60) == 0
    finally:
        goes_on.set()
        process.kill()
        process.wait(timeout=60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(line["message"].startswith(f"petseg on {url}") for line in lines)
    statuses = [line["status"] for line in lines if line.get("route") == "/segment/{model}"]
    assert statuses == [200, 503, 200]
    (broken,) = [line for line in lines if line["level"] == "error"]
    assert "broken.safetensors" in broken["message"]
