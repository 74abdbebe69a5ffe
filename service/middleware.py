"""Around every request: an id, the total time, one log line, its figures, and a plain 500 for what nobody caught."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import CLIENT_CLOSED_REQUEST, InternalError, problem_response
from service.metrics import Metrics
from service.request_record import RequestRecord

logger = logging.getLogger("petseg.requests")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Gives each request an id (the caller's X-Request-Id, if it is a plain word) and each answer its headers.

    A defect becomes a 500 problem without the exception's text; the log has its trace under the id.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        record = RequestRecord(request_id, scope["method"], scope["path"])
        scope.setdefault("state", {}).update(request_id=request_id, record=record)

        async def counted_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                total = f"total;dur={1000 * (time.perf_counter() - record.started_at):.3f}"
                headers["Server-Timing"] = ", ".join(filter(None, [headers.get("server-timing"), total]))
            record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            with self._metrics.requests_in_flight.track_inprogress():
                await self.app(scope, counted_receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", request_id)
            if record.status:
                raise  # the answer has begun: closing the connection is all that is left
            problem = InternalError(f"the service failed on this request; its log has the trace under {request_id}")
            await problem_response(Request(scope), problem)(scope, receive, send_with_headers)
        finally:
            record.route = getattr(scope.get("route"), "path", "")
            record.problem = scope["state"].get("problem", "")
            self._finish(record)

    def _finish(self, record: RequestRecord) -> None:
        seconds = time.perf_counter() - record.started_at
        self._metrics.count_request(
            route=record.route,
            model=record.model,
            output=record.output,
            status=record.status or CLIENT_CLOSED_REQUEST,
            problem=record.problem,
            seconds=seconds,
            stages=record.stages,
        )
        logger.info("%s %s %d %.1f ms %s", record.method, record.path, record.status, 1000 * seconds, record.request_id)
