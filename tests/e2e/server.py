"""A real server process for the end-to-end tests: started on a free port, awaited, ended by its own handle."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
START_DEADLINE_S = 60


def start(checkpoint_folder: Path, log: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """A server on a free port, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PETSEG_")}
    environment = outside | {"PETSEG_CHECKPOINTS": str(checkpoint_folder), "PETSEG_PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    return process, f"http://127.0.0.1:{port}"


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    ends_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < ends_at:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"the server was not ready within {START_DEADLINE_S} s:\n{log.read_text()}")


def stop(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=20)
    finally:
        process.kill()
