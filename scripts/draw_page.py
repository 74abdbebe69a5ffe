"""Draw docs/page*.png: the web page of a running server with its own samples, as Chromium shows it.

`petseg serve`, then `python scripts/draw_page.py http://127.0.0.1:8000/`
"""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
READY_MS = 60_000
FADE_MS = 500
"""Longer than any transition of the page."""


def take(page: Page, sample: str, model: str) -> None:
    """Choose a sample, then a model, and wait for what it finds."""
    page.get_by_role("button", name=sample).click()
    expect(page.locator("#workspace")).to_be_visible()
    page.get_by_text(model, exact=True).click()
    settle(page)


def settle(page: Page) -> None:
    """Wait until nothing is asked any more."""
    expect(page.locator("[aria-busy]")).to_have_count(0, timeout=READY_MS)


def click(page: Page, x: float, y: float) -> None:
    """Click on the photo, x and y as shares of its sides."""
    box = page.locator("#canvas .picture").bounding_box()
    assert box is not None
    page.locator("#canvas .picture").click(position={"x": x * box["width"], "y": y * box["height"]})
    settle(page)


def click_the_dog(page: Page) -> None:
    """The click model, on the drawn sample."""
    take(page, "A dog and a cat", "prompt")
    click(page, 0.3, 0.7)


def compare(page: Page) -> None:
    """All models, on the cat."""
    take(page, "Chelsea", "prompt")
    click(page, 0.5, 0.5)
    page.get_by_text("Compare all", exact=True).click()
    settle(page)


def cut_out(page: Page) -> None:
    """What is left of the cat's photo."""
    take(page, "Chelsea", "timm_unet")
    page.get_by_text("Cutout", exact=True).click()


def draw(
    browser: Browser,
    url: str,
    name: str,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
    visit: Callable[[Page], None],
) -> None:
    """One picture: the page after `visit`, in 256 colours."""
    with browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("[name=model]").first).to_be_attached(timeout=READY_MS)
        visit(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(FADE_MS)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def main() -> None:
    """A desk by day, a desk at night, a phone."""
    (url,) = sys.argv[1:] or ["http://127.0.0.1:8000/"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        draw(browser, url, "page.png", (1200, 760), "light", click_the_dog)
        draw(browser, url, "page-compare.png", (1440, 720), "dark", compare)
        draw(browser, url, "page-phone.png", (390, 760), "light", cut_out)
        browser.close()


if __name__ == "__main__":
    main()
