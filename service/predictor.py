"""One loaded model: `prepare` a request on any thread, `predict` a batch of rows on the device thread."""

import hashlib
import time
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import default_collate

from models.base import Features
from models.checkpoint import Checkpoint
from models.engine import Engine
from models.letterbox import Array, Letterbox, planes_tensor
from models.prompts import Prompt, PromptTensors
from models.stopping import check_stop, unstoppable
from service.embedding_cache import EmbeddingCache
from service.feature_rows import FeatureRow, join_features, split_features
from service.image_processes import ImageWork, InThread
from service.image_work import PhotoLimits
from service.model_facts import ModelFacts
from service.photo_reading import check_points, image_gone, image_not_kept, read_upload


@dataclass(frozen=True)
class KeptPhoto:
    """A photo that the cache holds: enough to encode it again."""

    upload: bytes
    original_size: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        """Memory that it keeps alive."""
        return len(self.upload)

    def without_features(self) -> "KeptPhoto":
        """The photo alone."""
        return KeptPhoto(self.upload, self.original_size)


@dataclass(frozen=True)
class KeptImage(KeptPhoto):
    """One with its features: enough for any later click and any output."""

    features: FeatureRow
    """On the device."""

    @property
    def size_bytes(self) -> int:
        """Memory that it keeps alive."""
        return self.features.size_bytes + super().size_bytes


@dataclass(frozen=True)
class Prepared:
    """One photo that was read and checked: what drawing its answer needs."""

    digest: str
    """sha256 of the upload, hexadecimal."""
    upload: bytes
    letterbox: Letterbox

    @property
    def was_held(self) -> bool | None:
        """Whether its features were there already; None where that is not known yet."""
        return None


@dataclass(frozen=True)
class Row(Prepared):
    """One photo as a row of a batch, ready for the device thread."""

    prompt: PromptTensors
    image: Tensor | None
    """[3, S, S], float32 in [0, 1] for a CPU, uint8 for a GPU, where it is scaled; None where `kept` has the features
    already."""
    kept: KeptImage | None

    @property
    def was_held(self) -> bool:
        """Whether its features were there already."""
        return self.kept is not None


@dataclass(frozen=True)
class Prediction:
    """One request's scores."""

    logits: Tensor
    """[K, s, s] float32 on the CPU, as `Engine.decode_native` gives them."""
    chosen_prompt: str | None
    """The text the model prompted itself with; None where the caller's prompt was used, or none is taken."""
    encode_s: float
    """Seconds that the batch's `encode` took; 0 where all features were there."""


class Predictor:
    """A checkpoint and the engine that runs it.

    cache: features of earlier photos; shared by the models whose encoders have the same digest. One of 0 bytes serves
    models that need none: the code path is the same.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        cache: EmbeddingCache[KeptPhoto],
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
        self.facts = ModelFacts(
            name=checkpoint.name,
            card=checkpoint.card,
            checkpoint=checkpoint.digest,
            prompt_kind=self.model.prompt_kind,
            prompt_required=self.model.prompt_required,
            class_names=self.class_names,
            image_size=self.image_size,
            engine=engine.name,
            keeps_images=self.keeps_images,
        )

    @property
    def keeps_images(self) -> bool:
        """Whether an image id may stand in for a photo."""
        return self.cache.max_bytes > 0

    def prepare(self, upload: bytes | None, image_id: str | None, prompt: Prompt) -> Row:
        """Decode and letterbox the upload, or take up what the cache holds of it; turn the prompt into tensors.

        image_id: sha256 of an earlier upload, used where `upload` is None; where its features are another encoder's,
        or of one that is served no more, it is decoded again. Raises the Problem that fits.
        """
        if upload is None and not self.keeps_images:
            raise image_not_kept(self.facts.name)
        found: KeptPhoto | None
        if upload is None:
            digest = str(image_id)
            found = self.find_photo(digest)
            upload = found.upload
        else:
            digest = hashlib.sha256(upload).hexdigest()
            found = self.find(digest)
        kept = found if isinstance(found, KeptImage) else None
        planes: Array | None = None
        if kept is not None:
            upload, original_size = kept.upload, kept.original_size
        else:
            planes, original_size = read_upload(self.work, upload, self.limits, self.image_size)
        check_points(prompt, original_size)
        return self._row(digest, upload, original_size, prompt, planes, kept)

    def find(self, digest: str) -> KeptImage | None:
        """The photo with its features."""
        kept = self.cache.get((self.encoder_digest, digest))
        return kept if isinstance(kept, KeptImage) else None

    def find_photo(self, digest: str) -> KeptPhoto:
        """The photo, a KeptImage where the features that this encoder made of it are held. Raises ImageGone."""
        own = self.find(digest)
        if own is not None:
            return own
        other = self.cache.find_any(digest)
        if other is None:
            raise image_gone(digest)
        return other.without_features()

    def retire(self) -> None:
        """Let go of the features that its encoder made, and hold their photos: no model reads them any more."""

        def reduce(kept: KeptPhoto) -> tuple[KeptPhoto, int]:
            photo = kept.without_features()
            return photo, photo.size_bytes

        self.cache.retire(self.encoder_digest, reduce)

    def take_up(
        self, digest: str, upload: bytes, original_size: tuple[int, int], prompt: Prompt, planes: Array | None
    ) -> Row:
        """As `prepare`, for a photo that was read and checked elsewhere.

        planes: [3, S, S] uint8 in memory that stays as it is, or None for one that was found here. Raises ImageGone
        where it is not held any more, and PromptMismatch.
        """
        kept = self.find(digest)
        if kept is None and planes is None:
            raise image_gone(digest)
        return self._row(digest, upload, original_size, prompt, planes if kept is None else None, kept)

    def predict(self, batch: list[Row]) -> list[Prediction]:
        """Logits of each prepared request, in order: one `encode` for the distinct new photos, one `decode` for all.

        Raises StoppedError where nobody waits for them any more.
        """
        with torch.inference_mode():
            started_at = time.perf_counter()
            features, has_encoded = self._features(batch)
            encoded_at = time.perf_counter()
            check_stop()
            prompt: PromptTensors = default_collate([row.prompt for row in batch])
            logits = self.engine.decode_native(features, prompt)
            chosen = self.model.chosen_prompts(features, prompt)
        encode_s = encoded_at - started_at if has_encoded else 0.0
        return [Prediction(row, text, encode_s) for row, text in zip(logits, chosen, strict=True)]

    def _row(
        self,
        digest: str,
        upload: bytes,
        original_size: tuple[int, int],
        prompt: Prompt,
        planes: Array | None,
        kept: KeptImage | None,
    ) -> Row:
        letterbox = Letterbox(original_size, self.image_size)
        self.facts.check_prompt(prompt)
        tensors = self.model.prompt_tensors(prompt, letterbox)
        image: Tensor | None = None
        if planes is not None:
            image = torch.from_numpy(planes) if self.engine.device.type == "cuda" else planes_tensor(planes)
        return Row(digest, upload, letterbox, tensors, image, kept)

    def _features(self, batch: list[Row]) -> tuple[Features, bool]:
        """One row of features per prepared request, and whether `encode` ran.

        A photo that another batch is encoding is waited for, not encoded again.
        """
        rows = {row.digest: row.kept.features for row in batch if row.kept is not None}
        new: dict[str, Row] = {}
        elsewhere: dict[str, Future[KeptPhoto | None]] = {}
        for row in batch:
            if row.digest in rows or row.digest in new or row.digest in elsewhere:
                continue
            found = self._find_or_claim(row.digest)
            if isinstance(found, KeptImage):
                rows[row.digest] = found.features
            elif isinstance(found, Future):
                elsewhere[row.digest] = found
            else:
                new[row.digest] = row
        if new:
            features, own = self._encode_new(new)
            if len(new) == len(batch):
                return features, True
            rows |= dict(zip(new, own or split_features(features), strict=True))
        has_encoded = bool(new)
        # Only now, with all own claims settled: two batches that wait for each other's photos would wait for ever.
        for digest, future in elsewhere.items():
            made = future.result()
            if not isinstance(made, KeptImage):  # its batch failed; here it may fit
                left = {digest: next(row for row in batch if row.digest == digest)}
                (rows[digest],) = self._encode_new(left)[1]
                has_encoded = True
            else:
                rows[digest] = made.features
        return join_features([rows[row.digest] for row in batch]), has_encoded

    def _find_or_claim(self, digest: str) -> "KeptPhoto | Future[KeptPhoto | None] | None":
        """The photo's features, or a future of them; None makes them this batch's to encode."""
        return self.cache.get_or_claim((self.encoder_digest, digest)) if self.keeps_images else None

    def _encode_new(self, new: dict[str, Row]) -> tuple[Features, list[FeatureRow]]:
        """Features of photos that nobody has encoded, in order; the cache is told of each, also where it fails.

        Returns them as a batch, and as the rows that were handed to the cache: none where nothing is kept.
        """
        try:
            images = [row.image for row in new.values() if row.image is not None]
            # Who gave up on a photo is likely to ask about it again: features that can be kept are worth their end.
            with unstoppable() if self.keeps_images else nullcontext():
                features = self.engine.encode(images)
            return features, self._keep(new, features)
        except BaseException:
            for digest in new:
                self.cache.release((self.encoder_digest, digest))
            raise

    def _keep(self, new: dict[str, Row], features: Features) -> list[FeatureRow]:
        """Hand each new photo's features to the cache."""
        if not self.keeps_images:
            return []
        own = split_features(features)
        for row, (digest, prepared) in zip(own, new.items(), strict=True):
            kept = KeptImage(prepared.upload, prepared.letterbox.original_size, row)
            self.cache.put((self.encoder_digest, digest), kept, kept.size_bytes)
        return own


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; `cuda` without a GPU is a ValueError."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("got cuda, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")
