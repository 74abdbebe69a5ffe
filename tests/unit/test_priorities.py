"""Whoever works on photos lets the event loop run first, and nobody else is moved back."""

import os
import sys
import threading
from pathlib import Path

import pytest

from models import openvino_graph
from models.checkpoint import Checkpoint
from service.app import create_app
from service.device_pipeline import DevicePipeline
from service.priorities import call_yielding, yield_to_event_loop
from service.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a thread has a niceness of its own")


def niceness(thread: int | None = None) -> int:
    """Of a thread by its native id; of the calling one unless told."""
    return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())


def niceness_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(niceness()))
    thread.start()
    thread.join()
    return found[0]


def behind() -> int:
    """Of a thread that yields."""
    return min(19, niceness(os.getpid()) + 10)


def all_threads() -> set[int]:
    return {int(each.name) for each in Path("/proc/self/task").iterdir()}


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ["torch", "openvino"])
async def test_threads_for_photos_and_passes_yield_and_the_event_loop_does_not(
    unet: Checkpoint, tmp_path: Path, engine: str
) -> None:
    if engine == "openvino" and not openvino_graph.is_installed():
        pytest.skip("wants OpenVINO")
    before = all_threads()
    app = create_app(Settings.model_validate({"device": "cpu", "engine": engine, "engine_cache": tmp_path}), [unet])
    async with app.router.lifespan_context(app):
        pipeline: DevicePipeline = app.state.service.pipelines["unet"]
        ours = threading.enumerate()
        images = [each.native_id for each in ours if each.name.startswith("images-")]
        passes = [each.native_id for each in pipeline.batcher.threads]
        engines = all_threads() - before - {each.native_id for each in ours}
        assert images
        assert passes
        assert {niceness(each) for each in (*images, *passes, *engines)} == {behind()}
        assert niceness() < behind()
        assert niceness_of_a_new_thread() < behind()


def test_what_is_called_yielding_starts_threads_that_yield() -> None:
    before = niceness()
    assert call_yielding(lambda: (niceness(), niceness_of_a_new_thread())) == (behind(), behind())
    assert niceness() == niceness_of_a_new_thread() == before


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        call_yielding(lambda: 1 // 0)


def test_yielding_twice_is_yielding_once() -> None:
    def yield_again() -> int:
        yield_to_event_loop()
        return niceness()

    assert call_yielding(yield_again) == behind()


def test_where_priorities_are_forbidden_threads_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError("a sandbox")

    monkeypatch.setattr(os, "setpriority", refuse)
    before = niceness()
    assert call_yielding(niceness) == before


def test_elsewhere_the_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    before = niceness()
    assert call_yielding(niceness) == before
