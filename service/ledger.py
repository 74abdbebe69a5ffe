"""What requests leave behind once they are over: a log line, figures, spans. Entered several at a time under load.

Between two requests forward passes empty the CPU's caches of all that writing such an entry runs through. In a row,
entries save the event loop up to a tenth of its time for a photo (benchmarks/steps.md).
"""

import asyncio
import logging
import time

from service.metrics import Metrics
from service.request_record import RequestRecord
from service.tracing import Tracing

logger = logging.getLogger("petseg.requests")

ENTRIES_AT_ONCE = 16

LONGEST_WAIT_S = 0.1
"""For others to be entered with."""

QUIET_PATHS = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines: without spans, and while all is well without log lines."""


class Ledger:
    """Enters what is over: at once where no other request is in flight, or where the service has failed on it.

    One for each process, whichever of its ports a request comes by. Lives on one event loop at a time.
    """

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self.tracing = tracing
        self._metrics = metrics
        self._in_flight = 0
        self._waiting: list[RequestRecord] = []
        self._clock: asyncio.TimerHandle | None = None
        metrics.requests_in_flight.set_function(lambda: self._in_flight)

    def begin(self) -> None:
        """A request is in flight."""
        self._in_flight += 1

    def end(self, record: RequestRecord) -> None:
        """A request is over, and `record` whole."""
        self._in_flight -= 1
        self._waiting.append(record)
        if not self._in_flight or len(self._waiting) >= ENTRIES_AT_ONCE or record.status >= 500:
            self._enter_all()
        elif len(self._waiting) == 1:
            self._clock = asyncio.get_running_loop().call_later(LONGEST_WAIT_S, self._enter_all)

    def _enter_all(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        while self._waiting:
            self._enter(self._waiting.pop(0))

    def _enter(self, record: RequestRecord) -> None:
        self._metrics.count_request(
            route=record.route,
            model=record.model,
            output=record.output,
            status=record.status,
            problem=record.problem,
            seconds=record.seconds,
            stages=record.stages,
        )
        self.tracing.end(record)
        is_quiet = record.path in QUIET_PATHS and record.status < 400
        level = logging.WARNING if record.status >= 500 else logging.DEBUG if is_quiet else logging.INFO
        if logger.isEnabledFor(level):
            # Not by `log`, which looks for its caller on the stack first.
            line = logger.makeRecord(
                logger.name, level, __file__, 0, "request", (), None, extra={"fields": record.log_fields()}
            )
            line.created = time.time() - (time.perf_counter() - record.ended_at)
            logger.handle(line)
