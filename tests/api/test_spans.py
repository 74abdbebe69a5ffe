"""OpenTelemetry: one span for each request, with its stages below it, in the caller's trace."""

import sys

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from models.checkpoint import Checkpoint
from service import app as service_app
from service.app import create_app, create_tracing
from service.settings import Settings, SettingsError
from service.spans import SpanTracing
from service.stages import STAGES
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def app(checkpoints: list[Checkpoint], exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    def create(settings: Settings) -> SpanTracing:
        return SpanTracing(SimpleSpanProcessor(exporter))

    monkeypatch.setattr(service_app, "create_tracing", create)
    return create_app(Settings(image_threads=2, max_batch_size=8), checkpoints)


def spans_of(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The one request's span, and those below it."""
    finished = exporter.get_finished_spans()
    (root,) = [span for span in finished if span.kind.name == "SERVER"]
    return root, [span for span in finished if span is not root]


async def post(client: httpx.AsyncClient, **options: object) -> httpx.Response:
    return await client.post("/segment/colour", files={"image": encode(picture())}, **options)  # type: ignore[arg-type]


async def test_a_request_and_its_stages(client: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    response = await post(client, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"})
    root, stages = spans_of(exporter)
    assert root.name == "POST /segment/{model}"
    assert root.parent is not None and root.attributes is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.context.trace_state.to_header() == "vendor=1"
    assert root.attributes["petseg.model"] == "colour"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["petseg.request_id"] == response.headers["x-request-id"]
    assert root.resource.attributes["service.name"] == "petseg"
    assert response.headers["traceresponse"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
    assert {span.name for span in stages} == set(STAGES)
    assert {f"{span.context.trace_id:032x}" for span in (root, *stages)} == {TRACE}
    assert {span.parent and span.parent.span_id for span in stages} == {root.context.span_id}
    for span in stages:
        assert span.start_time is not None and span.end_time is not None and root.end_time is not None
        assert span.start_time <= span.end_time <= root.end_time


async def test_a_callers_wish_not_to_record_is_heard(client: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    response = await post(client, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert exporter.get_finished_spans() == ()


async def test_probes_have_no_spans(client: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    await client.get("/healthz")
    await client.get("/metrics")
    assert exporter.get_finished_spans() == ()


async def test_a_failure_is_marked(client: httpx.AsyncClient, app: FastAPI, exporter: InMemorySpanExporter) -> None:
    app.state.service.drain()
    await post(client)
    root, stages = spans_of(exporter)
    assert root.status.status_code.name == "ERROR"
    assert root.attributes is not None and root.attributes["error.type"] == "not-ready"
    assert stages == []


def test_off_nothing_of_opentelemetry_is_asked_for() -> None:
    assert type(create_tracing(Settings())).__name__ == "Tracing"


def test_without_the_packages_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(
        SettingsError, match=r"PETSEG_TRACES: got otlp, wanted OpenTelemetry installed .*petseg\[otel\]"
    ):
        create_tracing(Settings(traces="otlp"))
