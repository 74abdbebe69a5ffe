"""Every request that is over is entered once, in order: at once where it is alone, otherwise soon."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import pytest

from service import ledger
from service.ledger import ENTRIES_AT_ONCE, Ledger
from service.metrics import Metrics
from service.request_record import RequestRecord
from service.tracing import Tracing
from tests.fakes import until

pytestmark = pytest.mark.anyio


class Book:
    """A ledger, what it has entered, and a way to let requests begin and end."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "petseg.requests")
        self.metrics = Metrics()
        self.ledger = Ledger(self.metrics, Tracing())
        self._caplog = caplog

    def begin(self, count: int = 1) -> None:
        """So many requests are in flight."""
        for _ in range(count):
            self.ledger.begin()

    def end(self, request_id: str, status: int = 200, path: str = "/models") -> RequestRecord:
        """A request that has begun by now is over."""
        trace = Tracing().begin(None, "")
        record = RequestRecord(request_id, trace, "GET", path, route=path, status=status)
        record.ended_at = time.perf_counter()
        self.ledger.end(record)
        return record

    @property
    def lines(self) -> list[logging.LogRecord]:
        return [line for line in self._caplog.records if line.name == "petseg.requests"]

    @property
    def ids(self) -> list[str]:
        return [vars(line)["fields"]["request_id"] for line in self.lines]

    @property
    def counted(self) -> float | None:
        labels = {"route": "/models", "model": "", "output": "", "status": "200"}
        return self.metrics.registry.get_sample_value("petseg_requests_total", labels)


@pytest.fixture
def book(caplog: pytest.LogCaptureFixture) -> Book:
    return Book(caplog)


async def test_one_alone_is_entered_at_once(book: Book) -> None:
    book.begin()
    book.end("a")
    assert book.ids == ["a"]
    assert book.counted == 1


async def test_the_last_one_in_flight_enters_all_in_order(book: Book) -> None:
    book.begin(3)
    book.end("a")
    book.end("b")
    assert book.ids == []
    assert book.counted is None
    book.end("c")
    assert book.ids == ["a", "b", "c"]
    assert book.counted == 3


async def test_beside_others_they_are_entered_soon(book: Book) -> None:
    book.begin(3)
    book.end("a")
    book.end("b")
    await asyncio.wait_for(until(lambda: book.ids == ["a", "b"]), 5)
    book.end("c")
    assert book.ids == ["a", "b", "c"]


async def test_many_are_not_waited_with(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "LONGEST_WAIT_S", math.inf)
    book.begin(2 * ENTRIES_AT_ONCE)
    for number in range(ENTRIES_AT_ONCE):
        assert book.ids == []
        book.end(str(number))
    assert book.ids == [str(number) for number in range(ENTRIES_AT_ONCE)]
    book.end("next")
    assert len(book.ids) == ENTRIES_AT_ONCE


async def test_a_failure_of_the_service_is_told_at_once_behind_what_was_before(book: Book) -> None:
    book.begin(3)
    book.end("a")
    book.end("b", status=500)
    assert book.ids == ["a", "b"]
    assert book.lines[1].levelno == logging.WARNING


async def test_a_line_is_of_the_requests_end_not_of_its_entry(book: Book) -> None:
    book.begin(2)
    record = book.end("a")
    ended_at = time.time()
    await asyncio.wait_for(until(lambda: book.ids == ["a"]), 5)
    assert time.perf_counter() - record.ended_at >= ledger.LONGEST_WAIT_S
    assert book.lines[0].created == pytest.approx(ended_at, abs=0.5 * ledger.LONGEST_WAIT_S)


@pytest.mark.parametrize(("status", "is_told"), [(200, False), (404, True)])
async def test_probes_are_told_of_only_where_something_is_amiss(book: Book, status: int, is_told: bool) -> None:
    book.begin()
    book.end("probe", status, "/healthz")
    assert bool(book.ids) is is_told


async def test_one_that_cannot_be_entered_costs_no_other_its_entry(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no")

    count: Callable[..., None] = book.metrics.count_request
    book.begin(3)
    book.end("a")
    book.end("b")
    monkeypatch.setattr(book.metrics, "count_request", refuse)
    with pytest.raises(RuntimeError):
        book.end("c")
    monkeypatch.setattr(book.metrics, "count_request", count)
    book.begin()
    book.end("d")
    assert book.ids == ["b", "c", "d"]
