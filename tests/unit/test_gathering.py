"""The interpreter's threads share a CPU while that is enough for them, and no longer."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.checkpoint import Checkpoint
from service import gathering
from service.app import create_app
from service.device_pipeline import DevicePipeline
from service.gathering import Choice, Gathering, Load, can_gather
from service.image_processes import InThread
from service.image_threads import ImageThreads
from service.pipeline import Service
from service.settings import Settings
from tests.fakes import until

IDLE = Load(0.1, 0.2, is_waiting=False)
BUSY = Load(0.95, 1.9, is_waiting=True)
"""Of two CPUs: passes use what the threads leave."""
SHORT = Load(0.95, 1.2, is_waiting=True)
"""Likewise: passes wait for the threads."""
TOO_MUCH = Load(1.2, 1.9, is_waiting=True)
"""More than one CPU's work."""

needs_cpus = pytest.mark.skipif(
    not can_gather() or len(os.sched_getaffinity(0)) < 2, reason="wants a Linux with two CPUs to move threads between"
)


@pytest.fixture(autouse=True)
def everywhere_again() -> Iterator[None]:
    """Whatever a test does: the next one may use every CPU."""
    before = os.sched_getaffinity(0) if can_gather() else set()
    yield
    if can_gather():
        os.sched_setaffinity(0, before)


def choices(*loads: Load, cpus: int = 2) -> list[bool]:
    """Whether threads are gathered after each of `loads`."""
    choice = Choice(cpus)
    found = []
    for load in loads:
        choice.update(load)
        found.append(choice.is_gathered)
    return found


@pytest.mark.parametrize(("load", "is_gathered"), [(IDLE, True), (BUSY, True), (SHORT, True), (TOO_MUCH, False)])
def test_threads_are_gathered_where_one_cpu_is_enough(load: Load, is_gathered: bool) -> None:
    assert choices(load) == [is_gathered]


def test_they_stay_while_the_passes_use_what_they_leave() -> None:
    assert choices(*[BUSY] * 50) == [True] * 50


def test_they_stay_while_nothing_more_is_wanted_of_them() -> None:
    assert choices(*[Load(0.5, 0.6, is_waiting=False)] * 50) == [True] * 50


@pytest.mark.parametrize("short", [SHORT, Load(0.5, 0.9, is_waiting=True), Load(0.95, 1.2, is_waiting=False)])
def test_they_are_spread_once_two_looks_in_a_row_find_the_passes_waiting_for_them(short: Load) -> None:
    assert choices(IDLE, short, BUSY, short, short) == [True, True, True, True, False]


def test_of_many_cpus_one_is_less_than_enough() -> None:
    assert choices(IDLE, BUSY, BUSY, cpus=16) == [True, True, False]


def test_once_spread_they_stay_so_for_a_while() -> None:
    found = choices(IDLE, SHORT, SHORT, *[IDLE] * 30)
    assert found[2:23] == [False] * 21
    assert found[23:] == [True] * 10


def test_what_takes_more_than_one_cpu_keeps_them_spread() -> None:
    assert not any(choices(IDLE, SHORT, SHORT, *[TOO_MUCH] * 50)[2:])


def affinities(pipeline: DevicePipeline) -> set[frozenset[int]]:
    """The CPUs of this thread, of those that start passes and, by their name, of those that work on photos."""
    images = [each for each in threading.enumerate() if each.name.startswith("images-")]
    ids = [each.native_id for each in (threading.current_thread(), *images, *pipeline.batcher.threads)]
    assert len(ids) >= 3
    return {frozenset(os.sched_getaffinity(each)) for each in ids if each is not None}


@needs_cpus
@pytest.mark.anyio
async def test_a_server_gathers_its_threads_and_lets_go_of_them(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint, tmp_path: Path
) -> None:
    monkeypatch.setattr(gathering, "LOOK_S", 0.01)
    load = IDLE
    monkeypatch.setattr(Gathering, "_measure", lambda *_: load)
    every = frozenset(os.sched_getaffinity(0))
    app = create_app(Settings(device="cpu", engine="openvino", engine_cache=tmp_path), [unet])
    async with app.router.lifespan_context(app):
        pipeline: DevicePipeline = app.state.service.pipelines["unet"]
        await until(lambda: {len(each) for each in affinities(pipeline)} == {1})
        assert len(affinities(pipeline)) == 1  # the same one
        load = Load(1.0, 1.0, is_waiting=True)
        await until(lambda: affinities(pipeline) == {every})
        load = IDLE
        monkeypatch.setattr(gathering, "_LOOKS_SPREAD", 0)
        await until(lambda: len(next(iter(affinities(pipeline)))) == 1)
    assert frozenset(os.sched_getaffinity(0)) == every


@needs_cpus
@pytest.mark.anyio
@pytest.mark.parametrize(
    "settings",
    [{"engine": "torch"}, {"gather_threads": False}, {"image_processes": 1}],
    ids=lambda each: next(iter(each)),
)
async def test_threads_stay_free_where_passes_need_them_or_somebody_says_so(
    monkeypatch: pytest.MonkeyPatch, unet: Checkpoint, tmp_path: Path, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(gathering, "LOOK_S", 0.01)
    given = {"device": "cpu", "engine": "openvino", "engine_cache": tmp_path} | settings
    every = frozenset(os.sched_getaffinity(0))
    app = create_app(Settings.model_validate(given), [unet])
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0.3)
        assert affinities(app.state.service.pipelines["unet"]) == {every}


@needs_cpus
def test_the_load_is_measured() -> None:
    pool = ImageThreads(1, InThread())
    try:
        own = Gathering(Service(Settings(), {}), pool)
        spinner = threading.Thread(target=lambda: sum(range(10_000_000)))
        own._measure([threading.get_native_id()])
        spinner.start()
        spinner.join()
        load = own._measure([threading.get_native_id()])
    finally:
        pool.close()
    assert load.threads < 0.5 < load.process  # the spinner is not one of those that were asked about
    assert not load.is_waiting


@needs_cpus
def test_a_network_that_is_loaded_later_may_use_every_cpu() -> None:
    every = frozenset(os.sched_getaffinity(0))
    pool = ImageThreads(1, InThread())
    own = Gathering(Service(Settings(), {}), pool)
    pool.close()
    here = {min(every)}
    os.sched_setaffinity(0, here)
    inherited: list[frozenset[int]] = []
    with own.everywhere():
        engine = threading.Thread(target=lambda: inherited.append(frozenset(os.sched_getaffinity(0))))
        engine.start()
        engine.join()
    assert inherited == [every]
    assert os.sched_getaffinity(0) == here


@needs_cpus
def test_the_cpu_that_a_thread_is_on_is_told() -> None:
    for cpu in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {cpu})
        assert gathering._current_cpu() == cpu
