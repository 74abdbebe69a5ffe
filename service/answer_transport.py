"""A connection's transport as answers want it: a head leaves with its body, and no answer is lost by closing.

Uvicorn writes a head and a body apart, and uvloop hands each write to the kernel at once: a second system call, a
second packet and a second wake-up of the client for each answer, which cost more than all of the app's own work on it.

Uvicorn closes a connection as soon as its last answer is written. While a client still sends its body that resets the
connection, and it may lose an answer that it has not read yet: so the sending half is closed alone (RFC 9112, 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any

_HEAD_BEGINS, _HEAD_ENDS = b"HTTP/1.1 ", b"\r\n\r\n"


class AnswerTransport(asyncio.Transport):
    """Holds back what looks like a head, at most until the event loop's next turn; all else passes as it comes.

    Closes for sending first where the client is still sending itself.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        begin_to_linger: Callable[[], bool] = lambda: False,
    ) -> None:
        """begin_to_linger: asked by `close`; after True it is asked to close once more when the client has had time."""
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._begin_to_linger = begin_to_linger
        # Called several times for each request, with nothing to add.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, behind the head that is held back if there is one."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif isinstance(data, bytes) and data.startswith(_HEAD_BEGINS) and data.endswith(_HEAD_ENDS):
            self._head = data
            self._loop.call_soon(self._send_head)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once all is sent, at first perhaps only for sending."""
        self._send_head()
        if not self._transport.is_closing() and self._begin_to_linger():
            self._transport.write_eof()
            self.is_closing = lambda: True  # type: ignore[method-assign]
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._head = b""
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return len(self._head) + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol take over."""
        self._transport.set_protocol(protocol)

    def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)
