"""The routes that FastAPI describes and does not serve: which they are, and what they hold while they answer."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from service.direct_routes import DirectRoute, DirectRouting
from service.pipeline import Pipeline
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio

PHOTO = encode(picture())


class Greeting(DirectRoute):
    """Calls its endpoint with a word instead of what the signature depends on."""

    async def answer(self, request: Request, send: Send) -> None:
        await PlainTextResponse(await self.endpoint("direct"))(request.scope, request.receive, send)


async def greet(word: str = "by way of FastAPI") -> str:
    return word


def routed(prefix: str) -> FastAPI:
    """An app with one such route in a router within a router, behind `prefix`."""
    inner, outer, app = APIRouter(route_class=Greeting), APIRouter(), FastAPI()
    inner.add_api_route("/greet", greet)
    outer.include_router(inner)
    app.include_router(outer, prefix=prefix)
    return app


def asked(path: str, method: str = "GET") -> Scope:
    headers: list[tuple[bytes, bytes]] = []
    return {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}


async def unanswered(scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"] = "passed on"


async def never() -> Message:
    raise AssertionError("nobody reads a body")


class Sent(list[Message]):
    """What an app sends."""

    async def __call__(self, message: Message) -> None:
        self.append(message)


async def test_a_direct_route_is_found_in_included_routers() -> None:
    sent, scope = Sent(), asked("/greet")
    await DirectRouting(unanswered, routed("").routes)(scope, never, sent)
    assert sent[1]["body"] == b"direct"
    assert (scope["route"].path, scope["path_params"], "state" in scope) == ("/greet", {}, False)


@pytest.mark.parametrize(
    ("prefix", "path", "method"), [("", "/other", "GET"), ("", "/greet", "PUT"), ("/v1", "/greet", "GET")]
)
async def test_all_else_is_passed_on(prefix: str, path: str, method: str) -> None:
    sent, scope = Sent(), asked(path, method)
    await DirectRouting(unanswered, routed(prefix).routes)(scope, never, sent)
    assert (sent, scope["state"], "route" in scope) == ([], "passed on", False)


async def test_both_ways_of_asking_for_masks_are_direct(app: FastAPI) -> None:
    layer: Any = app.build_middleware_stack()
    while not isinstance(layer, DirectRouting):
        layer = layer.app
    found = [
        route
        for route in layer.routes
        for path in ("/segment/x", "/segment/x/batch")
        if route.matches(asked(path, "POST"))[0] is Match.FULL
    ]
    assert [route.path for route in found] == ["/segment/{model}", "/segment/{model}/batch"]


@pytest.mark.parametrize("path", ["/segment/colour", "/segment/colour/batch"])
async def test_other_methods_are_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.put(path, content=PHOTO)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["type"] == "/problems/method-not-allowed"


@pytest.mark.parametrize("path", ["/segment/colour", "/segment/colour/batch"])
async def test_the_pipeline_is_held_until_the_answer_is_sent(
    app: FastAPI, client: httpx.AsyncClient, path: str
) -> None:
    request = client.build_request("POST", path, files={"image": PHOTO})
    unread: list[Message] = [{"type": "http.request", "body": request.read(), "more_body": False}]
    pipeline: Pipeline = app.state.service.pipelines["colour"]
    seen: list[tuple[str, int]] = []

    async def receive() -> Message:
        return unread.pop() if unread else await forever()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200
        seen.append((message["type"], pipeline.users))

    scope = asked(path, "POST")
    scope["headers"] = [(name.lower(), value) for name, value in request.headers.raw]
    await app(scope, receive, send)
    assert seen[0] == ("http.response.start", 1)
    assert seen[-1][0] == "http.response.body"
    assert [users for _, users in seen] == [1] * len(seen)
    assert pipeline.users == 0


async def forever() -> Message:
    """A client that waits for its answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable: nobody sets the event")


async def test_a_refused_request_holds_nothing(app: FastAPI, client: httpx.AsyncClient) -> None:
    answer = await client.post("/segment/colour", content=b"no photo", headers={"content-type": "image/png"})
    assert answer.status_code == 415
    assert app.state.service.pipelines["colour"].users == 0
