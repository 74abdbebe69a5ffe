"""Both ends of a front's link in one process: the hub's answers are its own pipeline's, and nothing is lost."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from models.checkpoint import Checkpoint
from models.prompts import PointPrompt, Prompt, TextPrompt
from service.admission import OwnLimiter
from service.device_pipeline import DevicePipeline
from service.errors import ImageGone, InvalidRequest, NotReady, Overloaded, PromptMismatch
from service.front_messages import FrontFigures, ServedModel
from service.front_pipeline import FrontPipeline
from service.front_session import FrontSession
from service.hub import slot_bytes
from service.image_processes import InThread
from service.image_threads import ImageThreads
from service.link import Link
from service.metrics import Metrics
from service.operation import create_bare_operation_app
from service.photo_slots import PhotoSlots, can_share_memory
from service.pipeline import Photo, Segmented, Service
from service.predictor import Prediction, Prepared
from service.settings import Settings
from tests.fakes import BrokenModel, StuckModel, encode, picture, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not can_share_memory(), reason="this system shares no memory between processes"),
]

CLICK = PointPrompt(((20.0, 15.0),), (1,))
PROMPTS: dict[str, Prompt] = {"colour": None, "unet": None, "click": CLICK, "text": TextPrompt("a dog")}


@pytest.fixture
def settings() -> Settings:
    return Settings(streams=1, image_threads=2, max_batch_size=4, queue_size=8)


class Ends:
    """A front and the hub's session with it."""

    def __init__(self, app: FastAPI, slots: int) -> None:
        self.service: Service[DevicePipeline] = app.state.service
        self.served = dict(enumerate(self.service.pipelines.values()))
        self.slots = PhotoSlots.create(slots, slot_bytes(each.facts for each in self.served.values()))
        operation = create_bare_operation_app(app)
        self.session = FrontSession(None, self.slots, app.state.metrics, OwnLimiter(), operation, lambda: None)
        self.pool = ImageThreads(2, InThread())
        self.pipelines: dict[str, FrontPipeline] = {}
        self._has_models = asyncio.Event()

    async def connect(self) -> None:
        """Until the front knows the hub's models."""
        self.link = Link({"catalogue": self._take_up}, lambda: None)
        hub, front = socket.socketpair()
        await asyncio.gather(self.session.connect(hub), self.link.connect(front))
        self.session.publish(self.served)
        await self._has_models.wait()

    def _take_up(self, catalogue: list[ServedModel]) -> None:
        metrics = Metrics(of_service=False)
        for model in catalogue:
            name, keeps = model.facts.name, model.facts.keeps_images
            self.pipelines[name] = FrontPipeline(
                model,
                InThread(),
                self.pool,
                self.service.settings,
                metrics.of_model(name, keeps),
                self.link,
                self.slots,
            )
        self._has_models.set()

    async def by_front(self, name: str, photo: Photo) -> Segmented[Any]:
        return await self.pipelines[name].segment(photo, scores)

    async def by_hub(self, name: str, photo: Photo) -> Segmented[Any]:
        return await self.service.pipelines[name].segment(photo, scores)

    @property
    def free_slots(self) -> int:
        return len(self.slots._free)


def scores(prepared: Prepared, prediction: Prediction) -> np.ndarray[Any, Any]:
    """In the place of a drawing: what it would be drawn from."""
    return prediction.logits.numpy().copy()


def fresh(seed: int, prompt: Prompt = None, size: int = 0) -> Photo:
    """A photo of its own; size: bytes that are behind it at least."""
    return Photo(encode(picture(seed=seed)) + bytes(size), None, prompt)


either_way = pytest.mark.parametrize("slots", [0, 3], ids=["without slots", "three slots"])


@pytest.fixture
def slots() -> int:
    """Of the front, where a test does not say."""
    return 3


@pytest.fixture
async def ends(app: FastAPI, slots: int) -> AsyncIterator[Ends]:
    async with app.router.lifespan_context(app):
        both = Ends(app, slots)
        await both.connect()
        try:
            yield both
        finally:
            both.link.close()
            await until(both.session.is_gone.is_set)
            assert all(each.users == 0 for each in both.served.values())
            await asyncio.to_thread(both.pool.close)
            both.slots.close()


@either_way
@pytest.mark.parametrize("name", list(PROMPTS))
async def test_the_answers_are_the_hubs_own(ends: Ends, name: str) -> None:
    photos = [fresh(seed, PROMPTS[name], size=5000 * (seed % 3)) for seed in range(7)]
    got = await asyncio.gather(*(ends.by_front(name, photo) for photo in photos))
    for photo, answer in zip(photos, got, strict=True):
        assert photo.upload is not None
        wanted = await ends.by_hub(name, Photo(photo.upload + b" again", None, photo.prompt))
        assert np.allclose(answer.drawn, wanted.drawn, atol=1e-4)  # batches of other sizes round otherwise
        assert answer.prediction.chosen_prompt == wanted.prediction.chosen_prompt
        assert answer.prepared.letterbox == wanted.prepared.letterbox
        assert set(answer.timing_ms) == set(wanted.timing_ms)
    assert ends.free_slots == ends.slots.count


async def test_a_model_that_chooses_its_prompt_says_so(ends: Ends) -> None:
    answer = await ends.by_front("text", fresh(1))
    assert answer.prediction.chosen_prompt == (await ends.by_hub("text", fresh(2))).prediction.chosen_prompt
    assert answer.prediction.chosen_prompt


@either_way
async def test_photos_are_kept_by_the_hub(ends: Ends) -> None:
    photo = fresh(1, CLICK, size=3000)
    assert photo.upload is not None
    digest = hashlib.sha256(photo.upload).hexdigest()
    first = await ends.by_front("click", photo)
    held = ends.service.pipelines["click"].predictor.find(digest)
    assert held is not None and held.upload == photo.upload
    again = await ends.by_front("click", Photo(None, digest, PointPrompt(((40.0, 20.0),), (1,))))
    assert again.prepared.upload == photo.upload
    assert again.prepared.letterbox == first.prepared.letterbox
    assert not (again.drawn == first.drawn).all()
    assert again.prediction.encode_s == 0.0
    predictor = ends.service.pipelines["click"].predictor
    for replace in (predictor.retire, lambda: setattr(predictor, "encoder_digest", "another")):
        replace()
        after = await ends.by_front("click", Photo(None, digest, PointPrompt(((40.0, 20.0),), (1,))))
        assert (after.drawn == again.drawn).all()
        assert after.prediction.encode_s > 0
    with pytest.raises(ImageGone):
        await ends.by_front("click", Photo(None, "0" * 64, CLICK))
    assert ends.free_slots == ends.slots.count


async def test_what_can_be_refused_is_refused_by_the_front(ends: Ends) -> None:
    with pytest.raises(PromptMismatch, match="click clicks, or choose another"):
        await ends.by_front("click", fresh(1))
    with pytest.raises(InvalidRequest, match="click outside the image"):
        await ends.by_front("click", fresh(1, PointPrompt(((500.0, 1.0),), (1,))))


@either_way
async def test_whoever_leaves_gives_his_slot_back(ends: Ends, checkpoints: list[Checkpoint]) -> None:
    stuck = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
    hub = ends.service.pipelines["stuck"]
    stuck.is_free.clear()
    try:
        held = [asyncio.ensure_future(ends.by_front("stuck", fresh(seed))) for seed in range(6)]
        await until(lambda: hub.passes.running_s > 0 and len(hub.batcher) > 0)
        for task in held:
            task.cancel()
        await asyncio.wait(held)
        await until(lambda: len(hub.batcher) == 0 and ends.free_slots == ends.slots.count)
    finally:
        stuck.is_free.set()
    answer = await ends.by_front("stuck", fresh(9))
    assert (answer.drawn == (await ends.by_hub("stuck", fresh(9))).drawn).all()


async def test_problems_of_the_hub_are_the_fronts(ends: Ends, checkpoints: list[Checkpoint]) -> None:
    hub = ends.service.pipelines["colour"]
    hub.batcher.queue_size = 0
    with pytest.raises(Overloaded) as caught:
        await ends.by_front("colour", fresh(1))
    assert caught.value.headers == {"Retry-After": "1"}
    of_a_batch = await ends.pipelines["colour"].segment(fresh(1), scores, waits=True)
    assert of_a_batch.drawn.shape == (3, 32, 32)
    hub.batcher.queue_size = 8
    broken = next(each.model for each in checkpoints if isinstance(each.model, BrokenModel))
    broken.is_broken = True
    with pytest.raises(RuntimeError, match="RuntimeError: secret"):  # for the log: callers get a plain 500
        await ends.by_front("broken", fresh(1))
    assert (await ends.by_front("colour", fresh(1))).drawn.shape == (3, 32, 32)


async def test_a_lost_hub_refuses_for_now(ends: Ends, checkpoints: list[Checkpoint]) -> None:
    stuck = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
    stuck.is_free.clear()
    try:
        held = asyncio.ensure_future(ends.by_front("stuck", fresh(1)))
        await until(lambda: ends.service.pipelines["stuck"].passes.running_s > 0)
        ends.session.link.close()
        with pytest.raises(NotReady):
            await held
    finally:
        stuck.is_free.set()
    with pytest.raises(NotReady):
        await ends.by_front("colour", fresh(2))
    assert ends.free_slots == ends.slots.count


async def test_models_are_held_until_the_front_releases_them(ends: Ends) -> None:
    hub = ends.service.pipelines["colour"]
    assert hub.users == 1
    ends.session.publish(ends.served)  # told once more
    assert hub.users == 1
    ends.link.notify("released", ends.pipelines["colour"].key)
    await until(lambda: hub.users == 0)


async def test_levels_and_figures_are_the_fronts(ends: Ends) -> None:
    hub = ends.service.pipelines["colour"]
    key = ends.pipelines["colour"].key
    ends.link.notify("tell", FrontFigures({("petseg_photos_total", ()): 2.0}, {key: 3}))
    await until(lambda: hub.in_flight == 3)
    assert ends.session.figures.series == {("petseg_photos_total", ()): 2.0}
    ends.link.close()
    await until(lambda: hub.in_flight == 0)


async def test_operation_is_answered_by_the_hub(ends: Ends) -> None:
    scope = {"type": "http", "method": "GET", "path": "/readyz", "query_string": b"", "headers": [], "root_path": ""}
    answer = await ends.link.call("operate", scope, "id-1")
    assert (answer.status, answer.body, answer.problem) == (200, b'{"status":"ok"}', "")
    ends.service.is_reachable = False
    answer = await ends.link.call("operate", scope, "id-2")
    assert (answer.status, answer.problem) == (503, "not-ready")
    assert b'"request_id":"id-2"' in answer.body
