"""Messages between two processes of one server, over a pair of sockets: calls with answers, and notices without.

Everything is pickled: both ends are our own. Knows nothing of photos; the hub and its fronts speak through it.
"""

import asyncio
import itertools
import logging
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from inspect import isawaitable
from socket import socket
from typing import Any, cast

logger = logging.getLogger("petseg.link")

_LENGTH = struct.Struct("<Q")


class LinkClosedError(ConnectionError):
    """The other process is gone."""


class _Kind(IntEnum):
    CALL, LEAVE, ANSWER, ERROR, NOTICE = range(5)


@dataclass
class _Call:
    future: "asyncio.Future[Any]"
    settle: Callable[[Any], Any] | None

    def end(self, answer: Any, error: Exception | None = None) -> None:
        """Hand the outcome to whoever still waits."""
        if self.settle is not None:
            answer = self.settle(answer)
        if self.future.done():
            return
        if error is None:
            self.future.set_result(answer)
        else:
            self.future.set_exception(error)


class Link(asyncio.Protocol):
    """One end. Lives on the event loop; other threads `ask`."""

    def __init__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        on_close: Callable[[], None],
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        """handlers: what the other end may call or notify, plain or asynchronous functions.

        on_close: called once when the other end is gone. expected: errors that are answers, not worth a log line.
        """
        self._handlers = handlers
        self._on_close = on_close
        self._expected = expected
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._unsent: list[bytes] = []
        self._numbers = itertools.count()
        self._calls: dict[int, _Call] = {}
        self._serving: dict[int, asyncio.Future[Any]] = {}

    async def connect(self, end: socket) -> None:
        """Speak through `end`, one of a pair that `socket.socketpair` made, from now on."""
        end.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=end)

    async def call(self, name: str, *arguments: Any, settle: Callable[[Any], Any] | None = None) -> Any:
        """What the other end's handler gives; raises what it raises, and LinkClosedError.

        Who is cancelled has the handler cancelled. settle: called exactly once, when the answer is there or with None
        where none comes, also where the caller has left long before; what it gives is the answer.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        call = _Call(future, settle)
        if self._transport is None or self._transport.is_closing():
            call.end(None, LinkClosedError("the other process is gone"))
            return await future
        number = next(self._numbers)
        self._calls[number] = call
        self._send(_Kind.CALL, number, name, arguments)
        try:
            return await future
        finally:
            if number in self._calls:
                self._send(_Kind.LEAVE, number)

    def ask(self, name: str, *arguments: Any, patience_s: float) -> Any:
        """`call` from another thread. Raises TimeoutError too."""
        future = asyncio.run_coroutine_threadsafe(self.call(name, *arguments), self._loop)
        try:
            return future.result(patience_s)
        except TimeoutError:
            future.cancel()
            raise

    def notify(self, name: str, *arguments: Any) -> None:
        """Call the other end's handler and wait for nothing."""
        self._send(_Kind.NOTICE, 0, name, arguments)

    def close(self) -> None:
        """Hang up, once all that was sent is on its way."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's callback."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's callback."""
        for task in self._serving.values():
            task.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(None, LinkClosedError("the other process is gone"))
        self._on_close()

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback."""
        self._unread += data
        start = 0
        while len(self._unread) >= start + _LENGTH.size:
            begin = start + _LENGTH.size
            end = begin + _LENGTH.unpack_from(self._unread, start)[0]
            if len(self._unread) < end:
                break
            with memoryview(self._unread) as view:
                message = pickle.loads(view[begin:end])
            start = end
            self._take(*message)
        del self._unread[:start]

    def _send(self, *message: Any) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += (_LENGTH.pack(len(data)), data)

    def _flush(self) -> None:
        """Write what this turn of the event loop has brought: a batch's answers in one piece."""
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(unsent)

    def _take(self, kind: _Kind, number: int, *rest: Any) -> None:
        if kind is _Kind.ANSWER or kind is _Kind.ERROR:
            call = self._calls.pop(number)
            call.end(*(rest if kind is _Kind.ANSWER else (None, *rest)))
        elif kind is _Kind.LEAVE:
            if (task := self._serving.get(number)) is not None:
                task.cancel()
        else:
            name, arguments = rest
            self._serve(number if kind is _Kind.CALL else None, name, arguments)

    def _serve(self, number: int | None, name: str, arguments: tuple[Any, ...]) -> None:
        """Run a handler; a plain one at once, so that what follows it on the wire follows it here."""
        try:
            outcome = self._handlers[name](*arguments)
        except Exception as error:
            self._answer_error(number, name, error)
            return
        if isawaitable(outcome):
            task = asyncio.ensure_future(outcome)
            key = id(task) if number is None else number
            self._serving[key] = task
            task.add_done_callback(lambda _: self._finish(key, number, name, task))
        elif number is not None:
            self._send(_Kind.ANSWER, number, outcome)

    def _finish(self, key: int, number: int | None, name: str, task: "asyncio.Future[Any]") -> None:
        del self._serving[key]
        if task.cancelled():
            if number is not None:  # whoever left waits for nothing, but what was lent to the call goes back
                self._send(_Kind.ERROR, number, LinkClosedError("the call was cancelled"))
        elif isinstance(error := task.exception(), Exception):
            self._answer_error(number, name, error)
        elif number is not None:
            self._send(_Kind.ANSWER, number, task.result())

    def _answer_error(self, number: int | None, name: str, error: Exception) -> None:
        if not isinstance(error, self._expected):
            logger.error("%s failed", name, exc_info=error)
            error = RuntimeError(f"{type(error).__name__}: {error}")  # whatever it was, this can be pickled
        if number is not None:
            self._send(_Kind.ERROR, number, error)
