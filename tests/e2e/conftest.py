"""The page's server, a Chromium, and a visit to the page. Chromium's own loop must end before other folders' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from models.checkpoint import load_checkpoint
from service.app import create_app
from service.settings import Settings
from tests.e2e.browser import Recorder, Visit, chromium, serving
from tests.fakes import BrokenModel, ClickModel, ColourModel, TextModel, encode, fake_checkpoint, picture


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def server(browser: Browser, checkpoint_folder: Path) -> Iterator[tuple[str, Recorder]]:
    fakes = [
        fake_checkpoint(ColourModel, "colour"),
        fake_checkpoint(ClickModel, "click"),
        fake_checkpoint(TextModel, "text"),
        fake_checkpoint(BrokenModel, "broken"),
    ]
    unet = load_checkpoint(checkpoint_folder / "unet.safetensors")
    recorder = Recorder(create_app(Settings(image_threads=2, engine="torch"), [unet, *fakes]))
    with serving(recorder) as url:
        yield url, recorder


@pytest.fixture
def recorder(server: tuple[str, Recorder]) -> Recorder:
    """The server's, with an empty memory."""
    _, recorder = server
    recorder.posts.clear()
    for predictor in recorder.app.state.predictors:
        predictor.cache.clear()
    return recorder


@pytest.fixture
def context(browser: Browser, recorder: Recorder) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab that must not meet an error of its own, a breach of its policy included."""
    page = context.new_page()
    page.set_default_timeout(10_000)
    met: list[str] = []
    page.on("pageerror", lambda error: met.append(str(error)))
    page.on("console", lambda line: met.append(line.text) if line.type == "error" else None)
    yield page
    # The browser itself reports each refused request; what the page makes of it is the tests' matter.
    assert [line for line in met if not line.startswith("Failed to load resource")] == []


@pytest.fixture
def visit(page: Page, server: tuple[str, Recorder]) -> Visit:
    return Visit(page, server[0])


@pytest.fixture
def photo() -> bytes:
    return encode(picture(300, 200))
