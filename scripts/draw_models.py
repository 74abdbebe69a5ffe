"""Draw docs/chelsea.jpg and docs/prompts.jpg: what each shipped model makes of a photo, asked through the real app."""

import asyncio
import io
from pathlib import Path

import httpx
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from service.app import create_app
from service.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
MARGIN_PX = 6
Asked = tuple[str, str, dict[str, str]]
"""Caption, model, fields."""
SHEETS: dict[str, list[Asked]] = {
    "chelsea.jpg": [
        ("timm_unet", "timm_unet", {}),
        ("clip, its own prompt", "clip", {}),
        ("prompt, one click", "prompt", {"x": "220", "y": "150"}),
        ("unet", "unet", {}),
        ("autoencoder", "autoencoder", {}),
    ],
    "prompts.jpg": [
        ('clip, "a photo of a cat"', "clip", {"text": "a photo of a cat"}),
        ('clip, "a photo of a dog"', "clip", {"text": "a photo of a dog"}),
        ("prompt, one click on the forehead", "prompt", {"x": "135", "y": "45"}),
        ("prompt, and one on the cloth: not this", "prompt", {"points": "[[135, 45, 1], [365, 285, 0]]"}),
        ("prompt, only a click on the cloth", "prompt", {"x": "435", "y": "285"}),
    ],
}


async def ask(photo: bytes, requests: list[Asked]) -> list[tuple[str, Image.Image]]:
    """Each request's caption and the overlay that came back."""
    app = create_app(Settings())
    drawn = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://petseg") as client,
    ):
        for caption, model, fields in requests:
            answer = await client.post(
                f"/segment/{model}", files={"image": photo}, data={"output": "overlay", **fields}
            )
            answer.raise_for_status()
            drawn.append((caption, Image.open(io.BytesIO(answer.content)).convert("RGB")))
    return drawn


def main() -> None:
    """Each sheet in two rows of three cells, the first of them the photo."""
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    cat.save(buffer, "JPEG", quality=95)
    for name, requests in SHEETS.items():
        draw_sheet([("photo", cat), *asyncio.run(ask(buffer.getvalue(), requests))], DOCS / name)


def draw_sheet(cells: list[tuple[str, Image.Image]], out: Path) -> None:
    """Captioned pictures of one size, three to a row."""
    font = ImageFont.load_default(size=20)
    caption_px = 30
    first = cells[0][1]
    width, height = first.width + MARGIN_PX, first.height + caption_px + MARGIN_PX
    sheet = Image.new("RGB", (3 * width + MARGIN_PX, 2 * height + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, image) in enumerate(cells):
        left, top = MARGIN_PX + index % 3 * width, MARGIN_PX + index // 3 * height
        draw.text((left + 2, top + 2), caption, fill="black", font=font)
        sheet.paste(image, (left, top + caption_px))
    sheet.save(out, quality=88)


if __name__ == "__main__":
    main()
