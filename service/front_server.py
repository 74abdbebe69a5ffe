"""The server of a front: takes its share of the connections that come to the socket of all fronts."""

import asyncio
import logging
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.connection_share import ConnectionShare
from service.server import Server

logger = logging.getLogger("petseg.front")

_PAUSE_S = 1.0
"""Without accepting, where the process has no more file descriptors."""


class FrontServer(Server):
    """Takes one connection at a time from the socket that all fronts share, and ends when its service has drained."""

    def __init__(
        self,
        app: FastAPI,
        config: uvicorn.Config,
        listener: socket.socket,
        share: ConnectionShare,
        on_listening: Callable[[], None],
    ) -> None:
        super().__init__(app, config, None)
        self._on_listening = on_listening
        self._listener = listener
        self._share = share
        self._pause: asyncio.TimerHandle | None = None
        self._taking: set[asyncio.Task[Any]] = set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, then call `on_listening`: whoever hears of it can rely on this front's taking its share."""
        self._loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        await super().startup([])
        self._tell()
        self._listen()
        self._on_listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end as uvicorn does; what waits in the socket is another front's."""
        self._stop_listening()
        self._share.leave()
        self._listener.close()
        await super().shutdown([])

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: others learn of connections that have ended."""
        self._tell()
        return await super().on_tick(counter)

    @property
    def _held(self) -> int:
        return len(self.server_state.connections) + len(self._taking)

    def _tell(self) -> None:
        self._share.tell(self._held)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._take_or_leave)

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    def _pause_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, then)

    def _take_or_leave(self) -> None:
        """Somebody wants to connect; those who hold fewer connections come first."""
        delay_s = self._share.delay_s(self._held)
        if delay_s > 0:
            self._pause_for(delay_s, self._take_what_is_left)
        else:
            self._take_one()

    def _take_what_is_left(self) -> None:
        self._listen()
        self._take_one()

    def _take_one(self) -> None:
        """One alone, then back to what else there is to do: who is busy leaves the next to others."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("accepts no connection for %g s: %s", _PAUSE_S, error)
            self._pause_for(_PAUSE_S, self._listen)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        self._tell()

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=self._loop
        )
        return protocol
