"""A real server process for the end-to-end tests: started on a free port, awaited, ended by its own handle."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
GRAPH_FOLDER = ROOT / ".pytest_cache" / "graphs"
"""Networks converted for OpenVINO, kept from one run of the tests to the next."""
START_DEADLINE_S = 240


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    checkpoint_folder: Path, log: Path, settings: Mapping[str, object] | None = None
) -> tuple["subprocess.Popen[bytes]", str]:
    """A server on a free port, and its address; `settings` are variables such as PETSEG_DEADLINE_S.

    Serves the plain networks unless told otherwise.
    """
    port = free_port()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PETSEG_")}
    given = {name: str(value) for name, value in (settings or {}).items()}
    own = {
        "PETSEG_CHECKPOINTS": str(checkpoint_folder),
        "PETSEG_PORT": str(port),
        "PETSEG_ENGINE": "torch",
        "PETSEG_PRECISION": "fp32",
        "PETSEG_ENGINE_CACHE": str(GRAPH_FOLDER),
    }
    environment = outside | own | given
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
        return process.wait(timeout=60)
    finally:
        process.kill()
