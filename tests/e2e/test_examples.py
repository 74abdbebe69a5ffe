"""The examples, run as they are against small models."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from service.app import create_app
from service.client import Client
from service.settings import Settings
from tests.e2e.browser import Recorder, serving
from tests.e2e.server import ROOT
from tests.fakes import ClickModel, ColourModel, encode, fake_checkpoint, picture, read

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server under the names of the shipped models, open to pages of any origin."""
    checkpoints = [fake_checkpoint(ColourModel, "timm_unet"), fake_checkpoint(ClickModel, "prompt")]
    settings = Settings(image_threads=2, cors_origins=("*",))
    with serving(Recorder(create_app(settings, checkpoints))) as url:
        yield url


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} - {"README.md"} == {"segment_photos.py", "fetch.html"}


def test_the_python_script(url: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, name in enumerate(("a.jpg", "b.jpg")):
        (photos / name).write_bytes(encode(picture(80, 60 + index), "JPEG"))
    (photos / "bad.jpg").write_bytes(b"no photo")
    command = [sys.executable, str(EXAMPLES / "segment_photos.py"), str(photos), str(tmp_path / "cutouts"), url]
    ended = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    lines = sorted(ended.stdout.splitlines())
    assert lines[0].startswith("a.jpg with 1 clicks: ")
    assert lines[1].startswith("a.jpg with 2 clicks: ")
    assert all(line.startswith(f"{name}: cat ") for name, line in zip(("a.jpg", "b.jpg"), lines[2:], strict=True))
    assert ended.stderr.startswith("bad.jpg: Unsupported image (415): ")
    with Client(url) as client:
        for name in ("a", "b"):
            cutout = read((tmp_path / "cutouts" / f"{name}.png").read_bytes())
            shown = (read(client.draw("timm_unet", photos / f"{name}.jpg")).point(bool)).getbbox()
            assert cutout.getchannel("A").getbbox() == shown


def test_the_browser_page(url: str, browser: Browser, tmp_path: Path) -> None:
    page_file = tmp_path / "fetch.html"
    page_file.write_text((EXAMPLES / "fetch.html").read_text().replace("http://127.0.0.1:8000", url))
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(page_file.as_uri())
        photo = {"name": "cat.png", "mimeType": "image/png", "buffer": encode(picture(80, 60))}
        page.get_by_label("A photo").set_input_files(photo)  # type: ignore[arg-type]
        expect(page.get_by_role("status")).to_have_text("Here it is.")
        assert page.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)") == 80
        page.get_by_label("A photo").set_input_files({**photo, "buffer": b"no photo"})  # type: ignore[arg-type]
        expect(page.get_by_role("status")).to_contain_text("got 8 bytes that do not decode")
