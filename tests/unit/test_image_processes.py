"""Processes that work on photos for the threads of the server: as if called here, and none costs another anything."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.image_files import UnsupportedImageError
from models.letterbox import Letterbox
from service.image_processes import ImageProcessError, ImageProcesses, can_have_processes
from service.image_work import PhotoLimits, read_planes
from service.rendering import Drawer
from service.schemas import Output, Rle
from tests.fakes import encode, picture

pytestmark = pytest.mark.skipif(not can_have_processes(), reason="this system has no fork server")

DEADLINE_S = 30.0


def answer_once(path: str) -> str:
    """Kill the process, but for the second time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "answered"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def give_what_cannot_be_pickled() -> object:
    return threading.Lock()


@pytest.fixture(scope="module")
def work() -> Iterator[ImageProcesses]:
    processes = ImageProcesses(DEADLINE_S)
    yield processes
    processes.close()


def test_a_photo_is_read_and_its_answer_drawn_as_here(work: ImageProcesses) -> None:
    upload, limits = encode(picture(60, 40)), PhotoLimits()
    planes, size = work.call(read_planes, upload, limits, 32)
    here, size_here = read_planes(upload, limits, 32)
    assert np.array_equal(planes, here)
    assert size == size_here == (40, 60)
    scores = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    for output in Output:
        own = Drawer(output, Rle.COMPRESSED, ("background", "cat", "dog"), limits)
        assert work.call(own.draw, scores, Letterbox(size, 32), upload) == own.draw(scores, Letterbox(size, 32), upload)


def test_what_it_raises_is_raised_here(work: ImageProcesses) -> None:
    with pytest.raises(UnsupportedImageError, match="got 3 bytes that do not decode"):
        work.call(read_planes, b"abc", PhotoLimits(), 32)
    with pytest.raises(RuntimeError, match=r"cannot pickle '_thread\.lock'"):
        work.call(give_what_cannot_be_pickled)
    assert work.call(abs, -3) == 3


def test_each_thread_has_its_own(work: ImageProcesses) -> None:
    are_all_there = threading.Barrier(3)

    def ask() -> tuple[int, int]:
        are_all_there.wait(DEADLINE_S)
        return work.call(os.getpid), work.call(os.getpid)

    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(ask) for _ in range(3)]]
    assert all(first == second for first, second in found)
    assert len({first for first, _ in found} | {os.getpid()}) == 4


def test_a_process_that_is_killed_is_replaced_and_asked_again(
    work: ImageProcesses, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    before = work.call(os.getpid)
    assert work.call(answer_once, str(tmp_path_factory.mktemp("killed") / "once")) == "answered"
    assert work.call(os.getpid) != before
    assert "exit code -9" in caplog.text


def test_a_photo_that_kills_every_process_is_given_up(work: ImageProcesses) -> None:
    with pytest.raises(ImageProcessError, match="exit code 7"):
        work.call(os._exit, 7)
    assert work.call(abs, -3) == 3


def test_one_that_hangs_is_killed() -> None:
    work = ImageProcesses(patience_s=1.0)
    work.start()
    hanging = work.call(os.getpid)
    with pytest.raises(ImageProcessError, match="no answer within 1 s"):
        work.call(time.sleep, 60)
    assert work.call(os.getpid) != hanging
    work.close()


def test_signals_to_the_whole_group_end_no_work(work: ImageProcesses) -> None:
    process = work.call(os.getpid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process, number)
    assert work.call(os.getpid) == process


def test_all_end_with_the_server() -> None:
    work = ImageProcesses(DEADLINE_S)
    process = work.call(os.getpid)
    work.close()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(process, 0)
            time.sleep(0.05)
