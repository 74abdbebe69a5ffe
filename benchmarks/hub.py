"""How many photos a second pass through the hub, the process behind fronts, whatever the network takes.

No GPU is needed: the engine only waits. HTTP and decoding are left out, so one CPU for the hub and one for whoever asks
are enough.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.hub_server import CALLERS, MODEL, SECONDS, SPEED
from benchmarks.processes import ROOT, plain_environment
from models.folders import CHECKPOINT_FOLDER

_START_S = 120.0


@dataclass(frozen=True)
class HubRow:
    """One model behind an engine of one speed."""

    model: str
    speed: float
    """Photos a second that each of the engine's two streams can do."""
    callers: int
    rate: float
    """Photos a second."""
    p50_ms: float
    hub_ms: float
    """CPU milliseconds of the hub for each photo."""
    loop_ms: float
    """Of its event loop's thread alone."""


def measure_hub(model: str, speed: float, callers: int, seconds: float) -> HubRow:
    """Ask the hub about `model` for so long. Raises RuntimeError with the end of its log."""
    environment = plain_environment() | {
        "PETSEG_CHECKPOINTS": str(CHECKPOINT_FOLDER),
        "PETSEG_FRONTS": "1",
        "PETSEG_STREAMS": "2",
        "PETSEG_QUEUE_SIZE": str(2 * callers),
        "PETSEG_LOG_LEVEL": "warning",
        MODEL: model,
        CALLERS: str(callers),
        SECONDS: str(seconds),
        SPEED: str(speed),
    }
    words = [sys.executable, "-m", "benchmarks.hub_server"]
    done = subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=_START_S + 10 * seconds
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(rows) != 1:
        raise RuntimeError(f"the hub ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return HubRow(model, speed, callers, **json.loads(rows[0]))
