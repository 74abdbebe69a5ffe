"""A lean HTTP/1.1 client for load: whole requests as bytes, one connection each, nothing parsed that is not read.

It shares the machine's cores with the server under test, so every microsecond it takes is one that it steals.
"""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    head: bytes
    """Status line and headers."""
    body: bytes

    def header(self, name: str) -> str | None:
        """The header's value, or None."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line.partition(b":")[2].strip().decode("latin-1")
        return None


class ConnectionLostError(ConnectionError):
    """The server closed the connection before the answer was whole."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._received = 0
        self._head = b""
        self._wanted = -1
        """Bytes of head and body together once the head is there; -1 before, and for chunked bodies."""
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """A connection to `host`."""
        _, protocol = await asyncio.get_running_loop().create_connection(cls, host, port)
        return protocol

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, *parts: bytes) -> Answer:
        """Send one request, given in pieces, and wait for its answer. Raises ConnectionLostError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLostError("got a closed connection; open another")
        self._parts, self._received, self._head, self._wanted = [], 0, b"", -1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(parts)
        return await self._answer

    def send(self, *parts: bytes) -> None:
        """Send one request and wait for nothing."""
        assert self._transport is not None
        self._transport.writelines(parts)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's callback."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's callback."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionLostError(f"the server hung up after {self._received} bytes"))

    def data_received(self, data: bytes) -> None:
        """Asyncio's callback."""
        self._parts.append(data)
        self._received += len(data)
        if not self._head:
            self._read_head()
        if self._head and (self._received >= self._wanted if self._wanted >= 0 else self._has_last_chunk()):
            self._finish()

    def _read_head(self) -> None:
        whole = b"".join(self._parts)
        end = whole.find(b"\r\n\r\n")
        if end < 0:
            return
        self._parts, self._head = [whole], whole[:end]
        lowered = self._head.lower()
        start = lowered.find(b"\r\ncontent-length:")
        if start >= 0:
            stop = lowered.find(b"\r\n", start + 2)
            self._wanted = end + 4 + int(lowered[start + 17 : stop if stop >= 0 else None])
        elif b"\r\ntransfer-encoding: chunked" not in lowered:
            self._wanted = end + 4

    def _has_last_chunk(self) -> bool:
        return b"".join(self._parts[-2:]).endswith(b"0\r\n\r\n")

    def _finish(self) -> None:
        if self._answer is None or self._answer.done():
            return
        body = b"".join(self._parts)[len(self._head) + 4 :]
        if self._wanted < 0:
            body = join_chunks(body)
        self._answer.set_result(Answer(int(self._head[9:12]), self._head, body))


def join_chunks(body: bytes) -> bytes:
    """The content of a chunked body."""
    content: list[bytes] = []
    start = 0
    while True:
        line_end = body.index(b"\r\n", start)
        size = int(body[start:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(content)
        content.append(body[line_end + 2 : line_end + 2 + size])
        start = line_end + 4 + size
