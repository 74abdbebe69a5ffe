"""OpenTelemetry spans of requests: PETSEG_TRACES=otlp, with the extra `otel`. Off, nothing here is imported.

    POST /segment/{model}      child of the caller's span where it sent a traceparent
      receive queue decode queue inference queue draw

The spans are made when a request is over, of what its record holds anyway: while it runs they cost nothing, and no
thread needs to know of them. Of a batch's photos there are none. Where spans go and which traces are kept is set by
OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.
"""

import os
import time
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from service.request_record import RequestRecord
from service.trace_context import TraceContext, continue_trace
from service.tracing import Tracing


@dataclass(frozen=True, kw_only=True)
class SpanTrace(TraceContext):
    """A request's place in a trace, with the span that stands for it."""

    span: Span


class SpanTracing(Tracing):
    """With spans, handed to `processor`: by default in batches, from a thread of their own, to the OTLP endpoint."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        own = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "petseg"), "service.version": version("petseg")}
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("petseg")

    def begin(self, traceparent: str | None, tracestate: str) -> TraceContext:
        """A new request's place and its span; the sampler may decide not to record it."""
        caller = continue_trace(traceparent, tracestate)
        span = self._tracer.start_span("request", remote_parent(caller), SpanKind.SERVER)
        place = span.get_span_context()
        return SpanTrace(
            trace_id=f"{place.trace_id:032x}",
            span_id=f"{place.span_id:016x}",
            parent_id=caller.parent_id,
            flags=int(place.trace_flags) & TraceFlags.SAMPLED,
            tracestate=place.trace_state.to_header(),
            span=span,
        )

    def end(self, record: RequestRecord) -> None:
        """End the request's span and add one for each stage."""
        trace = record.trace
        if not isinstance(trace, SpanTrace) or not trace.span.is_recording():
            return
        now_ns, now = time.time_ns(), time.perf_counter()

        def unix_ns(moment: float) -> int:
            return now_ns - round(1e9 * (now - moment))

        within = set_span_in_context(trace.span, Context())
        for name, started_at, ended_at in record.stages:
            self._tracer.start_span(name, within, start_time=unix_ns(started_at)).end(unix_ns(ended_at))
        trace.span.update_name(f"{record.method} {record.route}".rstrip())
        for name, value in attributes(record).items():
            trace.span.set_attribute(name, value)
        if record.status >= 500:
            trace.span.set_status(Status(StatusCode.ERROR, record.problem or None))
        trace.span.end(unix_ns(record.ended_at))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def remote_parent(caller: TraceContext) -> Context:
    """The caller's span as OpenTelemetry's context; an empty one where the trace begins here."""
    if not caller.parent_id:
        return Context()
    place = SpanContext(
        int(caller.trace_id, 16),
        int(caller.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(caller.flags),
        trace_state=TraceState.from_header([caller.tracestate] if caller.tracestate else []),
    )
    return set_span_in_context(NonRecordingSpan(place), Context())


def attributes(record: RequestRecord) -> dict[str, str | int]:
    """What the request came to, by OpenTelemetry's names where it has them."""
    found: dict[str, str | int] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "http.request.body.size": record.bytes_in,
        "http.response.body.size": record.bytes_out,
        "error.type": record.problem,
        "petseg.request_id": record.request_id,
        "petseg.model": record.model,
        "petseg.output": record.output,
        "petseg.photos": record.photos,
    }
    return {name: value for name, value in found.items() if value not in ("", 0)}
