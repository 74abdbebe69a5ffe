"""A request's place in a trace: begun here or by the caller, told in the log line and handed on in the answer.

This much always works and needs no package; `spans` adds spans for OpenTelemetry.
"""

from service.request_record import RequestRecord
from service.trace_context import TraceContext, continue_trace


class Tracing:
    """Without spans."""

    def begin(self, traceparent: str | None, tracestate: str) -> TraceContext:
        """A new request's place in the caller's trace, or in one of its own."""
        return continue_trace(traceparent, tracestate)

    def end(self, record: RequestRecord) -> None:
        """The request is over; called some time after its end."""

    def close(self) -> None:
        """The process ends."""
