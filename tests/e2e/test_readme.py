"""The lines of the README and of docs/ that ask the service, run as written against the shipped checkpoints."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from models.folders import CHECKPOINT_FOLDER
from service.schemas import GeoJson
from tests.e2e.documents import blocks
from tests.e2e.server import GRAPH_FOLDER, ROOT, start, stop, wait_until_ready

SERVER = "http://127.0.0.1:8000"
LINES = [
    line
    for block in blocks("sh")
    if not block.not_run
    for line in block.commands()
    if SERVER in line or line.startswith(("petseg segment", "petseg models"))
]
SCRIPTS = [block.text for block in blocks("python") if SERVER in block.text]
NEEDED = ("curl", "jq", "xargs")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("readme") / "log.txt"
    process, url = start(CHECKPOINT_FOLDER, log, {"PETSEG_ENGINE": "auto", "PETSEG_PRECISION": "auto"})
    try:
        wait_until_ready(process, url, log)
        yield url
    finally:
        assert stop(process) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader would be: a photo, a folder of two, a file that is none, and `petseg` on the path."""
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    (tmp_path / "here" / "photos").mkdir(parents=True)
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        cat.save(tmp_path / "here" / name, quality=92)
    (tmp_path / "here" / "notes.txt").write_text("no photo")
    command = tmp_path / "bin" / "petseg"
    command.parent.mkdir()
    variables = f"PYTHONPATH={shlex.quote(str(ROOT))} PETSEG_ENGINE_CACHE={shlex.quote(str(GRAPH_FOLDER))}"
    command.write_text(f'#!/bin/sh\n{variables} exec {sys.executable} -m service "$@"\n')
    command.chmod(0o755)
    return tmp_path / "here"


def run(line: str, url: str, folder: Path) -> tuple[str, list[Path]]:
    """What a line prints, and which files it writes."""
    before = set(folder.rglob("*"))
    path = f'PATH={shlex.quote(str(folder.parent / "bin"))}:"$PATH"'
    ended = subprocess.run(
        f"{path}; {line.replace(SERVER, url)}", shell=True, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, sorted(path for path in set(folder.rglob("*")) - before if path.is_file())


def check(file: Path) -> None:
    """That `file` says what its name promises."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            assert image.size == (451, 300)
            assert np.asarray(image).any()
    elif file.name == "annotations.json":
        assert len(json.loads(file.read_text())["annotations"]) >= 2
    elif file.name == "problem.json":
        assert json.loads(file.read_text())["type"] == "/problems/unknown-model"
    elif file.suffix == ".json":
        assert json.loads(file.read_text())["segments"]
    elif file.suffix == ".geojson":
        assert GeoJson.model_validate_json(file.read_text()).features
    elif file.name == "labels.txt":
        assert all(0 <= float(share) <= 1 for share in file.read_text().split()[1:20])
    elif file.suffix == ".csv":
        assert {row["label"] for row in csv.DictReader(file.read_text().splitlines())} == {"cat", "dog"}
    elif file.name == "answers.ndjson":
        assert len([json.loads(answer)["segments"] for answer in file.read_text().splitlines()]) == 2
    elif file.suffix == ".ndjson":
        assert len(file.read_text().splitlines()) == 3
    else:
        assert len(zipfile.ZipFile(file).namelist()) == 2


def test_every_model_is_shown() -> None:
    shown = set(re.findall(r"/segment/(\w+)", "\n".join(LINES)))
    assert shown >= {path.stem for path in CHECKPOINT_FOLDER.glob("*.safetensors")}


@pytest.mark.parametrize("line", LINES)
def test_line(line: str, url: str, folder: Path) -> None:
    for tool in NEEDED:
        if re.search(rf"\b{tool}\b", line) and shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    printed, written = run(line, url, folder)
    for file in written:
        check(file)
    if "xargs" in line:
        assert [file.name for file in written] == ["a.jpg.png", "b.jpg.png"]
    if "select(.problem)" in line:
        assert printed.startswith("notes.txt: got 8 bytes that do not decode")
    elif "jq -r '[" in line:
        assert [row[:2] for row in csv.reader(sorted(printed.splitlines()))] == [["a.jpg", "cat"], ["b.jpg", "cat"]]
    if line.startswith("petseg models"):
        assert all(path.stem in printed for path in CHECKPOINT_FOLDER.glob("*.safetensors"))
    elif "--json" in line:
        assert json.loads(printed)["segmented"] == 2
    assert written or printed


@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script: str, url: str, folder: Path) -> None:
    (folder / "script.py").write_text(script.replace(SERVER, url) + "\nassert mask.shape == (300, 451)\n")
    run(f"PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} script.py", url, folder)
