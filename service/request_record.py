"""What one HTTP request came to. Routes and error handlers fill it in; the ledger logs, counts and traces it."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

from service.stages import RECEIVE, Stage, sum_seconds
from service.trace_context import TraceContext

_MAX_LOGGED_PATH = 100


@dataclass
class RequestRecord:
    """One request; an empty word or 0 stands for what it never came to say."""

    request_id: str
    trace: TraceContext
    method: str
    path: str
    started_at: float = field(default_factory=time.perf_counter)
    """On the clock of `time.perf_counter()`, as all stages."""
    ended_at: float = math.nan
    """On the same clock; not a number while the request is in flight."""
    route: str = ""
    """The path's pattern, such as /segment/{model}: figures go by it, since paths are the callers' to choose."""
    model: str = ""
    output: str = ""
    caller: str = ""
    """Name of the API key that was presented, never the key itself; empty without one."""
    photos: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    problem: str = ""
    """Slug of the problem that was answered."""
    stages: list[Stage] = field(default_factory=list)

    def note_received(self) -> None:
        """The body has been read."""
        self.stages.append(Stage(RECEIVE, self.started_at, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """From its first byte to the last one of its answer."""
        return self.ended_at - self.started_at

    def log_fields(self) -> dict[str, Any]:
        """What the request's log line says; the path only where no route matched, since routes say it better."""
        found = {
            "request_id": self.request_id,  # the line may be written while another request is served
            "method": self.method,
            "route": self.route,
            "path": "" if self.route else self.path[:_MAX_LOGGED_PATH],
            "model": self.model,
            "output": self.output,
            "caller": self.caller,
            "status": self.status,
            "problem": self.problem,
            "photos": self.photos,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "ms": milliseconds(self.seconds),
            **{f"{name}_ms": milliseconds(spent) for name, spent in sum_seconds(self.stages).items()},
            "trace_id": self.trace.trace_id,
            "span_id": self.trace.span_id,
            "parent_id": self.trace.parent_id,
        }
        return {name: value for name, value in found.items() if value}  # neither "" nor 0


def milliseconds(seconds: float) -> float:
    """Rounded for people: a microsecond is the last digit."""
    return round(1000 * seconds, 3)


def record_of(connection: HTTPConnection) -> RequestRecord:
    """The record that the middleware made for this request."""
    record: RequestRecord = connection.state.record
    return record
