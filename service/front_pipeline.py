"""A front's way through a model of the hub: reads the photo and draws the answer here, has the network run there."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch

from models.letterbox import Array, Letterbox
from models.prompts import Prompt
from service.batcher import Batched
from service.front_messages import FoundPhoto, PhotoAnswer, PhotoAsk, Scores, ServedModel
from service.image_processes import ImageWork
from service.image_threads import ImageThreads
from service.link import Link, LinkClosedError
from service.metrics import ModelMetrics
from service.photo_reading import check_points, image_not_kept, read_upload
from service.photo_slots import PhotoSlots
from service.pipeline import Pipeline, not_ready
from service.predictor import Prediction, Prepared
from service.settings import Settings


@dataclass(frozen=True)
class ReadPhoto(Prepared):
    """A photo ready to be handed on."""

    prompt: Prompt
    planes: Array | None
    """[3, S, S]; None for one that the hub holds."""


class FrontPipeline(Pipeline):
    """One model of the hub."""

    def __init__(
        self,
        model: ServedModel,
        work: ImageWork,
        pool: ImageThreads,
        settings: Settings,
        metrics: ModelMetrics,
        link: Link,
        slots: PhotoSlots,
    ) -> None:
        super().__init__(model.facts, work, pool, settings, metrics)
        self.key = model.key
        self._photos_together = model.photos_together
        self._link = link
        self._slots = slots
        self._retry_after_s = 1

    @property
    def photos_together(self) -> int:
        """Photos that one of the hub's streams computes together at most."""
        return self._photos_together

    def prepare(self, upload: bytes | None, image_id: str | None, prompt: Prompt) -> ReadPhoto:
        """Decode and letterbox a photo, or ask the hub for the one that it holds.

        An upload is decoded also where the hub may hold it: asking first would make every new photo wait for an answer.
        """
        planes: Array | None = None
        if upload is not None:
            digest = hashlib.sha256(upload).hexdigest()
            planes, original_size = read_upload(self.work, upload, self.limits, self.facts.image_size)
        else:
            if not self.facts.keeps_images:
                raise image_not_kept(self.name)
            digest = str(image_id)
            found: FoundPhoto = self._link.ask("find", self.key, digest, patience_s=self.settings.deadline_s)
            upload, original_size = found.upload, found.original_size
            if not found.has_features:
                planes, _ = read_upload(self.work, upload, self.limits, self.facts.image_size)
        check_points(prompt, original_size)
        self.facts.check_prompt(prompt)
        return ReadPhoto(digest, upload, Letterbox(original_size, self.facts.image_size), prompt, planes)

    async def submit(self, prepared: Prepared, deadline: float, waits: bool) -> Batched[Prediction]:
        """The hub's prediction for a photo that `prepare` gave."""
        assert isinstance(prepared, ReadPhoto)
        planes, upload = prepared.planes, prepared.upload if self.facts.keeps_images else b""
        slot, in_slot = self._slots.take(self.facts.scores_bytes), 0
        if slot is not None and planes is not None:
            in_slot = self._put(slot, planes, upload)
        ask = PhotoAsk(
            model=self.key,
            digest=prepared.digest,
            upload=b"" if in_slot else upload,
            slot_upload_bytes=in_slot,
            original_size=prepared.letterbox.original_size,
            prompt=prepared.prompt,
            deadline=deadline,
            waits=waits,
            slot=slot,
            is_in_slot=slot is not None and planes is not None,
            planes=planes if slot is None else None,
        )

        def settle(answer: PhotoAnswer | None) -> tuple[PhotoAnswer, Scores] | None:
            """The slot is the hub's until it answers, whoever waits for that: only now it may hold another photo."""
            try:
                return None if answer is None else (answer, self._scores_of(answer, slot))
            finally:
                if slot is not None:
                    self._slots.give_back(slot)

        asked_at = time.monotonic()
        try:
            answer, scores = await self._link.call("predict", ask, settle=settle)
        except LinkClosedError as error:
            raise not_ready() from error
        self._retry_after_s = answer.retry_after_s
        prediction = Prediction(torch.from_numpy(scores), answer.chosen_prompt, answer.encode_s)
        # On its way to the hub and back a photo waits too.
        queue_s = max(0.0, time.monotonic() - asked_at - answer.run_s)
        return Batched(prediction, queue_s, answer.run_s, answer.batch_size)

    def retry_after_s(self) -> int:
        """What the hub said last."""
        return self._retry_after_s

    def _put(self, slot: int, planes: Array, upload: bytes) -> int:
        """Write the planes into the slot, and the upload where it fits; the bytes of it that were written."""
        in_slot = len(upload) if planes.nbytes + len(upload) <= self._slots.size else 0
        memory = self._slots.view(slot, (planes.nbytes + in_slot,), np.uint8)
        memory[: planes.nbytes] = planes.ravel()
        memory[planes.nbytes :] = np.frombuffer(upload, np.uint8, in_slot)
        return in_slot

    def _scores_of(self, answer: PhotoAnswer, slot: int | None) -> Scores:
        if answer.scores is not None:
            return answer.scores
        assert slot is not None
        return self._slots.view(slot, answer.shape, np.float32).copy()
