"""Checkpoints that change on disk: taken up without a failed request, or left aside with the old one serving."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from httpx import ASGITransport

from models.architectures import get_architecture
from models.base import SegmentationModel
from models.checkpoint import ModelCard, save_checkpoint
from service.app import create_app
from service.device_pipeline import DevicePipeline
from service.settings import Settings
from tests.fakes import encode, picture, read, until

pytestmark = pytest.mark.anyio


def write_unet(path: Path, winner: int) -> None:
    """A UNet that paints everything as class `winner`."""
    architecture = get_architecture("unet")
    config = architecture.Config.model_validate({"image_size": 32, "widths": [4, 8]})
    model: Any = architecture(config)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(winner), 3).float())
    card = ModelCard(architecture="unet", config=config.model_dump(mode="json"), summary=f"Always {winner}.")
    save_checkpoint(path, model, card)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models: `a` sees background everywhere, `b` cats."""
    write_unet(tmp_path / "a.safetensors", 0)
    write_unet(tmp_path / "b.safetensors", 1)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(checkpoints=folder, image_threads=2, max_batch_size=4, engine="torch")


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def reloads(app: FastAPI) -> Callable[[str, str], float]:
    """How many reloads of a model there were, by their result."""

    def read(model: str, result: str) -> float:
        labels = {"model": model, "result": result}
        return app.state.metrics.registry.get_sample_value("petseg_reloads_total", labels) or 0.0

    return read


async def seen_by(client: httpx.AsyncClient, model: str = "a") -> int:
    """The class that `model` paints."""
    response = await client.post(f"/segment/{model}", files={"image": encode(picture())})
    assert response.status_code == 200, response.text
    ((_, winner),) = read(response.content).convert("P").getcolors()  # type: ignore[misc]
    assert isinstance(winner, int)
    return winner


async def names(client: httpx.AsyncClient) -> list[str]:
    return [model["name"] for model in (await client.get("/models")).json()["models"]]


async def engines(client: httpx.AsyncClient) -> set[str]:
    return {model["engine"] for model in (await client.get("/models")).json()["models"]}


async def test_changed_new_and_removed_files_are_taken_up(
    client: httpx.AsyncClient, app: FastAPI, folder: Path, reloads: Callable[[str, str], float]
) -> None:
    assert await seen_by(client, "a") == 0
    write_unet(folder / "a.safetensors", 2)
    write_unet(folder / "c.safetensors", 1)
    (folder / "b.safetensors").unlink()
    app.state.reloader.ask()
    await until(lambda: reloads("b", "removed") == 1)
    assert await seen_by(client, "a") == 2
    assert await seen_by(client, "c") == 1
    assert await names(client) == ["a", "c"]
    assert (await client.post("/segment/b", files={"image": encode(picture())})).status_code == 404
    assert (reloads("a", "loaded"), reloads("c", "loaded")) == (1, 1)
    assert (await client.get("/models/a")).json()["summary"] == "Always 2."


async def test_a_file_with_the_same_content_is_left_alone(
    client: httpx.AsyncClient, app: FastAPI, folder: Path, reloads: Callable[[str, str], float]
) -> None:
    before = app.state.service.pipelines["a"]
    (folder / "a.safetensors").touch()
    await app.state.reloader.reload()
    assert app.state.service.pipelines["a"] is before
    assert reloads("a", "loaded") == 0


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None], ids=["empty", "nonsense", "truncated"])
async def test_a_broken_file_leaves_the_old_one_serving(
    client: httpx.AsyncClient,
    app: FastAPI,
    folder: Path,
    reloads: Callable[[str, str], float],
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    write_unet(folder / "a.safetensors", 2)
    await app.state.reloader.reload()
    assert reloads("b", "failed") == 1
    assert await seen_by(client, "b") == 1
    assert await seen_by(client, "a") == 2
    assert (await client.get("/readyz")).status_code == 200
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "b.safetensors" in line and "the checkpoint that was loaded before goes on serving" in line
    write_unet(path, 0)
    await app.state.reloader.reload()
    assert await seen_by(client, "b") == 0


async def test_a_network_that_does_not_run_leaves_the_old_one_serving(
    client: httpx.AsyncClient, app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SegmentationModel, *args: object) -> None:
        raise RuntimeError("no kernel for this")

    write_unet(folder / "a.safetensors", 2)
    with monkeypatch.context() as patch:
        patch.setattr(get_architecture("unet"), "decode", fail)
        await app.state.reloader.reload()
    assert await seen_by(client, "a") == 0


async def test_a_network_that_does_not_warm_up_leaves_nothing_behind(
    client: httpx.AsyncClient, app: FastAPI, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: DevicePipeline) -> None:
        raise RuntimeError("no memory for a second network")

    def device_threads() -> int:
        return sum(thread.name.startswith("a-") for thread in threading.enumerate())

    before = device_threads()
    write_unet(folder / "a.safetensors", 2)
    monkeypatch.setattr(DevicePipeline, "warm_up", fail)
    await app.state.reloader.reload()
    await until(lambda: device_threads() == before)
    assert await seen_by(client, "a") == 0


async def test_an_empty_folder_takes_nothing_away(
    client: httpx.AsyncClient, app: FastAPI, folder: Path, reloads: Callable[[str, str], float]
) -> None:
    shutil.rmtree(folder)
    await app.state.reloader.reload()
    assert reloads("", "failed") == 1
    assert await names(client) == ["a", "b"]
    assert await seen_by(client, "b") == 1


async def test_no_request_fails_while_checkpoints_change(client: httpx.AsyncClient, app: FastAPI, folder: Path) -> None:
    is_over = False
    seen: list[int] = []

    async def ask_on() -> None:
        while not is_over:
            seen.append(await seen_by(client))

    asking = [asyncio.ensure_future(ask_on()) for _ in range(4)]
    for winner in (1, 2, 0, 1):
        write_unet(folder / "a.safetensors", winner)
        await app.state.reloader.reload()
        await until(lambda: seen[-4:] == [winner] * 4)  # noqa: B023 - called before the loop goes on
    is_over = True
    await asyncio.gather(*asking)
    assert set(seen) == {0, 1, 2}


async def test_a_request_whose_body_is_still_coming_is_answered_by_the_old_one_which_then_is_freed(
    client: httpx.AsyncClient, app: FastAPI, folder: Path
) -> None:
    photo = encode(picture())
    goes_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield photo[:50]
        await goes_on.wait()
        yield photo[50:]

    model = weakref.ref(app.state.service.pipelines["a"].predictor.model)
    headers = {"content-type": "image/png", "accept": "application/json"}
    begun = asyncio.ensure_future(client.post("/segment/a", content=body(), headers=headers))
    await until(lambda: app.state.service.pipelines["a"].users == 1)
    old_checkpoint = (await client.get("/models/a")).json()["checkpoint"]
    write_unet(folder / "a.safetensors", 2)
    await app.state.reloader.reload()
    assert await seen_by(client) == 2
    gc.collect()
    assert model() is not None
    goes_on.set()
    answer = await begun
    assert (answer.status_code, answer.json()["checkpoint"]) == (200, old_checkpoint)
    await until(lambda: not app.state.reloader._retiring)
    gc.collect()
    assert model() is None


class TestPolling:
    @pytest.fixture
    def settings(self, folder: Path) -> Settings:
        return Settings(checkpoints=folder, image_threads=2, max_batch_size=4, engine="torch", reload_poll_s=0.02)

    async def test_a_changed_folder_is_seen_without_a_signal(
        self, client: httpx.AsyncClient, folder: Path, reloads: Callable[[str, str], float]
    ) -> None:
        write_unet(folder / "a.safetensors", 2)
        await until(lambda: reloads("a", "loaded") == 1)
        assert await seen_by(client) == 2
        (folder / "b.safetensors").write_bytes(b"broken")
        await until(lambda: reloads("b", "failed") == 1)
        await asyncio.sleep(0.2)
        assert reloads("b", "failed") == 1  # not tried again as it is
        assert await seen_by(client, "b") == 1


@pytest.fixture
def first_start(folder: Path) -> FastAPI:
    """The app where nothing was ever converted for OpenVINO."""
    return create_app(Settings(checkpoints=folder, engine="auto", engine_cache=folder / "graphs", image_threads=2))


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def test_a_first_start_serves_before_its_networks_are_converted(first_start: FastAPI, folder: Path) -> None:
    assert {each.engine.name for each in first_start.state.predictors} == {"torch fp32, for now"}
    async with running(first_start) as client:
        assert (await client.get("/readyz")).status_code == 200
        seen = []
        async with asyncio.timeout(60):  # where a network could not be converted, its stand-in serves for good
            while await engines(client) != {"openvino fp32"}:
                seen.append((await seen_by(client, "a"), await seen_by(client, "b")))
        assert set(seen) == {(0, 1)}
        assert (await seen_by(client, "a"), await seen_by(client, "b")) == (0, 1)
    later = create_app(first_start.state.settings)
    assert {each.engine.name for each in later.state.predictors} == {"openvino fp32"}


async def test_a_network_that_cannot_be_taken_up_goes_on_as_it_began(
    first_start: FastAPI, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a.safetensors").write_bytes(b"no checkpoint any more")
    async with running(first_start) as client:
        await until(lambda: not first_start.state.service.pipelines["b"].predictor.engine.is_stand_in)  # after a
        assert await engines(client) == {"torch fp32, for now", "openvino fp32"}
        assert (await seen_by(client, "a"), await seen_by(client, "b")) == (0, 1)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "a.safetensors" in line and "the checkpoint that was loaded before goes on serving" in line
