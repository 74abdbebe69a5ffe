"""Write the sample photos of the web page, service/web/samples/: scikit-image's cat, and our own drawing pets.svg.

Needs Chromium, which draws the SVG's fur. `python scripts/draw_samples.py`
"""

import io
import shutil
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
OUT = HERE.parent / "service" / "web" / "samples"
SCALE = 1.5


def draw(svg: str) -> Image.Image:
    """The drawing as Chromium shows it, at `SCALE` times its own size."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 640, "height": 440}, device_scale_factor=SCALE)
        page.set_content(f"<style>body {{ margin: 0 }} svg {{ display: block }}</style>{svg}")
        shot = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def main() -> None:
    """Both samples."""
    OUT.mkdir(exist_ok=True)
    Image.fromarray(skimage.data.chelsea()).save(OUT / "chelsea.jpg", quality=88)  # type: ignore[no-untyped-call]
    draw((HERE / "pets.svg").read_text(encoding="utf-8")).save(OUT / "pets.jpg", quality=85)


if __name__ == "__main__":
    main()
