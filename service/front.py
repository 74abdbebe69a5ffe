"""A front: the process that callers meet. It speaks HTTP and works on photos; the hub runs the networks.

The same app as of a server by itself, with pipelines whose batches run in the hub, figures and quotas that the hub
keeps, and health that it tells.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Generator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.affinity import plain_scope
from service.app import assemble, create_bare_app
from service.front_messages import Counted, CountedPhoto, OperationAnswer, ServedModel
from service.front_pipeline import FrontPipeline
from service.hub import FrontSpec
from service.image_threads import ImageThreads
from service.link import Link, LinkClosedError
from service.logs import configure_logging
from service.memory import return_large_blocks
from service.pipeline import Service, not_ready
from service.rate_limits import Allowance, Quota
from service.server import SWITCH_INTERVAL_S, Server, leave, server_config
from service.stages import Stage

logger = logging.getLogger("petseg.front")

_COUNT_S = 0.2
"""Between two reports of what was counted."""
_PAUSE_S = 1.0
"""Without accepting, where the process has no more file descriptors."""


def run_front(spec: FrontSpec) -> None:
    """What a front's process does, until the hub says so or is gone."""
    # Ctrl-C and service managers signal the whole group: the hub says when to end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    configure_logging(spec.settings.log_format, spec.settings.log_level, spec.has_request_lines)
    return_large_blocks()
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    front = Front(spec)
    FrontServer(front.app, server_config(front.app, spec.settings), spec.listener, front.say_serving).run()
    leave(0)


class Front:
    """The app of a front and its link to the hub."""

    link: Link

    def __init__(self, spec: FrontSpec) -> None:
        self._settings = spec.settings
        self._end = spec.link
        self._slots = spec.slots
        self._counts = Counts()
        self._has_models = asyncio.Event()
        self._is_ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.service: Service[FrontPipeline] = Service(spec.settings, {})
        self.app = create_bare_app(spec.settings, self._lifespan)
        self.app.state.service = self.service
        paths = {"/healthz", "/readyz"} | ({"/metrics"} if spec.settings.operation_port is None else set())
        self.app.add_middleware(OperationRelay, ask=self._ask_operation, paths=paths)
        assemble(self.app, spec.settings, self._counts, HubLimiter(self._call, self._notify))

    def say_serving(self) -> None:
        """Tell the hub that callers are answered."""
        self.link.notify("serving")

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._pool = ImageThreads(self._settings.image_threads, app.state.work)
        handlers: dict[str, Callable[..., Any]] = {"catalogue": self._take_up, "drain": self.service.drain}
        self.link = Link(handlers, self._end_without_hub)
        await self.link.connect(self._end)
        counting = asyncio.create_task(self._report())
        try:
            await asyncio.to_thread(self._pool.wait_until_started)
            await self._has_models.wait()
            self.service.is_warm = True
            yield
        finally:
            self._is_ending = True
            counting.cancel()
            self._tell_counts()
            self.link.close()
            await asyncio.to_thread(self._pool.close)
            await asyncio.to_thread(app.state.work.close)
            await asyncio.to_thread(app.state.tracing.close)

    def _take_up(self, catalogue: list[ServedModel]) -> None:
        """Serve these models from now on; those that are gone, until their last request is answered."""
        before = {each.key: each for each in self.service.pipelines.values()}
        after = {each.key: before.pop(each.key) if each.key in before else self._build(each) for each in catalogue}
        self.service.replace({each.name: each for each in after.values()})
        for old in before.values():
            task = asyncio.create_task(self._retire(old))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._has_models.set()

    def _build(self, model: ServedModel) -> FrontPipeline:
        metrics = self._counts.of_model(model.facts.name, model.facts.keeps_images)
        work = self.app.state.work
        return FrontPipeline(model, work, self._pool, self._settings, metrics, self.link, self._slots)

    async def _retire(self, old: FrontPipeline) -> None:
        await old.until_unused()
        self.link.notify("released", old.key)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_S)
            self._tell_counts()

    def _tell_counts(self) -> None:
        levels = {each.key: each.in_flight for each in self.service.pipelines.values() if each.in_flight}
        if (counted := self._counts.take(levels)) is not None:
            self.link.notify("count", counted)

    async def _ask_operation(self, scope: Scope, request_id: str) -> OperationAnswer:
        self._tell_counts()  # whoever looks at figures sees at least what he did himself
        answer: OperationAnswer = await self._call("operate", scope, request_id)
        return answer

    async def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return await self.link.call(name, *arguments)
        except LinkClosedError as error:
            raise not_ready() from error

    def _notify(self, name: str, *arguments: Any) -> None:
        self.link.notify(name, *arguments)

    def _end_without_hub(self) -> None:
        if not self._is_ending:
            logger.critical("the process that runs the networks is gone; this one ends too")
            logging.shutdown()
            os._exit(1)


class Counts:
    """What the app counts, until the hub is told: its figures are the service's."""

    def __init__(self) -> None:
        self._counted = Counted()
        self._in_flight = 0
        self._levels: dict[int, int] = {}
        self._told_in_flight = 0

    @contextmanager
    def _answering(self) -> Generator[None, None, None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def answering(self) -> AbstractContextManager[None]:
        """Around the time in which a request is answered."""
        return self._answering()

    def count_request(self, *, stages: Iterable[Stage], **facts: Any) -> None:
        """Count one HTTP request that is over."""
        self._counted.requests.append(facts | {"stages": tuple(stages)})

    def of_model(self, model: str, keeps_images: bool) -> "PhotoCounts":
        """Of one model."""
        return PhotoCounts(self, model, keeps_images)

    def add_photo(self, photo: CountedPhoto) -> None:
        """Count one photo that is over."""
        self._counted.photos.append(photo)

    def add_lookup(self, model: str, was_held: bool) -> None:
        """Count one look into the cache."""
        self._counted.lookups.append((model, was_held))

    def take(self, levels: dict[int, int]) -> Counted | None:
        """All since the last time; None where nothing has changed. levels: photos in flight by model."""
        counted, self._counted = self._counted, Counted()
        counted.requests_in_flight, counted.photos_in_flight = self._in_flight, levels
        is_news = counted.requests or counted.photos or counted.lookups
        if not (is_news or levels != self._levels or self._in_flight != self._told_in_flight):
            return None
        self._levels, self._told_in_flight = levels, self._in_flight
        return counted


class PhotoCounts:
    """The photos of one model."""

    def __init__(self, counts: Counts, model: str, keeps_images: bool) -> None:
        self._counts = counts
        self._model = model
        self._keeps_images = keeps_images

    def count_photo(self, outcome: str, stages: Iterable[Stage]) -> None:
        """Count one photo that is over."""
        self._counts.add_photo(CountedPhoto(self._model, self._keeps_images, outcome, tuple(stages)))

    def count_lookup(self, was_held: bool) -> None:
        """Count one look into the cache; the hub counts those that it makes itself."""
        if self._keeps_images:
            self._counts.add_lookup(self._model, was_held)


class HubLimiter:
    """Quotas over all fronts."""

    def __init__(self, call: Callable[..., Any], notify: Callable[..., None]) -> None:
        self._call = call
        self._notify = notify

    async def take(self, client: str, quota: Quota) -> bool:
        """Take one request from the bucket of `client`; False where it holds none."""
        return bool(await self._call("take", client, quota))

    async def look(self, client: str, quota: Quota) -> Allowance:
        """Where `client` stands, nothing taken."""
        allowance: Allowance = await self._call("look", client, quota)
        return allowance

    def charge(self, client: str, quota: Quota, requests: int) -> None:
        """Take `requests` whatever the bucket holds."""
        self._notify("charge", client, quota, requests)


class OperationRelay:
    """Has the hub answer what is asked of the service as a whole; hands all else to `app`."""

    def __init__(
        self, app: ASGIApp, ask: Callable[[Scope, str], Awaitable[OperationAnswer]], paths: Container[str]
    ) -> None:
        """ask: gives the hub's answer to a request of that scope and id."""
        self.app = app
        self._ask = ask
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        scope["route"] = SimpleNamespace(path=scope["path"])
        answer = await self._ask(plain_scope(scope), scope["state"]["request_id"])
        if answer.problem:
            scope["state"]["problem"] = answer.problem
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})


class FrontServer(Server):
    """Takes one connection at a time from the socket that all fronts share, and ends when its service has drained."""

    def __init__(
        self, app: FastAPI, config: uvicorn.Config, listener: socket.socket, on_start: Callable[[], None]
    ) -> None:
        super().__init__(app, config, None, on_start)
        self._listener = listener
        self._taking: set[asyncio.Task[Any]] = set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        self._loop = asyncio.get_running_loop()
        await super().startup([])
        self._accept()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, then end as uvicorn does; what waits in the socket is another front's."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await super().shutdown([])

    def _accept(self) -> None:
        self._loop.add_reader(self._listener, self._take_one)

    def _take_one(self) -> None:
        """One alone, then back to what else there is to do: who is busy leaves the next to others."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("accepts no connection for %g s: %s", _PAUSE_S, error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE_S, self._accept)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=self._loop
        )
        return protocol
