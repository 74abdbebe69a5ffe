"""`petseg segment` and `petseg models` as a shell sees them: what is printed, and the exit code."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from models.checkpoint import Checkpoint
from service import photo_cli
from service.app import create_app
from service.client import AsyncClient, Retries
from service.settings import Settings
from tests.fakes import encode, picture

ROOT = Path(__file__).parents[2]
Shell = Callable[..., Result]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: list[Checkpoint]) -> Shell:
    """Runs a command in a folder with photos, against the app of small models."""

    @asynccontextmanager
    async def connect(server: str | None, api_key: str | None, model: str | None = None) -> AsyncIterator[AsyncClient]:
        if server is not None:
            async with AsyncClient(server, retries=Retries(max_tries=1)) as client:
                yield client
            return
        app = create_app(Settings(image_threads=2), checkpoints)
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient("http://test", transport=transport) as client:
            yield client

    monkeypatch.setattr(photo_cli, "connect", connect)
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        (photos / name).write_bytes(encode(picture(60, 40)))
    return lambda *arguments: CliRunner().invoke(photo_cli.app, list(arguments))


def test_a_folder_is_one_line(shell: Shell) -> None:
    result = shell("segment", "photos", "--model", "colour")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("colour: 2 segmented in ")
    assert result.stdout.endswith(" s -> masks\n")
    assert result.stderr == ""
    assert sorted(path.name for path in Path("masks").glob("*.png")) == ["a.png", "b.png"]
    again = shell("segment", "photos", "--model", "colour", "--json")
    assert (json.loads(again.stdout)["segmented"], json.loads(again.stdout)["skipped"]) == (0, 2)


def test_a_bad_photo_is_a_line_and_exit_code_1(shell: Shell) -> None:
    Path("photos/c.jpg").write_bytes(b"no photo")
    result = shell("segment", "photos/*", "--model", "text", "--text", "a cat", "--output", "csv", "--out", "tables")
    assert result.exit_code == 1
    assert result.stderr.startswith("petseg: c.jpg: got 8 bytes that do not decode as ")
    assert result.stderr.endswith(" (/problems/unsupported-image)\n")
    assert ", 1 failed in " in result.stdout
    assert result.stdout.endswith(" -> tables, areas.csv\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "petseg: nowhere: got no photo there, "),
        (["photos", "--model", "nope"], "petseg: Unknown model (404): got model 'nope', "),
        (["photos", "--model", "colour", "--text", "a"], "petseg: Prompt does not fit the model (422): "),
        (["photos", "--point", "3"], "petseg: got --point 3, wanted x,y on the animal or x,y,0 beside it"),
        (["photos", "--point", "3,4,x"], "petseg: got --point 3,4,x, wanted x,y on the animal"),
        (
            ["photos", "--tolerance", "2"],
            "petseg: got --tolerance, which changes only coco-polygons, geojson, polygons",
        ),
        (["photos", "--output", "coco", "--output", "coco-polygons"], "petseg: got --output coco and coco-polygons"),
        (["photos", "--output", "gif"], "Usage: "),
    ],
)
def test_what_cannot_begin_is_a_line_and_exit_code_2(shell: Shell, arguments: list[str], said: str) -> None:
    result = shell("segment", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)
    assert result.stdout == ""


def test_no_server_is_exit_code_3(shell: Shell) -> None:
    result = shell("segment", "photos", "--server", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "got no answer in 1 tries" in result.stderr
    assert result.stderr.endswith("run the same command again to go on where it stopped\n")


def test_clicks_go_to_every_photo(shell: Shell) -> None:
    result = shell("segment", "photos", "--model", "click", "--point", "30,20", "--point", "5,5,0", "--output", "rle")
    assert result.exit_code == 0, result.output
    answer = json.loads(Path("masks/a.json").read_text())
    assert answer["prompt"]["points"] == [[30, 20, 1], [5, 5, 0]]


def test_models_as_a_table_and_as_json(shell: Shell) -> None:
    table = shell("models").stdout.splitlines()
    assert table[0].split() == ["model", "takes", "finds", "in", "one", "sentence"]
    assert [" ".join(line.split()) for line in table if line.startswith(("click", "text"))] == [
        "click clicks object The click of the tests.",
        "text text or nothing cat, dog The text of the tests.",
    ]
    assert [model["name"] for model in json.loads(shell("models", "--json").stdout)][:2] == ["unet", "colour"]


def test_photo_commands_bring_no_torch() -> None:
    code = "import sys, service.photo_cli, service.client; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def heed_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so do the tests and all they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_a_line_and_exit_code_130(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture(60, 40)))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        command = [sys.executable, "-m", "service", "segment", str(tmp_path), "--out", str(tmp_path / "masks")]
        process = subprocess.Popen(
            [*command, "--server", f"http://127.0.0.1:{silent.getsockname()[1]}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=heed_interrupts,
        )  # fmt: skip
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(60)
            assert connection.recv(4)  # interrupted while it waits for an answer, not while it connects
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=60)
    assert process.returncode == photo_cli.INTERRUPTED
    assert (printed, said) == ("", "petseg: interrupted; run the same command again to go on where it stopped\n")
