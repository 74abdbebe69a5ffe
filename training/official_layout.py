"""The Oxford-IIIT Pet data set in its official layout: lists, photos, trimaps (Parkhi et al., CVPR 2012).

    <root>/images/<name>.jpg
    <root>/annotations/trimaps/<name>.png                  1 pet, 2 background, 3 boundary
    <root>/annotations/{list,trainval,test}.txt            "<name> <class> <species 1 cat, 2 dog> <breed in species>"

Read by `preparation.py` (raw -> prepared squares) and by evaluation at the photos' own size.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.image_files import FORMATS, ImageError
from models.letterbox import Array, decode_image

OfficialList = Literal["list", "trainval", "test"]

BACKGROUND, CAT, DOG, IGNORE = 0, 1, 2, 255
"""Values of a label map."""

_TRIMAP_PET, _TRIMAP_BACKGROUND, _TRIMAP_BOUNDARY = 1, 2, 3
_EXIF_ORIENTATION = 0x0112


class ExampleError(ValueError):
    """One photo or its trimap cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class PetRecord:
    """One line of an official list."""

    name: str
    """File name without its ending, for example "american_bulldog_10"."""
    breed: str
    """The name without its number: "american_bulldog"; cat breeds begin with a capital letter."""
    species: int
    """1 cat, 2 dog."""


def read_records(root: Path, split: OfficialList) -> tuple[PetRecord, ...]:
    """The photos of one official list, in its order. Lines that begin with # are comments."""
    if split not in get_args(OfficialList):
        raise ValueError(f"got list {split!r}, wanted one of {', '.join(get_args(OfficialList))}")
    path = root / "annotations" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the folder that holds images/ and annotations/")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return tuple(_record(path, fields) for fields in lines)


def _record(path: Path, fields: list[str]) -> PetRecord:
    breed, _, number = fields[0].rpartition("_")
    if len(fields) != 4 or not breed or not number.isdigit() or fields[2] not in ("1", "2"):
        raise ValueError(f'{path}: got the line "{" ".join(fields)}", wanted "<breed>_<number> <class> <1|2> <breed>"')
    return PetRecord(fields[0], breed, int(fields[2]))


def image_path(root: Path, name: str) -> Path:
    """Where the photo `name` lies; the ending says nothing about the format inside."""
    return root / "images" / f"{name}.jpg"


def trimap_path(root: Path, name: str) -> Path:
    """Where the trimap of the photo `name` lies."""
    return root / "annotations" / "trimaps" / f"{name}.png"


def records_fingerprint(root: Path, records: Iterable[PetRecord]) -> str:
    """sha256 over names and bytes of the records' photos and trimaps: the identity of what was measured.

    A missing file counts as an empty one.
    """
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda each: each.name):
        digest.update(record.name.encode())
        for path in (image_path(root, record.name), trimap_path(root, record.name)):
            digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()


def label_map(trimap: Array, species: int) -> Array:
    """Trimap [H, W] uint8 {1 pet, 2 background, 3 boundary} -> label map [H, W] {0 background, 1 cat, 2 dog, 255}.

    Raises ExampleError for values other than these three, and where no pixel is pet.
    """
    values = set(np.unique(trimap).tolist())
    if unknown := values - {_TRIMAP_PET, _TRIMAP_BACKGROUND, _TRIMAP_BOUNDARY}:
        raise ExampleError(f"got trimap values {sorted(unknown)}, wanted 1 pet, 2 background, 3 boundary")
    if _TRIMAP_PET not in values:
        raise ExampleError("the trimap is empty: no pixel is pet")
    labels = np.array([BACKGROUND, species, BACKGROUND, IGNORE], np.uint8)
    return labels[trimap]


@dataclass(frozen=True)
class PetPhoto:
    """One photo with its ground truth, at its own size."""

    image: Image.Image
    """Upright, RGB."""
    label_map: Array
    """[H, W] uint8 {0 background, 1 cat, 2 dog, 255 boundary}, of the photo's height and width."""
    stored_format: str
    """What the photo's bytes are: "JPEG", or another format under a .jpg name."""


def read_photo(root: Path, record: PetRecord) -> PetPhoto:
    """Photo and label map of `record`, both upright.

    Raises ExampleError where a file is missing or damaged, the sizes differ, or the trimap is empty or odd.
    """
    data = _read_bytes(image_path(root, record.name))
    try:
        image, _ = decode_image(data)
    except ImageError as error:
        raise ExampleError(f"corrupt photo: {error}") from error
    # The header decoded a moment ago, so reading it again cannot fail.
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        stored_format = header.format or "unknown"
        stored_size, orientation = header.size, header.getexif().get(_EXIF_ORIENTATION, 1)
    trimap = _read_trimap(trimap_path(root, record.name))
    if trimap.size == stored_size and orientation != 1:
        # Trimaps were drawn on the stored pixels: turn them upright together with the photo.
        trimap.getexif()[_EXIF_ORIENTATION] = orientation
        trimap = ImageOps.exif_transpose(trimap)
    if trimap.size != image.size:
        raise ExampleError(
            f"size mismatch: photo {image.width} x {image.height}, trimap {trimap.width} x {trimap.height} pixels"
        )
    return PetPhoto(image, label_map(np.asarray(trimap), record.species), stored_format)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ExampleError(f"missing file {path.name}") from None
    except OSError as error:
        raise ExampleError(f"unreadable file {path.name}: {error.strerror}") from error


def _read_trimap(path: Path) -> Image.Image:
    try:
        trimap = Image.open(io.BytesIO(_read_bytes(path)))
        trimap.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ExampleError):
            raise
        raise ExampleError(f"corrupt trimap {path.name}: {error}") from error
    if trimap.mode not in ("L", "P"):
        raise ExampleError(f"trimap {path.name} is of mode {trimap.mode}, wanted one 8-bit channel of class values")
    return trimap


def download(root: Path) -> Path:
    """The official data set under `root` by torchvision's downloader; returns the folder in the official layout.

    About 800 MB once; archives are verified against torchvision's checksums. What is there already is kept.
    """
    from torchvision.datasets import OxfordIIITPet  # imported where needed: a local copy needs no downloader

    OxfordIIITPet(root, split="trainval", target_types="segmentation", download=True)
    return root / "oxford-iiit-pet"
