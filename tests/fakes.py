"""Small models with answers that a test can foretell, and pictures to ask them about."""

import asyncio
import io
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco
from starlette.types import ASGIApp
from torch import Tensor

from models.base import ArchitectureConfig, Features, SegmentationModel
from models.checkpoint import Checkpoint, ModelCard
from models.letterbox import Array, Letterbox
from models.prompts import Prompt, PromptKind, PromptTensors, TextPrompt

IMAGE_SIZE = 32
TOWER_DIGEST = "tower"


class FakeModel(SegmentationModel):
    """Counts its calls; the features are the pixels."""

    Config = ArchitectureConfig

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__(config)
        self.encoded_rows: list[int] = []
        self.decoded_rows: list[int] = []

    def encode(self, images: Tensor) -> Features:
        self.encoded_rows.append(images.shape[0])
        return (images.clone(),)

    def decode(self, features: Features, prompt: PromptTensors) -> Tensor:
        self.decoded_rows.append(features[0].shape[0])
        return self.score(features[0], prompt)

    @abstractmethod
    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        """Logits [B, K, S, S]."""


class ColourModel(FakeModel):
    """Image-only: red is a cat, blue is a dog, all else background."""

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        red, green, blue = images.unbind(dim=1)
        return 8 * torch.stack([green, red, blue], dim=1)


class ClickModel(FakeModel):
    """Needs clicks: the object is a disc of 5 pixels around each positive one, without those around negative ones."""

    prompt_kind = PromptKind.POINTS
    prompt_required = True

    def encoder_digest(self) -> str:
        return TOWER_DIGEST

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        grid = torch.arange(images.shape[-1], dtype=torch.float32)
        squared = (grid[None, :] - prompt["points"][..., 0, None, None]) ** 2 + (
            grid[:, None] - prompt["points"][..., 1, None, None]
        ) ** 2  # [B, N, S, S]
        discs = 5 - squared.sqrt()
        labels = prompt["point_labels"][..., None, None]
        positive = discs.masked_fill(labels != 1, -99).amax(dim=1)
        negative = discs.masked_fill(labels != 0, -99).amax(dim=1)
        objects = torch.minimum(positive, -negative) + 0.1 * images.mean(dim=1)
        return torch.stack([torch.zeros_like(objects), objects], dim=1)


class TextModel(ColourModel):
    """Keeps of ColourModel's animals those that the text names; without a text it takes cats."""

    prompt_kind = PromptKind.TEXT
    own_prompt = "a photo of a cat, naïve é€"

    def encoder_digest(self) -> str:
        return TOWER_DIGEST

    def prompt_tensors(self, prompt: Prompt, letterbox: Letterbox) -> PromptTensors:
        super().prompt_tensors(prompt, letterbox)
        text = prompt.text if isinstance(prompt, TextPrompt) else self.own_prompt
        named = [float(word in text) for word in ("cat", "dog")]
        return {"named": torch.tensor(named), "is_own": torch.tensor(prompt is None)}

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        logits = super().score(images, prompt)
        hidden = F.pad(1 - prompt["named"], (1, 0))[:, :, None, None]  # [B, 2] -> [B, 3, 1, 1]
        return logits - 99 * hidden

    def chosen_prompts(self, features: Features, prompt: PromptTensors) -> list[str | None]:
        return [self.own_prompt if is_own else None for is_own in prompt["is_own"].tolist()]


class BrokenModel(ColourModel):
    """Has a defect that speaks of secrets, once warm."""

    is_broken = False

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        if self.is_broken:
            raise RuntimeError("secret /etc/passwd")
        return super().score(images, prompt)


class StuckModel(ColourModel):
    """Answers only while `is_free` is set."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__(config)
        self.is_free = threading.Event()
        self.is_free.set()

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        assert self.is_free.wait(timeout=20)
        return super().score(images, prompt)


class HungryModel(StuckModel):
    """Has device memory for `fits` photos at once."""

    fits = 1000

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        logits = super().score(images, prompt)
        if images.shape[0] > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits


def fake_checkpoint(kind: type[FakeModel], name: str) -> Checkpoint:
    """`kind` as if loaded from <name>.safetensors."""
    class_names = ("background", "object") if kind is ClickModel else ("background", "cat", "dog")
    config = ArchitectureConfig(image_size=IMAGE_SIZE, class_names=class_names)
    card = ModelCard(architecture=name, config=config.model_dump(mode="json"), summary=f"The {name} of the tests.")
    return Checkpoint(name, kind(config).eval(), card, digest=name.encode().hex().ljust(64, "0"))


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Green ground, a red block in the left half, a blue one in the right; `seed` alters single pixels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 1] = 200
    top, bottom = height // 4, max(height // 4 + 1, 3 * height // 4)
    pixels[top:bottom, width // 8 : max(width // 8 + 1, 3 * width // 8)] = (230, 10, 10)
    pixels[top:bottom, 5 * width // 8 : max(5 * width // 8 + 1, 7 * width // 8)] = (10, 10, 230)
    pixels[0, 0, 2] = seed % 256
    pixels[0, -1, 2] = seed // 256
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """`image` as a file of `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> Image.Image:
    """A picture from an answer."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decode_rle(size: Sequence[int], counts: str | list[int]) -> Array:
    """COCO RLE of either form, as pycocotools decodes it: [H, W] uint8."""
    rle: Any = {"size": list(size), "counts": counts}
    decoded: Array = coco.decode(coco.frPyObjects(rle, *size) if isinstance(counts, list) else rle)
    return decoded


def fill_polygons(polygons: list[list[float]], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """COCO polygons -> mask [H, W], as pycocotools fills them."""
    height, width = shape
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    given: Any = polygons
    merged: Any = coco.merge(coco.frPyObjects(given, height, width))
    return decode_rle(merged["size"], merged["counts"]).astype(bool)


def asgi_scope(path: str, content_type: str) -> dict[str, Any]:
    """A POST as a server hands it over, for tests of what httpx's transport cannot do: hang up, or read as it comes."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", content_type.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }


def post_until(
    hang_up: asyncio.Event, app: ASGIApp, path: str, content_type: str, body: bytes
) -> tuple["asyncio.Future[None]", list[Any]]:
    """A client that sends `body` whole and closes its connection once `hang_up` is set; with what it is sent."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    return asyncio.ensure_future(app(asgi_scope(path, content_type), receive, send)), sent


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for what happens in another thread, a minute at most: the machine may be busy."""
    async with asyncio.timeout(60):
        while not is_true():  # noqa: ASYNC110 - what runs in the app's threads has no event to wait for
            await asyncio.sleep(0.005)
