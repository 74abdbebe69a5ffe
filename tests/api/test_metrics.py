"""GET /metrics: each figure moves by what happened, and none is without its line in the documentation."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from models.checkpoint import Checkpoint
from service import gauges, metrics
from service.settings import Settings
from tests.fakes import StuckModel, encode, picture, until

pytestmark = pytest.mark.anyio

Sample = Callable[..., float | None]


@pytest.fixture
def settings() -> Settings:
    return Settings(image_threads=2, streams=1, max_batch_size=8)


@pytest.fixture
def sample(app: FastAPI) -> Sample:
    """One figure of the running app: sample("petseg_ready"), sample("petseg_photos_total", model="unet", ...)."""

    def read(name: str, **labels: str) -> float | None:
        value: float | None = app.state.metrics.registry.get_sample_value(name, labels)
        return value

    return read


async def post(client: httpx.AsyncClient, model: str = "colour", **fields: str) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": encode(picture())}, data=fields)


async def test_requests_by_route_model_output_and_status(client: httpx.AsyncClient, sample: Sample) -> None:
    await post(client)
    await post(client, output="rle")
    await post(client, output="rle")
    await post(client, text="a cat")
    await post(client, "nope")
    await client.get("/nope/of/the/callers/own/making")
    labels = {"route": "/segment/{model}", "model": "colour"}
    assert sample("petseg_requests_total", **labels, output="png", status="200") == 1
    assert sample("petseg_requests_total", **labels, output="rle", status="200") == 2
    assert sample("petseg_requests_total", **labels, output="png", status="422") == 1
    assert sample("petseg_request_seconds_count", **labels) == 4
    assert sample("petseg_requests_total", route="/segment/{model}", model="", output="", status="404") == 1
    assert sample("petseg_requests_total", route="", model="", output="", status="404") == 1
    assert sample("petseg_problems_total", model="colour", problem="prompt-mismatch") == 1
    assert sample("petseg_problems_total", model="", problem="unknown-model") == 1
    assert sample("petseg_requests_in_flight") == 0


async def test_photos_of_a_batch_and_their_stages(client: httpx.AsyncClient, sample: Sample) -> None:
    photos = [("image", encode(picture(seed=seed))) for seed in range(5)]
    await client.post("/segment/colour/batch", files=[*photos, ("image", b"no photo")])
    assert sample("petseg_photos_total", model="colour", outcome="ok") == 5
    assert sample("petseg_photos_total", model="colour", outcome="unsupported-image") == 1
    for stage, count in {"receive": 1, "decode": 6, "queue": 6, "inference": 5, "draw": 5}.items():
        assert sample("petseg_stage_seconds_count", model="colour", stage=stage) == count, stage
    batches = sample("petseg_batch_size_count", model="colour")
    assert batches is not None and 1 <= batches <= 5
    assert sample("petseg_batch_size_sum", model="colour") == 5
    assert sample("petseg_encoder_seconds_count", model="colour") == batches


async def test_stages_make_up_the_time_of_a_request(client: httpx.AsyncClient, sample: Sample) -> None:
    await post(client, "unet")
    stages = ("receive", "decode", "queue", "inference", "draw")
    parts = [sample("petseg_stage_seconds_sum", model="unet", stage=stage) for stage in stages]
    whole = sample("petseg_request_seconds_sum", route="/segment/{model}", model="unet")
    assert whole is not None
    assert 0 < sum(part or 0 for part in parts) <= whole


async def test_cache_hits_and_misses(client: httpx.AsyncClient, sample: Sample) -> None:
    for _ in range(3):
        await post(client, "click", x="3", y="3")
    assert sample("petseg_cache_lookups_total", model="click", result="hit") == 2
    assert sample("petseg_cache_lookups_total", model="click", result="miss") == 1
    assert sample("petseg_cache_lookups_total", model="colour", result="miss") is None
    assert sample("petseg_encoder_seconds_count", model="click") == 1
    assert sample("petseg_cache_photos") == 1
    held, limit = sample("petseg_cache_bytes"), sample("petseg_cache_limit_bytes")
    assert held and limit and 0 < held < limit
    gone = await client.post("/segment/click", data={"image_id": f"sha256:{64 * '0'}", "x": "3", "y": "3"})
    assert gone.status_code == 410
    assert sample("petseg_cache_lookups_total", model="click", result="miss") == 2


async def test_levels_while_a_model_is_at_work(
    client: httpx.AsyncClient, app: FastAPI, sample: Sample, checkpoints: list[Checkpoint]
) -> None:
    model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
    model.is_free.clear()
    warmed_up = len(model.decoded_rows)
    running = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: len(model.decoded_rows) > warmed_up)
    queued = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: sample("petseg_photos_queued", model="stuck") == 1)
    assert sample("petseg_photos_in_flight", model="stuck") == 2
    assert sample("petseg_requests_in_flight") == 2
    running_s = sample("petseg_running_batch_seconds", model="stuck")
    assert running_s is not None and running_s > 0
    model.is_free.set()
    await asyncio.gather(running, queued)
    assert sample("petseg_photos_in_flight", model="stuck") == 0
    assert sample("petseg_running_batch_seconds", model="stuck") == 0
    assert sample("petseg_photos_limit", model="stuck") == app.state.settings.queue_size
    assert sample("petseg_batch_limit", model="stuck") == app.state.settings.max_batch_size


async def test_what_runs_here(client: httpx.AsyncClient, unet: Checkpoint, sample: Sample) -> None:
    assert sample("petseg_ready") == 1
    assert sample("petseg_checkpoint_info", model="unet", architecture="unet", checkpoint=unet.digest) == 1
    text = (await client.get("/metrics")).text
    assert re.search(r'petseg_build_info\{.*version="\d', text)


async def test_every_figure_is_documented_and_no_other(client: httpx.AsyncClient) -> None:
    await post(client)
    await post(client, "nope")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    endings = {"counter": "_total", "info": "_info"}
    shown = {name + endings.get(family.type, "") for name, family in families.items()}
    documented = set(re.findall(r"petseg_\w+", f"{metrics.__doc__}{gauges.__doc__}"))
    page = (Path(__file__).parents[2] / "docs" / "operation.md").read_text(encoding="utf-8")
    assert documented == {
        name for row in re.findall(r"^\| petseg_[^|]+", page, re.M) for name in re.findall(r"\w+", row)
    }
    assert {name for name in shown if name.startswith("petseg_")} == documented
    assert "process_resident_memory_bytes" in shown
    assert all(family.documentation for family in families.values())


async def test_openmetrics_for_those_who_ask(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
