"""Work is ended from another thread where it allows that, and no other work is."""

import threading

import pytest

from models.stopping import Stop, StoppedError, check_stop, stoppable, unstoppable


def test_work_that_nobody_may_stop_runs() -> None:
    with stoppable(pytest.fail):
        check_stop()


def test_what_is_under_way_is_ended() -> None:
    stop, is_running, is_ended = Stop(), threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with stop.heeded(), stoppable(is_ended.set):
                is_running.set()
                assert is_ended.wait(10)
                raise RuntimeError("interrupted")
        except StoppedError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert is_running.wait(10)
    stop.ask()
    thread.join()
    assert isinstance(raised[0].__cause__, RuntimeError)


def test_what_has_not_begun_does_not_begin() -> None:
    stop, begun = Stop(), []
    stop.ask()
    with stop.heeded():
        with pytest.raises(StoppedError), stoppable(pytest.fail):
            begun.append(1)
        with pytest.raises(StoppedError):
            check_stop()
    assert not begun


def test_what_comes_after_is_not_ended() -> None:
    stop, ended = Stop(), []
    with stop.heeded(), stoppable(lambda: ended.append(1)):
        pass
    stop.ask()
    with stoppable(lambda: ended.append(2)):
        check_stop()
    assert not ended


def test_what_is_worth_its_end_is_not_ended_and_what_follows_is() -> None:
    stop = Stop()
    with stop.heeded():
        with unstoppable(), stoppable(pytest.fail):
            stop.ask()
            check_stop()
        with pytest.raises(StoppedError):
            check_stop()


def test_an_error_of_its_own_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), Stop().heeded(), stoppable(pytest.fail):
        raise ZeroDivisionError


def test_work_that_ends_all_the_same_is_finished() -> None:
    stop = Stop()
    with stop.heeded(), stoppable(lambda: None):
        stop.ask()


def test_other_threads_go_on() -> None:
    stop, seen = Stop(), []
    stop.ask()

    def work() -> None:
        check_stop()
        seen.append(1)

    with stop.heeded():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen
