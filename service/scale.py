"""The same app on many replicas and machines, by Ray Serve: `serve run deploy/ray.yaml`.

client -> Ray's HTTP proxy -> Door: reads the request, names its photo -> Replica: the whole app of create_app

Requests about one photo go to one replica, chosen by consistent hashing of the photo's sha256: later clicks find its
features there, whether they send the photo again or its image id. When replicas come or go, the photos of one share
move; an image id then meets 410 image-gone, as after any restart, and the photo itself is served by its new replica.

Keys, rates and the bounds of a body are the door's business too: nothing is read of callers that it does not admit.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission
from service.affinity import ask_app, name_photo, plain_scope, receive_body
from service.api_keys import KeyRing
from service.app import create_app
from service.errors import Overloaded, Problem, problem_response
from service.logs import configure_logging
from service.pipeline import not_ready
from service.settings import Settings, read_settings

logger = logging.getLogger("petseg.scale")

_ATTEMPTS = 2
"""A request whose replica dies before the answer begins goes to another one: segmenting changes nothing, so it may
run twice. Once more is enough: a request that ends every replica that runs it must not go round."""


@serve.deployment
class Replica:
    """The service as it is, without a port of its own. Settings come from PETSEG_*, as everywhere."""

    async def __init__(self) -> None:  # type: ignore[misc] # Ray awaits it
        self._open = AsyncExitStack()
        self._app = await asyncio.to_thread(create_app, begin())
        await self._open.enter_async_context(self._app.router.lifespan_context(self._app))

    async def __del__(self) -> None:
        """Ray calls it once the requests that were accepted are answered, and where the start was cut short."""
        await self._open.aclose()

    async def check_health(self) -> None:
        """Raise where the service would answer 503 at /readyz; Ray then replaces the replica."""
        service = self._app.state.service
        if not service.is_ready:
            raise RuntimeError(f"the service is not ready: {service.fault}")

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The app's answer to one whole request."""
        async for message in ask_app(self._app, scope, body):
            yield message


class Gate(Response):
    """An app in the place of an answer, which is what Ray takes from a deployment."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer."""
        await self._app(scope, receive, send)


@serve.deployment
class Door:
    """Takes each request whole and hands it to the replica that its photo belongs to."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        settings = begin()
        keys = KeyRing(settings.keys) if settings.keys is not None else None
        self._gate = Gate(Admission(self._pass_on, settings, keys))
        self._max_bytes = max(settings.max_body_bytes, settings.max_batch_body_bytes)
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        # Ray names every request, and the replicas take that name over.
        request.state.request_id = request.headers.get("x-request-id", "")
        return self._gate

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer of the right replica on, message by message.

        One that dies on the way breaks the connection, so that nobody takes a part for the whole.
        """
        try:
            body = await receive_body(receive, self._max_bytes)
            first, rest = await self._ask(plain_scope(scope), body)
        except Problem as problem:
            await problem_response(Request(scope), problem)(scope, receive, send)
            return
        await send(first)
        async for message in rest:
            await send(message)

    async def _ask(self, scope: Scope, body: bytes) -> tuple[Message, AsyncIterator[Message]]:
        """The first message of the answer, and the rest. Raises NotReady or Overloaded."""
        photo = await name_photo(scope, body)
        replicas = self._replicas.options(session_id=photo) if photo else self._replicas
        for attempt in range(1, _ATTEMPTS + 1):
            answer: AsyncGenerator[Message, None] = replicas.remote(scope, body)
            try:
                return await anext(answer), answer
            except RayActorError as error:
                logger.warning("a replica was lost, attempt %d of %d: %s", attempt, _ATTEMPTS, error)
            except BackPressureError as error:
                refusal = "got more requests than the replicas hold; try again in 1 s"
                raise Overloaded(refusal, headers={"Retry-After": "1"}) from error
        raise not_ready()


def begin() -> Settings:
    """The settings of this process, which logs by them from now on.

    Without /metrics: through the door it would answer with the figures of one replica, drawn by chance. Threads are
    left where the system puts them: replicas share CPUs, which gathering does not look at.
    """
    settings = read_settings(operation_port=0, gather_threads=False)
    configure_logging(settings.log_format, settings.log_level)
    return settings


app = Door.bind(Replica.bind())  # type: ignore[attr-defined]
