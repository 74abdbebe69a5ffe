"""The service with models of the tests and small limits, as a process: python -m tests.fuzz.server PORT."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.app import create_app
from service.cli import bind_port, run_server
from service.settings import Settings
from tests.fakes import ClickModel, ColourModel, FakeModel, TextModel, fake_checkpoint
from tests.fuzz.corpus import MAX_PIXELS

DEADLINE_S = 30.0
MODELS: dict[str, type[FakeModel]] = {"colour": ColourModel, "click": ClickModel, "text": TextModel}
START_DEADLINE_S = 600


def fuzz_settings(port: int = 0) -> Settings:
    """Limits low enough for a corpus of small files to pass them."""
    return Settings(
        port=port,
        image_threads=2,
        max_pixels=MAX_PIXELS,
        max_body_bytes=4 << 20,
        max_batch_body_bytes=8 << 20,
        max_batch_images=8,
        deadline_s=DEADLINE_S,
        max_queue_s=DEADLINE_S,
        cache_bytes=8 << 20,
    )


@contextmanager
def serve(log: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server that is ready; ended when the block is left."""
    port = _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PETSEG_")}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.fuzz.server", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield url, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    ends_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {START_DEADLINE_S} s:\n{log.read_text()}")


if __name__ == "__main__":
    settings = fuzz_settings(int(sys.argv[1]))
    app = create_app(settings, [fake_checkpoint(kind, name) for name, kind in MODELS.items()])
    run_server(app, settings, bind_port(settings))
