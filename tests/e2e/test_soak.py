"""The soak as a whole, small: a real server, every kind of request, restarts and kills under load, the results page."""

from pathlib import Path

import pytest

from models.checkpoint import CHECKPOINT_FOLDER
from tests.soak.__main__ import main

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


def test_a_small_soak_passes_and_writes_its_page(checkpoint_folder: Path, tmp_path: Path) -> None:
    served, page = tmp_path / "served", tmp_path / "soak.md"
    served.mkdir()
    (served / "unet.safetensors").symlink_to(checkpoint_folder / "unet.safetensors")
    (served / "prompt.safetensors").symlink_to(CHECKPOINT_FOLDER / "prompt.safetensors")
    main(requests=60, clients=4, seed=7, photos=3, restarts=1, kills=1, checkpoints=served, engine="torch", page=page)
    text = page.read_text()
    assert "**passed**" in text
    assert "63 requests" in text  # 60, and three photos that are uploaded first
    assert "--seed 7" in text
    assert "| unet " in text and "| prompt " in text and "| bad: " in text
    assert "1 processes replaced with SIGTERM: 0 requests lost" in text
