"""The start: what cannot be served stops it with one line."""

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.base import Features
from models.checkpoint import Checkpoint, CheckpointError
from models.engine_choice import EngineBuilder
from models.torch_engine import TorchEngine
from service.app import create_app, load_folder, share_cpus
from service.device_pipeline import DevicePipeline
from service.settings import Settings, SettingsError
from tests.fakes import ClickModel, ColourModel, TextModel, encode, fake_checkpoint, picture


def test_the_folder_is_served_by_file_name(checkpoint_folder: Path, tmp_path: Path) -> None:
    data = (checkpoint_folder / "unet.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data)
    (tmp_path / "a.safetensors").write_bytes(data)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "tower.safetensors").write_bytes(b"not for serving")
    app = create_app(Settings(checkpoints=tmp_path))
    assert [predictor.checkpoint.name for predictor in app.state.predictors] == ["a", "b"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got no \*\.safetensors, wanted at least one"):
        load_folder(tmp_path)


def test_a_broken_checkpoint_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors") as caught:
        create_app(Settings(checkpoints=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_gpu_stops_the_start(unet: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="PETSEG_DEVICE: got cuda, but torch sees no GPU"):
        create_app(Settings(device="cuda"), [unet])


def test_prompted_models_share_one_cache_and_image_only_models_keep_nothing() -> None:
    kinds = (ClickModel, TextModel, ColourModel)
    app = create_app(Settings(cache_bytes=1000), [fake_checkpoint(kind, kind.__name__) for kind in kinds])
    click, text, colour = app.state.predictors
    assert click.cache is text.cache
    assert (click.cache.max_bytes, colour.cache.max_bytes) == (1000, 0)


@pytest.mark.parametrize(
    ("streams", "threads", "wanted"), [(0, 0, (6, 1)), (2, 0, (2, 3)), (0, 2, (6, 2)), (9, 0, (9, 1)), (1, 4, (1, 4))]
)
def test_the_cpus_are_shared_among_the_streams(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint, streams: int, threads: int, wanted: tuple[int, int]
) -> None:
    monkeypatch.setattr("service.app.available_cpus", lambda: 6)
    before = torch.get_num_threads()
    try:
        asked = Settings(streams=streams, stream_threads=threads, device="cpu")
        settings = create_app(asked, [unet]).state.settings
        assert (settings.streams, settings.stream_threads) == wanted
        assert torch.get_num_threads() == wanted[1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "cpus", "asked", "wanted"),
    [
        ("cpu", 6, {}, (0, 6)),
        ("cuda", 6, {}, (4, 4)),
        ("cuda", 2, {}, (0, 2)),
        ("cuda", 6, {"image_processes": 0}, (0, 6)),
        ("cpu", 6, {"image_processes": 3, "image_threads": 2}, (3, 3)),
        ("cpu", 6, {"image_threads": 2}, (0, 2)),
    ],
)
def test_photos_are_worked_on_in_processes_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, cpus: int, asked: dict[str, int], wanted: tuple[int, int]
) -> None:
    monkeypatch.setattr("service.app.available_cpus", lambda: cpus)
    monkeypatch.setattr("service.app.can_have_processes", lambda: True)
    shared = share_cpus(Settings.model_validate(asked), torch.device(device))
    assert (shared.image_processes, shared.image_threads) == wanted


def test_a_system_without_a_fork_server_says_so(monkeypatch: pytest.MonkeyPatch, unet: Checkpoint) -> None:
    monkeypatch.setattr("service.app.can_have_processes", lambda: False)
    assert share_cpus(Settings(), torch.device("cuda")).image_processes == 0
    with pytest.raises(SettingsError, match="PETSEG_IMAGE_PROCESSES: got 2, but this system forks no processes"):
        create_app(Settings(image_processes=2, device="cpu"), [unet])


@pytest.mark.anyio
async def test_nothing_is_measured_for_a_stand_in(
    monkeypatch: pytest.MonkeyPatch, checkpoint_folder: Path, tmp_path: Path
) -> None:
    def measure(prepare: Callable[[int], Callable[[], object]], limit: int, **_: object) -> int:
        raise AssertionError("a start does not wait for that")

    monkeypatch.setattr("service.device_pipeline.find_batch_size", measure)
    app = create_app(Settings(checkpoints=checkpoint_folder, engine="auto", engine_cache=tmp_path))
    async with app.router.lifespan_context(app):
        assert app.state.service.is_ready


@pytest.mark.anyio
async def test_a_batch_size_that_an_engine_knows_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint
) -> None:
    monkeypatch.setattr("service.device_pipeline.find_batch_size", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(TorchEngine, "best_batch_size", 3)
    app = create_app(Settings(device="cpu", engine="torch"), [unet])
    async with app.router.lifespan_context(app):
        assert app.state.service.pipelines["unet"].batcher.max_batch_size == 3


@pytest.mark.anyio
@pytest.mark.parametrize(("is_row_by_row", "together"), [(False, 3), (True, 1)])
async def test_photos_of_a_batch_are_together_only_where_they_are_computed_so(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint, is_row_by_row: bool, together: int
) -> None:
    monkeypatch.setattr(TorchEngine, "is_row_by_row", is_row_by_row)
    app = create_app(Settings(device="cpu", engine="torch", max_batch_size=3), [unet])
    async with app.router.lifespan_context(app):
        assert app.state.service.pipelines["unet"].photos_together == together


@pytest.mark.anyio
async def test_each_stream_has_as_many_passes_under_way_as_its_engine_wants(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint
) -> None:
    monkeypatch.setattr(TorchEngine, "passes_per_stream", 3)
    monkeypatch.setattr(EngineBuilder, "passes_per_stream", 3)
    app = create_app(Settings(device="cpu", engine="torch", streams=1, max_batch_size=1), [unet])
    async with app.router.lifespan_context(app):
        pipeline: DevicePipeline = app.state.service.pipelines["unet"]
        run, together = pipeline.predictor.engine.encode, threading.Barrier(3)

        def encode_together(images: Tensor) -> Features:
            together.wait(timeout=20)
            return run(images)

        monkeypatch.setattr(pipeline.predictor.engine, "encode", encode_together)
        rows = [pipeline.prepare(encode(picture(seed=seed)), None, None) for seed in range(3)]
        await asyncio.gather(*(pipeline.submit(row, math.inf, waits=False) for row in rows))


@pytest.mark.anyio
@pytest.mark.parametrize(("asked", "found"), [(0, 4), (3, 3)])
async def test_the_batch_size_is_measured_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint, asked: int, found: int
) -> None:
    limits: list[int] = []

    def measure(prepare: Callable[[int], Callable[[], object]], limit: int, **_: object) -> int:
        limits.append(limit)
        prepare(2)()
        return 4

    monkeypatch.setattr("service.device_pipeline.find_batch_size", measure)
    app = create_app(Settings(max_batch_size=asked, device="cpu"), [unet])
    async with app.router.lifespan_context(app):
        assert app.state.service.pipelines["unet"].batcher.max_batch_size == found
    assert limits == ([8] if asked == 0 else [])
