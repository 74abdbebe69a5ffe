"""The soak as a whole, small: a real server, every kind of request, restarts and kills under load, the results page."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.folders import CHECKPOINT_FOLDER

OPTIONS = ["--requests=60", "--clients=4", "--seed=7", "--photos=3", "--restarts=1", "--kills=1", "--engine=torch"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


def test_a_small_soak_passes_and_writes_its_page(checkpoint_folder: Path, tmp_path: Path) -> None:
    served, page = tmp_path / "served", tmp_path / "soak.md"
    served.mkdir()
    (served / "unet.safetensors").symlink_to(checkpoint_folder / "unet.safetensors")
    (served / "prompt.safetensors").symlink_to(CHECKPOINT_FOLDER / "prompt.safetensors")
    command = [sys.executable, "-m", "tests.soak", *OPTIONS, "--checkpoints", str(served), "--page", str(page)]
    # A process of its own: the soak has its own event loop, and the browser of the page's tests keeps one in this one.
    soak = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    text = page.read_text()
    assert "**passed**" in text
    assert "63 requests" in text  # 60, and three photos that are uploaded first
    assert "--seed 7" in text
    assert "| unet " in text and "| prompt " in text and "| bad: " in text
    assert "1 processes replaced with SIGTERM: 0 requests lost" in text
