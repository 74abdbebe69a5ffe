"""The photos that the soak sends, and what each model makes of them, computed here before any server is asked.

Sizes are all different: an answer that was meant for another photo fails already by its shape.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image

from models.checkpoint import Checkpoint
from models.letterbox import Array, Letterbox, decode_image, image_tensor
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from training.synthetic import generate

_EXIF_ORIENTATION = 0x0112

FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("JPEG", {"quality": 92}),
    ("PNG", {}),
    ("WEBP", {"quality": 90}),
    ("JPEG", {"quality": 80, "progressive": True}),
    ("BMP", {}),
    ("TIFF", {}),
)
"""File kinds, one photo after the other."""


@dataclass(frozen=True)
class SoakPhoto:
    """One file, as it is uploaded and as its decoder sees it."""

    name: str
    data: bytes
    image: Image.Image
    """Upright RGB."""

    @property
    def image_id(self) -> str:
        """The id that the service gives it."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width


@dataclass(frozen=True)
class Reference:
    """What a model makes of a photo by a prompt."""

    mask: Array
    """[H, W] uint8."""
    probability: Array
    """[H, W] uint8, confidence that a pixel is no background."""
    class_names: tuple[str, ...]


def draw_photos(count: int) -> list[SoakPhoto]:
    """`count` photos: a real cat turned by EXIF and in pieces, then drawn cats and dogs; the same ones each time."""
    cat = Image.fromarray(skimage.data.chelsea())  # type: ignore[no-untyped-call]
    pictures = [cat, cat.crop((60, 10, 380, 290)), cat.resize((226, 151))]
    with TemporaryDirectory() as folder:
        drawn = generate(Path(folder) / "pets", count=max(8, count), image_size=192, seed=5)
        for path in sorted((drawn / "images").glob("*.jpg")):
            with Image.open(path) as file:
                pictures.append(file.convert("RGB"))
    photos: dict[tuple[int, int], SoakPhoto] = {}
    for index, picture in enumerate(pictures[:count]):
        kind, options = FILES[index % len(FILES)]
        # Ever narrower by a pixel or two, so that no two photos have one size.
        narrower = picture.crop((0, 0, picture.width - 2 * index, picture.height - index))
        data = _encode(narrower, kind, turn=index == 0, **options)
        image, size = decode_image(data)
        if size in photos:
            raise ValueError(f"got two photos of {size[1]} x {size[0]} pixels, wanted all different")
        photos[size] = SoakPhoto(f"{index}-{kind.lower()}", data, image)
    return list(photos.values())


def compute_reference(checkpoint: Checkpoint, photo: SoakPhoto, prompt: Prompt) -> Reference:
    """One forward pass of the plain network in float32, alone in its batch: nothing of the service takes part."""
    model = checkpoint.model
    image_size = model.config.image_size
    image, size = decode_image(photo.data, at_least=image_size)
    letterbox = Letterbox(size, image_size)
    tensors = {name: tensor[None] for name, tensor in model.prompt_tensors(prompt, letterbox).items()}
    with torch.inference_mode():
        logits = model(image_tensor(letterbox.apply_image(image))[None], tensors)[0]
    background = letterbox.restore_logits(logits).softmax(dim=0)[0]
    probability = (1 - background).mul(255).round().to(torch.uint8).numpy()
    return Reference(letterbox.restore_mask(logits), probability, model.config.class_names)


def prompts_for(kind: PromptKind, is_required: bool, size: tuple[int, int]) -> list[Prompt]:
    """Prompts to ask a model of `kind` about a photo of `size` (height, width)."""
    height, width = size
    centre, corner = (width * 0.5, height * 0.5), (width * 0.1, height * 0.1)
    prompts: dict[PromptKind, Sequence[Prompt]] = {
        PromptKind.NONE: [None],
        PromptKind.TEXT: [TextPrompt("a photo of a cat"), TextPrompt("a photo of a dog"), TextPrompt("a beagle")],
        PromptKind.POINTS: [
            PointPrompt((centre,), (1,)),
            PointPrompt((corner,), (1,)),
            PointPrompt((corner, centre), (1, 0)),
        ],
    }
    optional: list[Prompt] = [] if is_required or kind is PromptKind.NONE else [None]
    return [*prompts[kind], *optional]


def agreement(got: Array, wanted: Array) -> float:
    """Share of equal pixels, in [0, 1]; 0 where the shapes differ."""
    return float(np.mean(got == wanted)) if got.shape == wanted.shape else 0.0


def _encode(image: Image.Image, kind: str, *, turn: bool, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if turn:
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = 6  # shown turned by 90 degrees clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, kind, exif=exif, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()
