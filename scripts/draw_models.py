"""Draw docs/chelsea.jpg: one photo and what each shipped model makes of it, asked through the real app."""

import asyncio
import io
from pathlib import Path

import httpx
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from service.app import create_app
from service.settings import Settings

OUT = Path(__file__).parents[1] / "docs" / "chelsea.jpg"
MARGIN_PX = 6
REQUESTS: list[tuple[str, str, dict[str, str]]] = [
    ("timm_unet", "timm_unet", {"output": "overlay"}),
    ("clip, its own prompt", "clip", {"output": "overlay"}),
    ("prompt, one click", "prompt", {"output": "overlay", "x": "220", "y": "150"}),
    ("unet", "unet", {"output": "overlay"}),
    ("autoencoder", "autoencoder", {"output": "overlay"}),
]


async def ask(photo: bytes) -> list[tuple[str, Image.Image]]:
    """Each request's caption and the overlay that came back."""
    app = create_app(Settings())
    drawn = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://petseg") as client,
    ):
        for caption, model, fields in REQUESTS:
            answer = await client.post(f"/segment/{model}", files={"image": photo}, data=fields)
            answer.raise_for_status()
            drawn.append((caption, Image.open(io.BytesIO(answer.content)).convert("RGB")))
    return drawn


def main() -> None:
    """Two rows of three cells."""
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    cat.save(buffer, "JPEG", quality=95)
    cells = [("photo", cat), *asyncio.run(ask(buffer.getvalue()))]
    font = ImageFont.load_default(size=20)
    caption_px = 30
    width, height = cat.width + MARGIN_PX, cat.height + caption_px + MARGIN_PX
    sheet = Image.new("RGB", (3 * width + MARGIN_PX, 2 * height + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, image) in enumerate(cells):
        left, top = MARGIN_PX + index % 3 * width, MARGIN_PX + index // 3 * height
        draw.text((left + 2, top + 2), caption, fill="black", font=font)
        sheet.paste(image, (left, top + caption_px))
    OUT.parent.mkdir(exist_ok=True)
    sheet.save(OUT, quality=88)


if __name__ == "__main__":
    main()
