import asyncio
import hashlib
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.affinity import ask_app, name_photo, plain_scope, receive_body
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio

PHOTO = encode(picture())
DIGEST = hashlib.sha256(PHOTO).hexdigest()


def scope_of(request: httpx.Request) -> Scope:
    return {
        "type": "http",
        "method": request.method,
        "path": request.url.path,
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }


async def named(path: str = "/segment/prompt", method: str = "POST", **content: Any) -> str | None:
    request = httpx.Request(method, f"http://test{path}", **content)
    return await name_photo(scope_of(request), request.read())


async def test_a_photo_has_one_name_however_it_is_sent() -> None:
    raw: dict[str, Any] = {"content": PHOTO, "headers": {"content-type": "image/png"}}
    assert await named(files={"image": PHOTO}, data={"x": "1", "y": "2"}) == DIGEST
    assert await named("/segment/clip?output=rle", **raw) == DIGEST
    assert await named(data={"image_id": f"sha256:{DIGEST}", "x": "1", "y": "2"}) == DIGEST
    assert await named(f"/segment/prompt?image_id=sha256:{DIGEST}") == DIGEST


async def test_what_is_about_no_photo_or_many_has_no_name() -> None:
    assert await named("/models", method="GET") is None
    assert await named("/segment/unet/batch", files={"image": PHOTO}) is None


async def test_what_will_be_refused_has_no_name() -> None:
    assert await named(content=b"") is None
    assert await named(data={"image_id": "no digest"}) is None
    assert await named(content=b"{}", headers={"content-type": "application/json"}) is None


async def test_a_scope_as_data_leaves_the_process_behind() -> None:
    scope = {"type": "http", "path": "/", "app": object(), "state": {"a": object()}, "extensions": {}}
    assert plain_scope(scope) == {"type": "http", "path": "/"}


def receiver(*messages: Message) -> Receive:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


def chunk(body: bytes, more_body: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


async def test_the_body_is_read_until_it_is_too_large() -> None:
    chunks = (chunk(b"ab"), chunk(b"cd"), chunk(b"ef", more_body=False))
    assert await receive_body(receiver(*chunks), max_bytes=6) == b"abcdef"
    assert await receive_body(receiver(*chunks), max_bytes=3) == b"abcd"


async def test_a_client_that_leaves_while_it_sends() -> None:
    with pytest.raises(ClientDisconnect):
        await receive_body(receiver(chunk(b"ab"), {"type": "http.disconnect"}), max_bytes=6)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def test_an_app_asked_as_a_function() -> None:
    start, body = [message async for message in ask_app(echo, {"type": "http"}, b"photo")]
    assert start["status"] == 200
    assert body["body"] == b"photo"


async def test_an_answer_that_breaks_off_is_no_whole_answer() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    answer = ask_app(breaks, {"type": "http"}, b"")
    assert (await anext(answer))["status"] == 200
    with pytest.raises(RuntimeError, match="broken"):
        await anext(answer)


async def test_hanging_up_cancels_the_app() -> None:
    cancelled = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await receive()
            await receive()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    answer = ask_app(waits, {"type": "http"}, b"")
    await anext(answer)
    await answer.aclose()
    await asyncio.wait_for(cancelled.wait(), timeout=10)
