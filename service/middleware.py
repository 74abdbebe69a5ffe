"""Around every request: its id, its place in a trace, its record, and a plain 500 for a defect."""

import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.errors import CLIENT_CLOSED_REQUEST, InternalError, problem_response
from service.ledger import QUIET_PATHS, Ledger
from service.pipeline import Service
from service.request_record import RequestRecord
from service.tracing import Tracing

logger = logging.getLogger("petseg.requests")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_SERVER_TIMING = b"server-timing"

_UNTRACED = Tracing()


class RequestContext:
    """Gives each request an id (the caller's X-Request-Id, if it is a plain word) and each answer its headers.

    A defect becomes a 500 problem without the exception's text; the log has its trace under the id.
    """

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self.app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = self._begin(scope)
        scope.setdefault("state", {}).update(request_id=record.request_id, record=record)
        token = logs.request_id.set(record.request_id)
        self._ledger.begin()

        async def counted_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                add_headers(message, record)
                if is_draining(scope):  # the next request on it would meet a process that is gone
                    MutableHeaders(scope=message)["Connection"] = "close"
            record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted_receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", record.request_id)
            if record.status:
                raise  # the answer has begun: closing the connection is all that is left
            detail = f"the service failed on this request; its log has the trace under {record.request_id}"
            await problem_response(Request(scope), InternalError(detail))(scope, receive, send_with_headers)
        finally:
            record.route = getattr(scope.get("route"), "path", "")
            record.problem = scope["state"].get("problem", "")
            record.status = record.status or CLIENT_CLOSED_REQUEST
            record.ended_at = time.perf_counter()
            self._ledger.end(record)
            logs.request_id.reset(token)

    def _begin(self, scope: Scope) -> RequestRecord:
        given = values_of(scope, b"x-request-id")
        request_id = given[0] if given and _REQUEST_ID.fullmatch(given[0]) else secrets.token_hex(16)
        tracing = _UNTRACED if scope["path"] in QUIET_PATHS else self._ledger.tracing
        parents = values_of(scope, b"traceparent")
        trace = tracing.begin(parents[0] if len(parents) == 1 else None, ",".join(values_of(scope, b"tracestate")))
        return RequestRecord(request_id, trace, scope["method"], scope["path"])


def values_of(scope: Scope, name: bytes) -> list[str]:
    """What the request says in each header `name`, which is in lower case."""
    return [value.decode("latin-1") for given, value in scope["headers"] if given == name]


def add_headers(message: Message, record: RequestRecord) -> None:
    """Say the request's id, its place in a trace, and its whole time behind the stages that the answer tells of.

    Done on the plain list: MutableHeaders goes through all of it for every header that it sets.
    """
    total = f"total;dur={1000 * (time.perf_counter() - record.started_at):.3f}".encode()
    headers = message["headers"] = list(message["headers"])
    headers += ((b"x-request-id", record.request_id.encode()), (b"traceresponse", record.trace.header.encode()))
    for place, (name, value) in enumerate(headers):
        if name == _SERVER_TIMING:
            headers[place] = (name, value + b", " + total)
            return
    headers.append((_SERVER_TIMING, total))


def is_draining(scope: Scope) -> bool:
    """Whether the process is about to end; False before its lifespan has begun."""
    service: Service[Any] | None = getattr(scope["app"].state, "service", None)
    return service is not None and service.is_draining
