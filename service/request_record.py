"""What one HTTP request came to. Routes and error handlers fill it in; the middleware logs, counts and traces it."""

import time
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from service.stages import RECEIVE, Stage


@dataclass
class RequestRecord:
    """One request; an empty word or 0 stands for what it never came to say."""

    request_id: str
    method: str
    path: str
    started_at: float = field(default_factory=time.perf_counter)
    """On the clock of `time.perf_counter()`, as all stages."""
    route: str = ""
    """The path's pattern, such as /segment/{model}: figures go by it, since paths are the callers' to choose."""
    model: str = ""
    output: str = ""
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


def record_of(connection: HTTPConnection) -> RequestRecord:
    """The record that the middleware made for this request."""
    record: RequestRecord = connection.state.record
    return record
