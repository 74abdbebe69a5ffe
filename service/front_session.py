"""One front as the hub sees it: what it asks is answered here, what it holds is known here."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.types import Scope

from models.letterbox import Array
from service.admission import Limiter
from service.affinity import ask_app
from service.device_pipeline import DevicePipeline
from service.errors import Problem
from service.front_messages import FoundPhoto, FrontFigures, OperationAnswer, PhotoAnswer, PhotoAsk, ServedModel
from service.link import Link, LinkClosedError
from service.metrics import Metrics
from service.photo_slots import PhotoSlots
from service.predictor import KeptImage

_END_S = 2.0
"""For a process to end by itself, and again for one that was killed."""
_FIGURES_S = 1.0
"""For a front to tell its figures; the last ones stand for one that is too busy."""


class FrontSession:
    """One front: its process, its link, and the models that it has not released."""

    link: Link

    def __init__(
        self,
        process: Any,
        slots: PhotoSlots,
        metrics: Metrics,
        limiter: Limiter,
        operation: FastAPI,
        on_change: Callable[[], None],
    ) -> None:
        """on_change: called when it begins to serve."""
        self.is_gone = asyncio.Event()
        self.is_serving = False
        self._process = process
        self._slots = slots
        self._metrics = metrics
        self._limiter = limiter
        self._operation = operation
        self._on_change = on_change
        self._held: dict[int, tuple[DevicePipeline, ExitStack]] = {}
        self.figures = FrontFigures({}, {})
        """The last that it told."""

    @property
    def exit_code(self) -> int | None:
        """Of its process, once it has ended."""
        code: int | None = self._process.exitcode
        return code

    async def connect(self, end: socket.socket) -> None:
        """Open the link, by which it asks from now on."""
        handlers: dict[str, Callable[..., Any]] = {
            "predict": self._predict,
            "find": self._find,
            "take": self._limiter.take,
            "look": self._limiter.look,
            "charge": self._limiter.charge,
            "operate": self._operate,
            "serving": self._note_serving,
            "tell": self._note_figures,
            "released": self._release,
        }
        self.link = Link(handlers, self._leave, expected=(Problem,))
        await self.link.connect(end)

    def publish(self, models: dict[int, DevicePipeline]) -> None:
        """Tell it what is served; each model is held until the front releases it."""
        for key, pipeline in models.items():
            if key not in self._held:
                stack = ExitStack()
                stack.enter_context(pipeline.in_use())
                self._held[key] = pipeline, stack
        catalogue = [ServedModel(key, each.facts, each.photos_together) for key, each in models.items()]
        self.link.notify("catalogue", catalogue)

    def end(self) -> None:
        """Make sure that the process has ended; takes a moment, on any thread."""
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_END_S)
        self._slots.close()

    def _note_serving(self) -> None:
        self.is_serving = True
        self._on_change()

    def _leave(self) -> None:
        """The process is gone."""
        self._note_figures(FrontFigures(self.figures.series, {}))
        for key in list(self._held):
            self._release(key)
        self.is_gone.set()

    def _release(self, key: int) -> None:
        _, stack = self._held.pop(key)
        stack.close()

    async def _predict(self, ask: PhotoAsk) -> PhotoAnswer:
        pipeline = self._held[ask.model][0]
        planes, upload = self._take_out(ask, pipeline.facts.image_size)
        row = pipeline.predictor.take_up(ask.digest, upload, ask.original_size, ask.prompt, planes)
        pipeline.metrics.count_lookup(row.was_held)
        pipeline.check_health()
        with pipeline.problems(ask.deadline):
            batched = await pipeline.submit(row, ask.deadline, ask.waits)
        prediction = batched.result
        scores = prediction.logits.numpy()
        if ask.slot is not None and scores.nbytes <= self._slots.size:
            self._slots.view(ask.slot, scores.shape, np.float32)[:] = scores
            left = None
        else:
            left = scores
        return PhotoAnswer(
            shape=scores.shape,
            scores=left,
            chosen_prompt=prediction.chosen_prompt,
            run_s=batched.run_s,
            batch_size=batched.batch_size,
            encode_s=prediction.encode_s,
            retry_after_s=pipeline.retry_after_s(),
        )

    def _take_out(self, ask: PhotoAsk, side: int) -> tuple[Array | None, bytes]:
        """Planes [3, S, S] and upload, in memory of their own: whoever leaves may have his slot reused before the pass
        has read it."""
        if not ask.is_in_slot:
            return ask.planes, ask.upload
        assert ask.slot is not None
        size = 3 * side * side
        memory: Array = self._slots.view(ask.slot, (size + ask.slot_upload_bytes,), np.uint8)
        return memory[:size].reshape(3, side, side).copy(), memory[size:].tobytes() or ask.upload

    def _find(self, key: int, digest: str) -> FoundPhoto:
        kept = self._held[key][0].predictor.find_photo(digest)
        return FoundPhoto(kept.upload, kept.original_size, isinstance(kept, KeptImage))

    async def _operate(self, scope: Scope, request_id: str) -> OperationAnswer:
        scope["state"] = {"request_id": request_id}
        status, headers, body = 500, list[tuple[bytes, bytes]](), b""
        async for message in ask_app(self._operation, scope, b""):
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            body += message.get("body", b"")
        return OperationAnswer(status, headers, body, scope["state"].get("problem", ""))

    async def ask_figures(self) -> None:
        """Have `figures` be those of now, unless the front is too busy or gone."""
        with suppress(LinkClosedError, TimeoutError):
            async with asyncio.timeout(_FIGURES_S):
                self._note_figures(await self.link.call("figures"))

    def _note_figures(self, figures: FrontFigures) -> None:
        """Take them, and move the models' levels by what has changed."""
        before, self.figures = self.figures, figures
        for key, (pipeline, _) in self._held.items():
            pipeline.in_flight += figures.photos_in_flight.get(key, 0) - before.photos_in_flight.get(key, 0)
