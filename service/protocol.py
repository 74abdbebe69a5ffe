"""One TCP connection within bounds: uvicorn's HTTP protocol with the clocks and sizes that it lacks.

For clients that open connections and say nothing, say it slowly, say too much before the body, or do not listen to the
answer. What happens between a request's headers and its answer is the admission's and the pipeline's to bound.
"""

import asyncio
import http
import json
import logging
import uuid
from collections import OrderedDict
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.answer_transport import AnswerTransport
from service.errors import MEDIA_TYPE, HeadersTooLarge, InvalidRequest, Problem
from service.settings import Settings

logger = logging.getLogger("petseg.connections")


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on connections, headers, and the time of everything that the app does not see."""

    settings: ClassVar[Settings]
    idle: "ClassVar[OrderedDict[BoundedProtocol, None]]"
    """Connections without a request, or with an answered last one, from the one that has been so longest."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection.

        Where there are as many as there may be, the one that has been idle longest is closed for it, or where none is
        idle, it is dropped without a word.
        """
        super().connection_made(AnswerTransport(transport, self.loop, self._begin_to_linger))
        self._clock: asyncio.TimerHandle | None = None
        self._write_clock: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._is_within_headers = False
        self._has_advanced = False
        self._is_whole = True
        self._is_refused = False
        self._has_lingered = False
        if len(self.connections) > self.settings.max_connections:
            if not self.idle:
                logger.warning("dropped a connection: got one more than %d", self.settings.max_connections)
                transport.abort()
                return
            self.idle.popitem(last=False)[0].transport.close()
        self._await_headers()
        self.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self.idle.pop(self, None)
        self._stop_clock()
        self._stop_write_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what of it is headers may not be longer than the limit, nor take longer.

        Trailers and what else may stand between a body's chunks count like headers: the app never sees their bytes.
        """
        if self._has_lingered:
            return
        began_within_headers, self._has_advanced = self._is_within_headers, False
        super().data_received(data)
        is_between_chunks = not (self._is_whole or began_within_headers or self._has_advanced)
        if self._is_within_headers if began_within_headers else is_between_chunks:
            self._header_bytes += len(data)
            if self._header_bytes > self.settings.max_header_bytes:
                self._refuse_headers()
        has_stray_bytes = self._has_no_request and self.timeout_keep_alive_task is None
        if self._clock is None and (self._is_within_headers or has_stray_bytes):
            self._await_headers()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.idle.pop(self, None)
        self._is_within_headers = True
        self._is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header. Trailers are not among them: what a body ends with must not change what has been admitted."""
        if self._is_within_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the app, unless its headers came too large in one piece."""
        if self._is_refused:
            return
        self._header_bytes = 0
        self._stop_clock()
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > (
            self.settings.max_header_bytes
        ):
            self._refuse_headers()
        else:
            self._is_within_headers = False
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._advance()
        if not self._is_refused:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        """A chunk begins, or the last one, after which only trailers come."""
        self._advance()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._is_whole = True
        if not self._is_refused:
            super().on_message_complete()
        self._note_idleness()

    def on_response_complete(self) -> None:
        """The answer is whole. A body that nobody wants any more may not go on coming for long."""
        super().on_response_complete()
        self._note_idleness()
        if not self._is_whole and not self.transport.is_closing():
            self._stop_clock()
            self._clock = self.loop.call_later(self.settings.header_timeout_s, self._close_unless_whole)

    def pause_writing(self) -> None:
        """The client does not read as fast as the answer is written."""
        super().pause_writing()
        self._watch_writing(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stop_write_clock()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(InvalidRequest("got bytes that are no HTTP/1.1 request; see /docs"), status=400)

    def _advance(self) -> None:
        self._has_advanced = True
        self._header_bytes = 0

    @property
    def _has_no_request(self) -> bool:
        return self._is_whole and (self.cycle is None or self.cycle.response_complete)

    def _note_idleness(self) -> None:
        """A request has ended, or its answer: whichever ends last leaves the connection idle."""
        if not self._has_no_request or self.transport.is_closing():
            return
        self.idle[self] = None
        self._stop_clock()
        if self.timeout_keep_alive_task is None:  # uvicorn's ended with the bytes that came after the answer
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _begin_to_linger(self) -> bool:
        """Whether the connection, which has answered its last, is still read for a while: the client is sending."""
        is_body_coming = not self._is_whole and not self._is_within_headers
        if self._has_lingered or not (is_body_coming or self._is_refused):
            return False
        self._has_lingered = True
        self._stop_clock()
        self._clock = self.loop.call_later(self.settings.header_timeout_s, self.transport.close)
        self.idle[self] = None
        self.flow.resume_reading()
        return True

    def _await_headers(self) -> None:
        self._clock = self.loop.call_later(self.settings.header_timeout_s, self._close_unless_headers)

    def _close_unless_headers(self) -> None:
        self._clock = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_headers()  # the next request may take its time while this one is being answered
        else:
            self.transport.close()

    def _close_unless_whole(self) -> None:
        self._clock = None
        if not self._is_whole:
            self._has_lingered = True  # for as long as it waited for the body
            self.transport.close()

    def _watch_writing(self, left_bytes: int) -> None:
        self._write_clock = self.loop.call_later(self.settings.write_timeout_s, self._abort_unless_read, left_bytes)

    def _abort_unless_read(self, left_bytes: int) -> None:
        """Give a client that reads slowly more time, and end with one that reads nothing."""
        now_bytes = self.transport.get_write_buffer_size()
        if now_bytes < left_bytes:
            self._watch_writing(now_bytes)
            return
        self._write_clock = None
        logger.info("dropped a connection: %d bytes of its answer went unread", now_bytes)
        self.transport.abort()

    def _refuse_headers(self) -> None:
        limit = self.settings.max_header_bytes
        self._refuse(
            HeadersTooLarge(f"got more than {limit} bytes of request line and headers, wanted at most {limit}")
        )

    def _refuse(self, problem: Problem, status: int | None = None) -> None:
        """Answer on the wire and close: there is no request that the app could answer.

        An answer that has begun is cut off instead, and one that is whole gets no second.
        """
        self._is_refused = True
        if self.transport.is_closing():
            return
        has_begun = self.cycle is not None and self.cycle.response_started
        is_next_request = self._is_within_headers or self._is_whole
        if has_begun and not (is_next_request and self.cycle.response_complete):
            self.transport.close()
            return
        status = status or problem.status
        request_id = uuid.uuid4().hex
        body = json.dumps(problem.body("", request_id) | {"status": status}).encode()
        head = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "x-content-type-options: nosniff",
            "connection: close",
            "",
            "",
        ]
        self.transport.write("\r\n".join(head).encode() + body)
        self.transport.close()
        logger.info("refused a request: %s (request %s)", problem.slug, request_id)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _stop_write_clock(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """The protocol with the limits of `settings`; uvicorn makes one object of it for each connection."""
    members: dict[str, Any] = {"settings": settings, "idle": OrderedDict()}
    return type("BoundedProtocol", (BoundedProtocol,), members)
