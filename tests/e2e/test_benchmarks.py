"""A smoke run of every benchmark: each command runs, leaves its results, and the page takes them up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.photos import write_photos
from models.folders import CHECKPOINT_FOLDER
from service.hub import can_have_fronts
from tests.e2e.server import GRAPH_FOLDER

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT_FOLDER / "prompt.safetensors").is_file(), reason="the shipped checkpoints are not in this tree"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_photos(folder / "photos", count=8, wanted_bytes=30_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(GRAPH_FOLDER.parent))
        yield folder


def run(out: Path, command: str, *words: str, file: str | None = None) -> dict[str, Any]:
    """The results of a smoke run, which bear the command's name unless told."""
    done = CliRunner().invoke(app, [command, "--smoke", "--out", str(out), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((out / f"{file or command}.json").read_text())
    assert found["machine"]["torch"]
    return found


def test_raw_and_edges(out: Path) -> None:
    results = run(out, "raw")["results"]
    assert {each["task"] for each in results} == {"forward", "pipeline"}
    assert all(each["rate"] > 0 for each in results)
    ways = run(out, "edges")["rows"]
    assert {each["step"] for each in ways} >= {"decode and letterbox", "logits to mask", "mask to PNG", "mask to RLE"}


def test_serve(out: Path) -> None:
    rows = run(out, "serve")["rows"]
    assert {row["output"] for row in rows} == {"png", "rle", "overlay", "cutout", "probability"}
    assert {row["body"] for row in rows} == {"raw", "multipart"}
    assert all(row["errors"] == 0 and row["peak_pss_mb"] > 0 for row in rows)


def test_gpu(out: Path) -> None:
    found = run(out, "gpu")
    assert {each["task"] for each in found["raw"]} == {"device", "forward", "pipeline"}
    (row,) = found["rows"]
    assert row["rate"] > 0
    assert row["errors"] == 0
    assert row["batch"] >= 1
    assert row["stage_ms"]["decode"] > 0
    assert 0 < row["loop"] < row["cores"]


@pytest.mark.skipif(not can_have_fronts(), reason="this system forks no processes that share memory")
def test_hub(out: Path) -> None:
    rows = run(out, "hub")["rows"]
    assert [row["model"] for row in rows] == ["clip"]
    assert all(row["rate"] > 0 and 0 < row["loop_ms"] <= row["hub_ms"] for row in rows)


def test_scenarios(out: Path) -> None:
    found = run(out, "scenarios")["scenarios"]
    assert found["start"]["seconds"] > 0
    assert found["clicks"]["kept_ms"] > 0
    assert found["bad_photo"] == {"good": 14, "good_lost": 0, "bad": 2, "bad_taken": 0}
    assert found["health"]["asked"] > 0
    assert found["overload"]["is_alive"] == 1
    assert found["overload"]["without_retry_after"] == 0


def test_peers_and_the_page(out: Path, tmp_path: Path) -> None:
    """FastAPI takes part everywhere; the others where their environment is made."""
    words = ["--model", "autoencoder", "--only", "petseg-fp32,fastapi,litserve"]
    words += ["--no-install", "--peers-folder", str(tmp_path / "none")]
    found = run(out, "peers", *words, file="peers-autoencoder")
    turns = {turn["contestant"]: turn for turn in found["turns"]}
    assert set(turns) == {"petseg-fp32", "fastapi"}
    assert {row["model"] for turn in turns.values() for row in turn["rows"]} == {"autoencoder"}
    assert "utoencoder" in found["model"]
    assert "litserve did not take part: litserve is not installed." in found["absent"]
    assert "`ray` was left out of this run." in found["absent"]
    assert all(turn["same_pixels"] > 0.99 for turn in turns.values())
    page = tmp_path / "benchmarks.md"
    done = CliRunner().invoke(app, ["page", "--out", str(out), "--page", str(page)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "`fastapi`" in page.read_text()


@pytest.mark.parametrize("model", ["clip", "nothing"])
def test_peers_take_no_prompts(out: Path, model: str) -> None:
    with pytest.raises(ValueError, match=f"got model {model}, wanted study or a shipped one that takes no prompt"):
        CliRunner().invoke(app, ["peers", "--smoke", "--out", str(out), "--model", model], catch_exceptions=False)


def test_an_unknown_contestant_is_told(out: Path) -> None:
    with pytest.raises(ValueError, match="got --only nobody, wanted some of petseg"):
        CliRunner().invoke(
            app, ["peers", "--smoke", "--out", str(out), "--only", "nobody", "--no-install"], catch_exceptions=False
        )
