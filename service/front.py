"""A front: the process that callers meet. It speaks HTTP and works on photos; the hub runs the networks.

The same app as of a server by itself, with pipelines whose batches run in the hub, figures and quotas that the hub
keeps, and health that it tells.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import torch
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from service.affinity import plain_scope
from service.app import assemble, create_bare_app
from service.connection_share import ConnectionShare
from service.figures import series_of
from service.front_messages import FrontFigures, OperationAnswer, ServedModel
from service.front_pipeline import FrontPipeline
from service.front_server import FrontServer
from service.hub import FrontSpec
from service.image_processes import ignore_signals_to_the_group
from service.image_threads import ImageThreads
from service.link import Link, LinkClosedError
from service.logs import configure_logging
from service.memory import return_large_blocks
from service.metrics import Metrics
from service.pipeline import Service, not_ready
from service.rate_limits import Allowance, Quota
from service.server import SWITCH_INTERVAL_S, leave, server_config

logger = logging.getLogger("petseg.front")

_TELL_S = 5.0
"""Between two times that the hub is told the figures without asking: what it loses at most where this one dies."""


def run_front(spec: FrontSpec) -> None:
    """What a front's process does, until the hub says so or is gone."""
    ignore_signals_to_the_group()  # the hub says when to end
    configure_logging(spec.settings.log_format, spec.settings.log_level, spec.has_request_lines)
    return_large_blocks()
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    front = Front(spec)
    share = ConnectionShare(spec.connections, spec.number)
    FrontServer(front.app, server_config(front.app, spec.settings), spec.listener, share, front.say_serving).run()
    leave(0)


class Front:
    """The app of a front and its link to the hub."""

    link: Link

    def __init__(self, spec: FrontSpec) -> None:
        self._settings = spec.settings
        self._end = spec.link
        self._slots = spec.slots
        self._metrics = Metrics(of_service=False)
        self._has_models = asyncio.Event()
        self._is_ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.service: Service[FrontPipeline] = Service(spec.settings, {})
        self.app = create_bare_app(spec.settings, self._lifespan)
        self.app.state.service = self.service
        paths = {"/healthz", "/readyz"} | ({"/metrics"} if spec.settings.operation_port is None else set())
        self.app.add_middleware(OperationRelay, ask=self._ask_operation, paths=paths)
        self.app.state.metrics = self._metrics
        assemble(self.app, spec.settings, self._metrics, HubLimiter(self._call, self._notify))

    def say_serving(self) -> None:
        """Tell the hub that callers are answered."""
        self.link.notify("serving")

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._pool = ImageThreads(self._settings.image_threads, app.state.work)
        handlers: dict[str, Callable[..., Any]] = {
            "catalogue": self._take_up,
            "drain": self.service.drain,
            "figures": self._figures,
        }
        self.link = Link(handlers, self._end_without_hub)
        await self.link.connect(self._end)
        telling = asyncio.create_task(self._tell_figures())
        try:
            await asyncio.to_thread(self._pool.wait_until_started)
            await self._has_models.wait()
            self.service.is_warm = True
            yield
        finally:
            self._is_ending = True
            telling.cancel()
            self.link.notify("tell", self._figures())
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
        metrics = self._metrics.of_model(model.facts.name, model.facts.keeps_images)
        work = self.app.state.work
        return FrontPipeline(model, work, self._pool, self._settings, metrics, self.link, self._slots)

    async def _retire(self, old: FrontPipeline) -> None:
        await old.until_unused()
        self.link.notify("released", old.key)

    def _figures(self) -> FrontFigures:
        levels = {each.key: each.in_flight for each in self.service.pipelines.values() if each.in_flight}
        return FrontFigures(series_of(self._metrics.registry), levels)

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            self.link.notify("tell", self._figures())

    async def _ask_operation(self, scope: Scope, request_id: str) -> OperationAnswer:
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
