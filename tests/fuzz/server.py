"""The service with models of the tests and small limits, as a process: python -m tests.fuzz.server PORT."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.app import create_app
from service.cli import bind_port, run_server
from service.settings import Settings
from tests.e2e.server import free_port, stop, wait_until_ready
from tests.fakes import ClickModel, ColourModel, FakeModel, TextModel, fake_checkpoint
from tests.fuzz.corpus import MAX_PIXELS

DEADLINE_S = 30.0
MODELS: dict[str, type[FakeModel]] = {"colour": ColourModel, "click": ClickModel, "text": TextModel}


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
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PETSEG_")}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.fuzz.server", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url, log)
        yield url, process.pid
    finally:
        stop(process)


if __name__ == "__main__":
    settings = fuzz_settings(int(sys.argv[1]))
    app = create_app(settings, [fake_checkpoint(kind, name) for name, kind in MODELS.items()])
    run_server(app, settings, bind_port(settings))
