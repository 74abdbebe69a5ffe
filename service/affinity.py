"""Which photo a request is about, and the app asked as a function of a whole request.

What a door in front of many replicas needs, so that all requests about one photo reach the replica that holds its
features. Knows nothing of Ray, which service/scale.py puts around it.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope

from service.errors import Problem
from service.forms import read_segment

_SEGMENT_PATH = re.compile(r"/segment/[^/]+")

_PLAIN_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""What of a scope is data; the rest (the app, its state, extensions) belongs to the process that received it."""


def plain_scope(scope: Scope) -> Scope:
    """`scope` as data that another process can take up."""
    return {name: scope[name] for name in _PLAIN_SCOPE if name in scope}


async def receive_body(receive: Receive, max_bytes: int) -> bytes:
    """The body, up to the chunk that exceeds `max_bytes`: enough for the app to refuse it.

    Raises ClientDisconnect.
    """
    chunks: list[bytes] = []
    received, more = 0, True
    while more and received <= max_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        received += len(chunks[-1])
        more = message.get("more_body", False)
    return b"".join(chunks)


async def name_photo(scope: Scope, body: bytes) -> str | None:
    """sha256 (hexadecimal) of the one photo that a request sends or names by its image id.

    None for requests about no photo or many, and for those that the app will refuse: any replica can answer these.
    """
    if scope["method"] != "POST" or not _SEGMENT_PATH.fullmatch(scope["path"]):
        return None
    try:
        upload, fields = await read_segment(Request(scope, _replay(body)), max_body_bytes=len(body))
    except Problem:
        return None
    if upload is None:
        return fields.image_id.removeprefix("sha256:") if fields.image_id else None
    return await asyncio.to_thread(_digest, upload.data)


async def ask_app(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
    """The messages of the app's answer as they come; closing the generator hangs up on the app.

    Raises what the app raises.
    """
    answer: asyncio.Queue[Message | None] = asyncio.Queue()
    running = asyncio.ensure_future(app(scope, _replay(body), answer.put))
    running.add_done_callback(lambda _: answer.put_nowait(None))
    try:
        while (message := await answer.get()) is not None:
            yield message
        await running
    finally:
        running.cancel()


def _replay(body: bytes) -> Receive:
    """`receive` of a client that has sent `body` and then waits for the answer."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable: nobody sets the event")

    return receive


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
