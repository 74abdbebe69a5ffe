"""One log line for each request, and its place in the caller's trace."""

import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.logs import JsonFormatter
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Lines:
    """What the requests' logger has said, as JSON would show it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def all(self) -> list[dict[str, Any]]:
        records = [record for record in self._caplog.records if record.name == "petseg.requests"]
        return [json.loads(JsonFormatter().format(record)) for record in records]

    def only(self) -> dict[str, Any]:
        (line,) = self.all()
        return line


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO)
    return Lines(caplog)


async def post(client: httpx.AsyncClient, model: str = "colour", **options: Any) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": encode(picture())}, **options)


async def test_a_request_says_what_it_came_to(client: httpx.AsyncClient, lines: Lines) -> None:
    response = await post(client, headers={"x-request-id": "mine-1"})
    line = lines.only()
    told = {name: line[name] for name in ("level", "message", "method", "route", "model", "output", "status", "photos")}
    assert told == {
        "level": "info",
        "message": "request",
        "method": "POST",
        "route": "/segment/{model}",
        "model": "colour",
        "output": "png",
        "status": 200,
        "photos": 1,
    }
    assert line["bytes_in"] == int(response.request.headers["content-length"])
    assert line["bytes_out"] == len(response.content)
    stages = [line[f"{stage}_ms"] for stage in ("receive", "decode", "queue", "inference", "draw")]
    assert 0 < sum(stages) <= line["ms"]
    assert response.headers["traceresponse"] == f"00-{line['trace_id']}-{line['span_id']}-00"


async def test_a_refusal_names_its_problem(client: httpx.AsyncClient, lines: Lines) -> None:
    response = await post(client, data={"text": "a very private prompt"})
    line = lines.only()
    assert (line["status"], line["problem"], line["model"]) == (422, "prompt-mismatch", "colour")
    assert response.json()["type"].endswith(line["problem"])


async def test_nothing_of_the_callers_is_told(client: httpx.AsyncClient, lines: Lines) -> None:
    secret = "do-not-tell"
    await client.post(
        f"/segment/text?text={secret}",
        files={"image": (f"{secret}.png", encode(picture()))},
        headers={"authorization": f"Bearer {secret}", "x-api-key": secret, "cookie": secret, "user-agent": secret},
    )
    await client.get(f"/nope?key={secret}")
    assert len(lines.all()) == 2
    assert secret not in json.dumps(lines.all())


async def test_an_address_that_leads_nowhere_is_cut(client: httpx.AsyncClient, lines: Lines) -> None:
    await client.get("/" + "x" * 500)
    line = lines.only()
    assert (line["path"], line["status"]) == ("/" + "x" * 99, 404)
    assert "route" not in line


async def test_probes_are_quiet_while_all_is_well(client: httpx.AsyncClient, app: FastAPI, lines: Lines) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await client.get(path)).status_code == 200
    assert lines.all() == []
    app.state.service.drain()
    await client.get("/readyz")
    line = lines.only()
    assert (line["level"], line["status"], line["problem"]) == ("warning", 503, "not-ready")


async def test_the_callers_trace_goes_on(client: httpx.AsyncClient, lines: Lines) -> None:
    response = await post(client, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"})
    line = lines.only()
    assert (line["trace_id"], line["parent_id"]) == (TRACE, PARENT)
    assert response.headers["traceresponse"] == f"00-{TRACE}-{line['span_id']}-01"


async def test_two_traceparents_are_none(client: httpx.AsyncClient, lines: Lines) -> None:
    twice = [("traceparent", f"00-{TRACE}-{PARENT}-01")] * 2
    await client.get("/models", headers=twice)
    line = lines.only()
    assert line["trace_id"] != TRACE
    assert "parent_id" not in line


async def test_lines_of_the_code_within_carry_the_requests_id(
    client: httpx.AsyncClient, checkpoints: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (broken,) = [each.model for each in checkpoints if each.name == "broken"]
    broken.is_broken = True
    shown: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(json.loads(JsonFormatter().format(record)))

    keeper = Keeper()
    logging.getLogger("petseg").addHandler(keeper)
    try:
        photos = [("image", encode(picture())), ("image", encode(picture(seed=1)))]
        await client.post("/segment/broken/batch", files=photos, headers={"x-request-id": "mine-2"})
    finally:
        logging.getLogger("petseg").removeHandler(keeper)
        broken.is_broken = False
    failures = [line for line in shown if line["logger"] == "petseg.batches"]
    assert [line["request_id"] for line in failures] == ["mine-2", "mine-2"]
