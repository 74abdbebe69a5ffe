"""One loaded model: `prepare` a request on any thread, `predict` a batch of prepared ones on the device thread."""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import default_collate

from models.base import Features, PromptMismatchError, describe_kind
from models.checkpoint import Checkpoint
from models.engine import Engine
from models.image_files import ImageTooLargeError, UnsupportedImageError
from models.letterbox import Letterbox, planes_tensor
from models.prompts import PointPrompt, Prompt, PromptTensors
from models.stopping import check_stop, unstoppable
from service.embedding_cache import EmbeddingCache
from service.errors import (
    ImageGone,
    ImageIdNotKept,
    ImageTooLarge,
    InvalidRequest,
    PromptMismatch,
    UnsupportedImage,
    pointer,
)
from service.image_processes import ImageWork, InThread
from service.image_work import PhotoLimits, read_planes


@dataclass(frozen=True)
class KeptImage:
    """What the cache holds of one photo: enough for any later click and any output."""

    features: Features
    """One row, each [1, C_i, H_i, W_i], on the device."""
    original_size: tuple[int, int]
    upload: bytes

    @property
    def size_bytes(self) -> int:
        """Memory that it keeps alive."""
        return sum(level.numel() * level.element_size() for level in self.features) + len(self.upload)


@dataclass(frozen=True)
class Prepared:
    """One request, ready for the device thread."""

    digest: str
    """sha256 of the upload, hexadecimal."""
    upload: bytes
    letterbox: Letterbox
    prompt: PromptTensors
    image: Tensor | None
    """[3, S, S], float32 in [0, 1] for a CPU, uint8 for a GPU, where it is scaled; None where `kept` has the features
    already."""
    kept: KeptImage | None
    decode_s: float


@dataclass(frozen=True)
class Prediction:
    """One request's scores."""

    logits: Tensor
    """[K, S, S] float32 on the CPU."""
    chosen_prompt: str | None
    """The text the model prompted itself with; None where the caller's prompt was used, or none is taken."""
    encode_s: float
    """Seconds that the batch's `encode` took; 0 where all features were there."""
    decode_s: float


class Predictor:
    """A checkpoint and the engine that runs it.

    cache: features of earlier photos; shared by the models whose encoders have the same digest. One of 0 bytes serves
    models that need none: the code path is the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        cache: EmbeddingCache[KeptImage],
        *,
        limits: PhotoLimits | None = None,
        work: ImageWork | None = None,
    ) -> None:
        """work: where photos are decoded and answers drawn; in the calling thread unless told."""
        self.checkpoint = checkpoint
        self.engine = engine
        self.cache = cache
        self.limits = limits or PhotoLimits()
        self.work = work or InThread()
        self.model = checkpoint.model
        self.encoder_digest = engine.encoder_digest or checkpoint.digest
        self.image_size = self.model.config.image_size
        self.class_names = self.model.config.class_names

    @property
    def keeps_images(self) -> bool:
        """Whether an image id may stand in for a photo."""
        return self.cache.max_bytes > 0

    def prepare(self, upload: bytes | None, image_id: str | None, prompt: Prompt) -> Prepared:
        """Decode and letterbox the upload, or take up what the cache holds of it; turn the prompt into tensors.

        image_id: sha256 of an earlier upload, used where `upload` is None. Raises the Problem that fits.
        """
        started_at = time.perf_counter()
        if upload is None and not self.keeps_images:
            raise ImageIdNotKept(
                f"got an image_id, but {self.checkpoint.name} keeps no features; send the image itself"
            )
        digest = hashlib.sha256(upload).hexdigest() if upload is not None else str(image_id)
        kept = self.cache.get((self.encoder_digest, digest))
        image: Tensor | None = None
        if kept is not None:
            upload, letterbox = kept.upload, Letterbox(kept.original_size, self.image_size)
        elif upload is None:
            raise ImageGone(f"got image_id sha256:{digest}, which is not held (any more); send the image itself again")
        else:
            image, letterbox = self._read_image(upload)
        check_points(prompt, letterbox.original_size)
        tensors = self._prompt_tensors(prompt, letterbox)
        return Prepared(digest, upload, letterbox, tensors, image, kept, time.perf_counter() - started_at)

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise PromptMismatch for a prompt that the model does not take, whatever the photo."""
        self._prompt_tensors(prompt, Letterbox((self.image_size, self.image_size), self.image_size))

    def predict(self, batch: list[Prepared]) -> list[Prediction]:
        """Logits of each prepared request, in order: one `encode` for the distinct new photos, one `decode` for all.

        Raises StoppedError where nobody waits for them any more.
        """
        with torch.inference_mode():
            started_at = time.perf_counter()
            features, has_encoded = self._features(batch)
            encoded_at = time.perf_counter()
            check_stop()
            prompt: PromptTensors = default_collate([prepared.prompt for prepared in batch])
            logits = self.engine.decode(features, prompt)
            chosen = self.model.chosen_prompts(features, prompt)
            decode_s = time.perf_counter() - encoded_at
        encode_s = encoded_at - started_at if has_encoded else 0.0
        return [Prediction(row, text, encode_s, decode_s) for row, text in zip(logits, chosen, strict=True)]

    def _read_image(self, upload: bytes) -> tuple[Tensor, Letterbox]:
        try:
            planes, original_size = self.work.call(read_planes, upload, self.limits, self.image_size)
        except ImageTooLargeError as error:
            raise ImageTooLarge(str(error)) from error
        except UnsupportedImageError as error:
            raise UnsupportedImage(str(error)) from error
        is_gpu = self.engine.device.type == "cuda"
        image = torch.from_numpy(planes) if is_gpu else planes_tensor(planes)
        return image, Letterbox(original_size, self.image_size)

    def _prompt_tensors(self, prompt: Prompt, letterbox: Letterbox) -> PromptTensors:
        try:
            return self.model.prompt_tensors(prompt, letterbox)
        except PromptMismatchError as error:
            name, kind = self.checkpoint.name, describe_kind(self.model.prompt_kind)
            raise PromptMismatch(f"{error}; send {name} {kind}, or choose another model from /models") from error

    def _features(self, batch: list[Prepared]) -> tuple[Features, bool]:
        """One row of features per prepared request, and whether `encode` ran.

        A photo that another batch is encoding is waited for, not encoded again.
        """
        rows = {prepared.digest: prepared.kept.features for prepared in batch if prepared.kept is not None}
        new: dict[str, Prepared] = {}
        elsewhere: dict[str, Future[KeptImage | None]] = {}
        for prepared in batch:
            if prepared.digest in rows or prepared.digest in new or prepared.digest in elsewhere:
                continue
            found = self._find(prepared.digest)
            if isinstance(found, KeptImage):
                rows[prepared.digest] = found.features
            elif found is not None:
                elsewhere[prepared.digest] = found
            else:
                new[prepared.digest] = prepared
        if new:
            features = self._encode_new(new)
            if len(new) == len(batch):
                return features, True
            rows |= split_rows(new, features)
        has_encoded = bool(new)
        # Only now, with all own claims settled: two batches that wait for each other's photos would wait for ever.
        for digest, future in elsewhere.items():
            made = future.result()
            if made is None:  # its batch failed; here it may fit
                left = {digest: next(prepared for prepared in batch if prepared.digest == digest)}
                rows |= split_rows(left, self._encode_new(left))
                has_encoded = True
            else:
                rows[digest] = made.features
        chosen = [rows[prepared.digest] for prepared in batch]
        return tuple(torch.cat(level) for level in zip(*chosen, strict=True)), has_encoded

    def _find(self, digest: str) -> "KeptImage | Future[KeptImage | None] | None":
        """The photo's features, or a future of them; None makes them this batch's to encode."""
        return self.cache.get_or_claim((self.encoder_digest, digest)) if self.keeps_images else None

    def _encode_new(self, new: dict[str, Prepared]) -> Features:
        """Features of photos that nobody has encoded, in order; the cache is told of each, also where it fails."""
        try:
            images = collate_images(new.values(), self.engine.device.type == "cuda")
            # Who gave up on a photo is likely to ask about it again: features that can be kept are worth their end.
            with unstoppable() if self.keeps_images else nullcontext():
                features = self.engine.encode(images)
            self._keep(new, features)
        except BaseException:
            for digest in new:
                self.cache.release((self.encoder_digest, digest))
            raise
        return features

    def _keep(self, new: dict[str, Prepared], features: Features) -> None:
        """Hand each new photo's features to the cache."""
        if self.keeps_images:
            for digest, row in split_rows(new, features).items():
                own, prepared = tuple(level.clone() for level in row), new[digest]
                kept = KeptImage(own, prepared.letterbox.original_size, prepared.upload)
                self.cache.put((self.encoder_digest, digest), kept, kept.size_bytes)


def split_rows(digests: Iterable[str], features: Features) -> dict[str, Features]:
    """Each photo's own row of a batch's features, [1, C_i, H_i, W_i], by digest."""
    return {digest: tuple(level[row : row + 1] for level in features) for row, digest in enumerate(digests)}


def collate_images(batch: Iterable[Prepared], is_pinned: bool) -> Tensor:
    """The photos of `batch` as [B, 3, S, S] on the CPU, for a GPU in pinned memory.

    From there the copy to the GPU runs beside the CPU's work: one stream collates while another's batch is computed.
    """
    images = [prepared.image for prepared in batch if prepared.image is not None]
    pinned = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=True) if is_pinned else None
    return torch.stack(images, out=pinned)


def check_points(prompt: Prompt, original_size: tuple[int, int]) -> None:
    """Raise InvalidRequest for clicks outside the photo of `original_size` (height, width)."""
    if not isinstance(prompt, PointPrompt):
        return
    height, width = original_size
    errors = [
        {
            "pointer": pointer("points", index),
            "detail": f"got ({x:g}, {y:g}), wanted 0 <= x < {width}, 0 <= y < {height}",
        }
        for index, (x, y) in enumerate(prompt.points)
        if not (0 <= x < width and 0 <= y < height)
    ]
    if errors:
        raise InvalidRequest(
            f"got a click outside the image, wanted pixels of the upright {width} x {height} image; "
            "x runs to the right and y down from the top left corner",
            errors=errors,
        )


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; `cuda` without a GPU is a ValueError."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("got cuda, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")
