"""W3C Trace Context: one request's place in a trace that may have begun elsewhere and may go on elsewhere.

https://www.w3.org/TR/trace-context/
"""

import re
import secrets
from dataclasses import dataclass

SAMPLED = 1
"""The flag of `traceparent` that says: somebody records this trace."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_TRACESTATE = 512
"""Characters of `tracestate` that everyone must pass on; longer ones are left out whole."""


@dataclass(frozen=True)
class TraceContext:
    """Ids are lower-case hexadecimal."""

    trace_id: str
    """32 digits, shared by all that one first request caused."""
    span_id: str
    """16 digits, of this request here."""
    parent_id: str = ""
    """16 digits, of the caller's part; empty where the trace begins here."""
    flags: int = 0
    tracestate: str = ""
    """What other tracing systems want passed on, as it came."""

    @property
    def header(self) -> str:
        """The value of `traceresponse`, and of `traceparent` for whom this request should ask in turn."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def begin_trace() -> TraceContext:
    """A trace that begins here and that nobody records."""
    ids = secrets.token_hex(24)  # asking the system once
    return TraceContext(ids[:32], ids[32:])


def continue_trace(traceparent: str | None, tracestate: str = "") -> TraceContext:
    """This request's place in the caller's trace; in one of its own where the header is absent or malformed."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None:
        return begin_trace()
    version, trace_id, parent_id, flags, more = found.groups()
    is_well_formed = version != "ff" and (version != "00" or more is None) and int(trace_id, 16) and int(parent_id, 16)
    if not is_well_formed:
        return begin_trace()
    passed_on = tracestate if len(tracestate) <= _MAX_TRACESTATE else ""
    return TraceContext(trace_id, secrets.token_hex(8), parent_id, int(flags, 16) & SAMPLED, passed_on)
