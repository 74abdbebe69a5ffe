"""Each fault, caused: the work that it need not touch goes on, and the process says how it is."""

import asyncio
import logging
from collections.abc import Iterator

import httpx
import pytest
import torch
from fastapi import FastAPI
from torch import Tensor

from models.checkpoint import Checkpoint
from models.prompts import PromptTensors
from service.settings import Settings
from tests.fakes import ColourModel, HungryModel, StuckModel, encode, fake_checkpoint, picture, post_until, until

pytestmark = pytest.mark.anyio


class CrashingModel(ColourModel):
    """Raises `fault` once it is set."""

    fault: BaseException | None = None

    def score(self, images: Tensor, prompt: PromptTensors) -> Tensor:
        if self.fault is not None:
            raise self.fault
        return super().score(images, prompt)


@pytest.fixture
def settings() -> Settings:
    return Settings(image_threads=2, streams=1, max_batch_size=8)


@pytest.fixture
def checkpoints() -> list[Checkpoint]:
    kinds = {"colour": ColourModel, "stuck": StuckModel, "hungry": HungryModel, "crashing": CrashingModel}
    return [fake_checkpoint(kind, name) for name, kind in kinds.items()]


@pytest.fixture
def stuck(checkpoints: list[Checkpoint]) -> Iterator[StuckModel]:
    """The model that hangs while its `is_free` is clear; freed at the end."""
    model = checkpoints[1].model
    assert isinstance(model, StuckModel)
    yield model
    model.is_free.set()


@pytest.fixture
def hungry(checkpoints: list[Checkpoint]) -> HungryModel:
    model = checkpoints[2].model
    assert isinstance(model, HungryModel)
    return model


@pytest.fixture
def crashing(checkpoints: list[Checkpoint]) -> CrashingModel:
    model = checkpoints[3].model
    assert isinstance(model, CrashingModel)
    return model


async def post(client: httpx.AsyncClient, model: str, seed: int = 0) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": encode(picture(seed=seed))})


async def test_out_of_memory_is_served_in_smaller_batches(
    client: httpx.AsyncClient, app: FastAPI, hungry: HungryModel
) -> None:
    pipeline = app.state.service.pipelines["hungry"]
    hungry.is_free.clear()
    hungry.fits = 1
    first = asyncio.ensure_future(post(client, "hungry"))
    await until(lambda: pipeline.passes.running_s > 0)
    rest = [asyncio.ensure_future(post(client, "hungry", seed)) for seed in range(1, 5)]
    await until(lambda: len(pipeline.batcher) == 4)
    hungry.decoded_rows.clear()
    hungry.is_free.set()
    answers = await asyncio.gather(first, *rest)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert hungry.decoded_rows == [4, 2, 1, 1, 2, 1, 1]
    assert pipeline.batcher.max_batch_size == 1


async def test_a_photo_that_never_fits_is_told_to_come_again(client: httpx.AsyncClient, hungry: HungryModel) -> None:
    hungry.fits = 0
    response = await post(client, "hungry")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["type"] == "/problems/overloaded"
    assert "too little device memory for one photo of hungry" in response.json()["detail"]


@pytest.mark.parametrize("fault", [RuntimeError("defect"), MemoryError(), SystemExit(1), KeyboardInterrupt()])
async def test_a_crash_in_a_models_thread_fails_its_batch_alone(
    client: httpx.AsyncClient, crashing: CrashingModel, fault: BaseException
) -> None:
    crashing.fault = fault
    failed, other = await asyncio.gather(post(client, "crashing"), post(client, "colour"))
    assert (failed.status_code, other.status_code) == (500, 200)
    crashing.fault = None
    assert (await post(client, "crashing")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200


async def test_a_lost_device_wants_a_new_process(client: httpx.AsyncClient, crashing: CrashingModel) -> None:
    crashing.fault = torch.AcceleratorError("CUDA error: device-side assert triggered")
    assert (await post(client, "crashing")).status_code == 500
    refused = await post(client, "crashing")
    ready, alive = await client.get("/readyz"), await client.get("/healthz")
    assert [refused.status_code, ready.status_code, alive.status_code] == [503, 503, 503]
    assert "the device of crashing failed for good; only a new process" in alive.json()["detail"]


class TestStall:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(image_threads=2, streams=1, max_batch_size=8, stall_s=0.2, stall_fatal_s=0, deadline_s=20)

    async def test_a_hung_forward_makes_the_process_unready_until_it_ends(
        self, client: httpx.AsyncClient, app: FastAPI, stuck: StuckModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        pipeline = app.state.service.pipelines["stuck"]

        def stalls() -> float | None:
            count: float | None = app.state.metrics.registry.get_sample_value("petseg_stalls_total", {"model": "stuck"})
            return count

        stuck.is_free.clear()
        hung = asyncio.ensure_future(post(client, "stuck"))
        await until(lambda: stalls() == 1)
        assert "stuck has stalled" in caplog.text
        assert "in score" in caplog.text  # where the thread stands
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert "a forward pass of stuck has run for" in ready.json()["detail"]
        refused = await post(client, "stuck")
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/not-ready")
        assert (await client.get("/healthz")).status_code == 200
        assert (await post(client, "colour")).status_code == 200
        stuck.is_free.set()
        assert (await hung).status_code == 200
        await until(lambda: "stuck goes on" in caplog.text)
        assert not pipeline.is_stalled
        assert (await client.get("/readyz")).status_code == 200
        assert stalls() == caplog.text.count("stuck has stalled") == 1


class TestFatalStall:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(image_threads=2, streams=1, max_batch_size=8, stall_s=0.1, stall_fatal_s=0.2)

    async def test_a_longer_one_fails_liveness(
        self, client: httpx.AsyncClient, app: FastAPI, stuck: StuckModel
    ) -> None:
        stuck.is_free.clear()
        hung = asyncio.ensure_future(post(client, "stuck"))
        await until(lambda: not app.state.service.is_alive)
        response = await client.get("/healthz")
        assert response.status_code == 503
        assert "only a new process answers again" in response.json()["detail"]
        stuck.is_free.set()
        assert (await hung).status_code == 200


async def test_a_client_that_hangs_up_is_out_of_the_queue_before_it_is_written_down(
    client: httpx.AsyncClient,
    app: FastAPI,
    stuck: StuckModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipeline = app.state.service.pipelines["stuck"]
    stuck.is_free.clear()
    running = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: pipeline.passes.running_s > 0)
    hang_up = asyncio.Event()
    leaving, _ = post_until(hang_up, app, "/segment/stuck", "image/png", encode(picture(seed=1)))
    await until(lambda: len(pipeline.batcher) == 1)
    queued: list[int] = []
    caplog.set_level(logging.INFO, "petseg.requests")
    monkeypatch.setattr(logging.getLogger("petseg.requests"), "handle", lambda _: queued.append(len(pipeline.batcher)))
    hang_up.set()
    await asyncio.wait_for(leaving, 10)
    await until(lambda: bool(queued))  # the other one is still in flight: the line may wait for it
    assert queued == [0]
    stuck.is_free.set()
    assert (await running).status_code == 200


async def test_a_batch_whose_client_hangs_up_frees_its_queue(
    client: httpx.AsyncClient, app: FastAPI, stuck: StuckModel
) -> None:
    pipeline = app.state.service.pipelines["stuck"]
    stuck.is_free.clear()
    running = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: pipeline.passes.running_s > 0)
    stuck.decoded_rows.clear()
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="%d.png"\r\n\r\n%s\r\n'
        % (seed, encode(picture(seed=seed)))
        for seed in range(1, 6)
    ]
    hang_up = asyncio.Event()
    leaving, _ = post_until(
        hang_up, app, "/segment/stuck/batch", "multipart/form-data; boundary=b", b"".join(parts) + b"--b--\r\n"
    )
    await until(lambda: len(pipeline.batcher) == 5)
    hang_up.set()
    await asyncio.wait_for(leaving, 10)
    await until(lambda: len(pipeline.batcher) == 0)
    await until(lambda: pipeline.users == 1)
    stuck.is_free.set()
    assert (await running).status_code == 200
    assert stuck.decoded_rows == []  # none of the five ever ran


class TestLinger:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(image_threads=2, streams=1, max_batch_size=8, linger_s=1000)

    async def test_work_is_taken_while_load_balancers_look_away(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        service = app.state.service
        service.drain()
        assert (await client.get("/readyz")).status_code == 503
        assert (await post(client, "colour")).status_code == 200
        assert not service.has_drained and not service.refuses_work


async def test_the_process_may_end_once_the_last_answer_is_sent(
    client: httpx.AsyncClient, app: FastAPI, stuck: StuckModel
) -> None:
    service = app.state.service
    stuck.is_free.clear()
    accepted = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: service.is_busy)
    assert not service.has_drained
    service.drain()
    refused = await post(client, "colour")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["connection"] == "close"
    assert not service.has_drained
    stuck.is_free.set()
    assert (await accepted).status_code == 200
    await until(lambda: bool(service.has_drained))
