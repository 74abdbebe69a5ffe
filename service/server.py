"""The uvicorn servers of `petseg serve`: one that ends without losing a request, one for the operation port."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from service.memory import freeze_objects
from service.operation import create_operation_app
from service.pipeline import Service
from service.protocol import bounded_protocol
from service.reload import Reloader
from service.settings import Settings

logger = logging.getLogger("petseg.server")

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may hold the interpreter while another waits. Python's own 5 ms are half a forward pass: the
device's threads would often stand still behind the event loop."""

LAST_RESORT_S = 10.0
"""Seconds beyond all deadlines after which the process ends whatever still hangs."""

HELPERS = 8
"""Threads beside the event loop that read files, join large forms and write figures."""


class OperationServer(uvicorn.Server):
    """Uvicorn for the operation port: leaves the signals to the service's server, which starts and ends it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class Server(uvicorn.Server):
    """Uvicorn that turns /readyz false with the first signal, finishes accepted requests and exits with 0.

    It goes on listening meanwhile: new work is taken for `linger_s`, then answered with 503 and Retry-After until the
    last accepted request is done. The operation port, where there is one, answers from before the start until the end.
    """

    def __init__(
        self,
        service_app: FastAPI,
        config: uvicorn.Config,
        operation_socket: socket.socket | None,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._service_app = service_app
        self._operation_socket = operation_socket
        self._on_start = on_start
        self.is_dead = False
        """Whether it ended because only a new process can answer again."""

    @property
    def service(self) -> Service[Any] | None:
        """What the lifespan made; None before it began."""
        service: Service[Any] | None = getattr(self._service_app.state, "service", None)
        return service

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen until a signal."""
        if self._operation_socket is None:
            await super().serve(sockets)
            return
        app = create_operation_app(self._service_app)
        operation = OperationServer(
            uvicorn.Config(app, lifespan="off", log_level="warning", log_config=None, access_log=False)
        )
        answering = asyncio.create_task(operation.serve([self._operation_socket]))
        try:
            await super().serve(sockets)
        finally:
            operation.should_exit = True
            await answering

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Warm up and listen, then call `on_start`."""
        await start_helpers()
        freeze_objects()
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C does not wait any longer."""
        service = self.service
        if service is None:
            self.should_exit = True
        elif service.is_draining and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
        else:
            Context().run(self.begin_to_stop, service)  # not within the request that the signal happened to meet

    def begin_to_stop(self, service: Service[Any]) -> None:
        """Drain, and see to it that no thread that hangs can keep the process."""
        if not service.is_draining:
            service.drain()
            logger.info("stopping: new work is taken for %g s more, then refused", service.settings.linger_s)
            last_resort = threading.Timer(service.drain_left_s + LAST_RESORT_S, end_now)
            last_resort.daemon = True
            last_resort.start()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture SIGHUP beside those that end the process: it asks for the checkpoints to be read again."""
        before = signal.signal(signal.SIGHUP, self.handle_hangup)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(signal.SIGHUP, before)

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """Take up changed checkpoints."""
        reloader: Reloader | None = getattr(self._service_app.state, "reloader", None)
        if reloader is None:
            logger.warning("got SIGHUP before the start was over; send it again once /readyz answers 200")
        else:
            reloader.ask()

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s: stop listening once all that was accepted is answered, or the time for it is over."""
        service = self.service
        if service is not None:
            if service.settings.exit_when_dead and not service.is_alive and not service.is_draining:
                logger.critical("this process cannot answer again and ends: %s", service.fault)
                self.is_dead = True
                self.begin_to_stop(service)
            if service.has_drained:
                self.config.timeout_graceful_shutdown = max(1, math.ceil(service.drain_left_s))
                self.should_exit = True
        return await super().on_tick(counter)


async def start_helpers() -> None:
    """Start all threads behind `asyncio.to_thread` at once.

    By itself one more would start whenever all others happen to be busy: what a process holds would grow for days.
    """
    executor, have_met = ThreadPoolExecutor(HELPERS, thread_name_prefix="helper"), threading.Barrier(HELPERS)
    asyncio.get_running_loop().set_default_executor(executor)
    await asyncio.gather(*(asyncio.to_thread(have_met.wait) for _ in range(HELPERS)))


def end_now() -> None:
    """End the process although something in it hangs."""
    logger.critical("something hangs beyond the time to drain; the process ends without it")
    os._exit(1)


def server_config(service_app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Uvicorn's own settings for the service's port."""
    return uvicorn.Config(
        service_app,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings),
        ws="none",
        log_level="warning",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_s,
    )


def leave(code: int) -> NoReturn:
    """End the process now: all is answered and closed, and taking down an interpreter full of torch takes seconds."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
