"""The README's own curl lines, run as written against the shipped checkpoints."""

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from models.checkpoint import CHECKPOINT_FOLDER
from tests.e2e.server import ROOT, start, stop, wait_until_ready

LINES = re.findall(r"^curl .*$", (ROOT / "README.md").read_text(), re.MULTILINE)

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("readme") / "log.txt"
    process, url = start(CHECKPOINT_FOLDER, log, {"PETSEG_ENGINE": "auto", "PETSEG_PRECISION": "auto"})
    try:
        wait_until_ready(process, url, log)
        yield url
    finally:
        assert stop(process) == 0


def test_every_model_is_shown() -> None:
    shown = set(re.findall(r"/segment/(\w+)", "\n".join(LINES)))
    assert shown == {path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize("line", LINES)
def test_line(line: str, url: str, tmp_path: Path) -> None:
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    cat.save(tmp_path / "photo.jpg", quality=92)
    command = line.replace("http://127.0.0.1:8000", url)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=60)
    written = next(path for path in tmp_path.iterdir() if path.name != "photo.jpg")
    if written.suffix == ".png":
        with Image.open(written) as image:
            assert image.size == cat.size
            assert np.asarray(image).any()
    elif written.suffix == ".json":
        assert json.loads(written.read_text())["segments"]
    elif written.suffix == ".ndjson":
        assert len([json.loads(answer)["segments"] for answer in written.read_text().splitlines()]) == 2
    else:
        assert len(zipfile.ZipFile(written).namelist()) == 2
