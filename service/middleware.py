"""Around every request: an id, the total time, one log line, and a plain 500 for what nobody caught."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InternalError, problem_response

logger = logging.getLogger("petseg.requests")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Gives each request an id (the caller's X-Request-Id, if it is a plain word) and each answer its headers.

    A defect becomes a 500 problem without the exception's text; the log has its trace under the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                total = f"total;dur={1000 * (time.perf_counter() - started_at):.3f}"
                headers["Server-Timing"] = ", ".join(filter(None, [headers.get("server-timing"), total]))
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise  # the answer has begun: closing the connection is all that is left
            problem = InternalError(f"the service failed on this request; its log has the trace under {request_id}")
            await problem_response(Request(scope), problem)(scope, receive, send_with_headers)
        finally:
            took_ms = 1000 * (time.perf_counter() - started_at)
            logger.info("%s %s %d %.1f ms %s", scope["method"], scope["path"], status, took_ms, request_id)
