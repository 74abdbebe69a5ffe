"""The same app on many replicas and machines, by Ray Serve: `serve run deploy/ray.yaml`.

client -> Ray's HTTP proxy -> Door: reads the request, names its photo -> Replica: the whole app of create_app

Requests about one photo go to one replica, chosen by consistent hashing of the photo's sha256: later clicks find its
features there, whether they send the photo again or its image id. When replicas come or go, the photos of one share
move; an image id then meets 410 image-gone, as after any restart, and the photo itself is served by its new replica.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.affinity import ask_app, name_photo, plain_scope, receive_body
from service.app import create_app
from service.errors import Overloaded, Problem, problem_response
from service.logs import configure_logging
from service.pipeline import not_ready
from service.settings import read_settings

logger = logging.getLogger("petseg.scale")

_ATTEMPTS = 2
"""A request whose replica dies before the answer begins goes to another one: segmenting changes nothing, so it may
run twice. Once more is enough: a request that ends every replica that runs it must not go round."""


@serve.deployment
class Replica:
    """The service as it is, without a port of its own. Settings come from PETSEG_*, as everywhere."""

    async def __init__(self) -> None:  # type: ignore[misc] # Ray awaits it
        settings = read_settings()
        configure_logging(settings.log_format, settings.log_level)
        self._app = await asyncio.to_thread(create_app, settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()

    async def __del__(self) -> None:
        """Ray calls it once the requests that were accepted are answered."""
        await self._lifespan.__aexit__(None, None, None)

    async def check_health(self) -> None:
        """Raise where the service would answer 503 at /readyz; Ray then replaces the replica."""
        if not self._app.state.service.is_ready:
            raise RuntimeError("the service is not ready")

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The app's answer to one whole request."""
        async for message in ask_app(self._app, scope, body):
            yield message


class Relay(Response):
    """A replica's answer, passed on message by message."""

    def __init__(self, first: Message, rest: AsyncIterator[Message]) -> None:
        super().__init__()
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a replica that dies on the way breaks the connection, so that nobody takes a part for the whole."""
        await send(self._first)
        async for message in self._rest:
            await send(message)


@serve.deployment
class Door:
    """Takes each request whole and hands it to the replica that its photo belongs to."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        settings = read_settings()
        self._max_bytes = max(settings.max_body_bytes, settings.max_batch_body_bytes)
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        body = await receive_body(request.receive, self._max_bytes)
        scope = plain_scope(request.scope)
        photo = await name_photo(scope, body)
        try:
            return await self._ask(scope, body, photo)
        except Problem as problem:
            return problem_response(request, problem)

    async def _ask(self, scope: Scope, body: bytes, photo: str | None) -> Relay:
        replicas = self._replicas.options(session_id=photo) if photo else self._replicas
        for attempt in range(1, _ATTEMPTS + 1):
            answer: AsyncGenerator[Message, None] = replicas.remote(scope, body)
            try:
                return Relay(await anext(answer), answer)
            except RayActorError as error:
                logger.warning("a replica was lost, attempt %d of %d: %s", attempt, _ATTEMPTS, error)
            except BackPressureError as error:
                refusal = "got more requests than the replicas hold; try again in 1 s"
                raise Overloaded(refusal, headers={"Retry-After": "1"}) from error
        raise not_ready()


app = Door.bind(Replica.bind())  # type: ignore[attr-defined]
