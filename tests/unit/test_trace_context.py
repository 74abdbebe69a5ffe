"""W3C Trace Context: what callers send is continued, what is malformed begins anew."""

import re

import pytest

from service.trace_context import begin_trace, continue_trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(("flags", "kept"), [("00", 0), ("01", 1), ("03", 1)])
def test_a_callers_trace_goes_on(flags: str, kept: int) -> None:
    trace = continue_trace(f"00-{TRACE}-{PARENT}-{flags}", "vendor=1")
    assert (trace.trace_id, trace.parent_id, trace.flags, trace.tracestate) == (TRACE, PARENT, kept, "vendor=1")
    assert trace.header == f"00-{TRACE}-{trace.span_id}-0{kept}"
    assert trace.span_id != PARENT


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert continue_trace(f"cc-{TRACE}-{PARENT}-01-what-the-future-brings").trace_id == TRACE


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.more",
    ],
)
def test_without_a_well_formed_header_a_trace_begins(header: str | None) -> None:
    trace = continue_trace(header, "vendor=1")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace.header)
    assert (trace.parent_id, trace.tracestate) == ("", "")
    assert TRACE not in trace.header


def test_tracestate_is_passed_on_whole_or_not_at_all() -> None:
    assert continue_trace(f"00-{TRACE}-{PARENT}-01", "x" * 512).tracestate == "x" * 512
    assert continue_trace(f"00-{TRACE}-{PARENT}-01", "x" * 513).tracestate == ""


def test_every_trace_has_ids_of_its_own() -> None:
    assert len({begin_trace().trace_id for _ in range(50)}) == 50
