"""Every photo of a folder through a running server: cutouts on disk, a line for each photo, then two clicks on one.

    petseg serve &
    python examples/segment_photos.py photos/ cutouts/

Needs the package (`pip install -e .`) but neither torch nor a GPU: the work is the server's.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np

from service.client import AsyncClient, Client, ClientError, Output


async def cut_out(photos: list[Path], folder: Path, url: str) -> None:
    """Write a cutout of each photo, eight at a time, and say what is in it."""
    gate = asyncio.Semaphore(8)

    async def one(client: AsyncClient, photo: Path) -> None:
        async with gate:
            try:
                answer = await client.segment("timm_unet", photo)
                (folder / f"{photo.stem}.png").write_bytes(await client.draw("timm_unet", photo, Output.CUTOUT))
            except ClientError as error:  # one that cannot be read stops no other
                print(f"{photo.name}: {error}", file=sys.stderr)
                return
        pixels = answer.image.width * answer.image.height
        shares = ", ".join(f"{segment.label} {segment.area / pixels:.0%}" for segment in answer.segments)
        print(f"{photo.name}: {shares or 'no animal'}")

    async with AsyncClient(url) as client:
        await asyncio.gather(*(one(client, photo) for photo in photos))


def click(photo: Path, url: str) -> None:
    """Point at the middle of a photo, then take its upper left corner away; the second time nothing is uploaded."""
    with Client(url) as client:
        answer = client.segment("prompt", photo, points=[(0, 0, 1)])
        x, y = answer.image.width / 2, answer.image.height / 2
        for points in ([(x, y)], [(x, y, 1), (x / 8, y / 8, 0)]):
            mask = client.mask("prompt", image_id=answer.image.id, points=points)  # [H, W] uint8: 1 is the animal
            print(f"{photo.name} with {len(points)} clicks: {np.count_nonzero(mask)} of {mask.size} pixels")


def main(source: str, target: str, url: str = "http://127.0.0.1:8000") -> None:
    """Cut out the JPEG files of the folder `source` into `target`."""
    photos = sorted(Path(source).glob("*.jpg"))
    if not photos:
        sys.exit(f"{source}: got no *.jpg there")
    Path(target).mkdir(parents=True, exist_ok=True)
    asyncio.run(cut_out(photos, Path(target), url))
    click(photos[0], url)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
