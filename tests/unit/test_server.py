"""When the server begins to stop, goes on listening, and ends."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from service import pipeline, server
from service.pipeline import Pipeline, Service
from service.server import HELPERS, Server, start_helpers
from service.settings import Settings

pytestmark = pytest.mark.anyio


class FakeTimer:
    """Remembers when it would go off."""

    started: list["FakeTimer"]

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self.seconds = seconds
        self.action = action
        self.daemon = False

    def start(self) -> None:
        self.started.append(self)


class FakeService(Service[Pipeline]):
    """A service whose work and health the test decides."""

    is_busy = False
    is_alive = True


@pytest.fixture(autouse=True)
def timers(monkeypatch: pytest.MonkeyPatch) -> list[FakeTimer]:
    monkeypatch.setattr(pipeline, "REFUSING_S", 0.0)
    monkeypatch.setattr(FakeTimer, "started", [], raising=False)
    monkeypatch.setattr(server.threading, "Timer", FakeTimer)  # type: ignore[attr-defined]
    return FakeTimer.started


def make(**settings: Any) -> tuple[Server, FakeService]:
    app = FastAPI()
    service = app.state.service = FakeService(Settings(**settings), {})
    service.is_warm = True
    return Server(app, uvicorn.Config(app, log_config=None), None), service


async def test_it_listens_until_the_accepted_work_is_done(timers: list[FakeTimer]) -> None:
    running, service = make(drain_s=100)
    assert not await running.on_tick(1)
    service.is_busy = True
    running.handle_exit(signal.SIGTERM, None)
    assert (service.is_ready, service.refuses_work) == (False, True)
    assert not await running.on_tick(2)
    service.is_busy = False
    assert await running.on_tick(3)
    (last_resort,) = timers
    assert 100 < last_resort.seconds <= 110 and last_resort.daemon
    assert last_resort.action is server.end_now


async def test_work_out_of_time_is_waited_for_no_longer() -> None:
    running, service = make(drain_s=0)
    service.is_busy = True
    running.handle_exit(signal.SIGTERM, None)
    assert await running.on_tick(1)
    assert running.config.timeout_graceful_shutdown == 1


async def test_a_second_ctrl_c_waits_no_longer() -> None:
    running, service = make(drain_s=100)
    service.is_busy = True
    running.handle_exit(signal.SIGINT, None)
    assert not await running.on_tick(1)
    running.handle_exit(signal.SIGINT, None)
    assert running.force_exit
    assert await running.on_tick(2)


async def test_a_signal_before_the_start_is_over_is_not_lost() -> None:
    app = FastAPI()
    running = Server(app, uvicorn.Config(app, log_config=None), None)
    running.handle_exit(signal.SIGTERM, None)
    assert await running.on_tick(1)


@pytest.mark.parametrize("exits", [True, False])
async def test_a_dead_process_ends_by_itself_where_that_is_wanted(exits: bool) -> None:
    running, service = make(exit_when_dead=exits)
    service.is_alive = False
    assert await running.on_tick(1) == exits
    assert running.is_dead == exits


def test_a_hangup_before_the_start_is_over_is_told(caplog: pytest.LogCaptureFixture) -> None:
    running, _ = make()
    running.handle_hangup(signal.SIGHUP, None)
    assert "got SIGHUP before the start was over" in caplog.text


def test_a_hangup_asks_for_the_checkpoints() -> None:
    class Asked:
        count = 0

        def ask(self) -> None:
            self.count += 1

    running, _ = make()
    reloader = running._service_app.state.reloader = Asked()
    running.handle_hangup(signal.SIGHUP, None)
    assert reloader.count == 1


def test_what_hangs_ends_with_code_1(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    codes: list[int] = []
    monkeypatch.setattr("service.server.os._exit", codes.append)
    server.end_now()
    assert codes == [1]
    assert "something hangs beyond the time to drain" in caplog.text


async def test_new_work_is_refused_for_a_while_before_the_port_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "REFUSING_S", 1000.0)
    running, _ = make()
    running.handle_exit(signal.SIGTERM, None)
    assert not await running.on_tick(1)


async def test_all_helpers_start_at_once() -> None:
    before = threading.active_count()
    await start_helpers()
    assert threading.active_count() == before + HELPERS
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(3 * HELPERS)))
    assert threading.active_count() == before + HELPERS
