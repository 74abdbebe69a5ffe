"""Routes that are served without FastAPI's own steps between the router and the endpoint.

FastAPI describes them in the document and refuses other methods, and that is all: matching included routers, solving
dependencies and entering exit stacks take the event loop longer, for each request, than all else on a photo's way. Such
a route says itself what its endpoint is called with and what is held until the answer is sent.
"""

from abc import abstractmethod
from collections.abc import Sequence

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """One endpoint; its dependencies are there for the document alone and are never called."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that matches."""
        if self.methods and scope["method"] not in self.methods:
            await super().handle(scope, receive, send)  # which refuses it
        else:
            await self.answer(Request(scope, receive, send), send)

    @abstractmethod
    async def answer(self, request: Request, send: Send) -> None:
        """Call the endpoint and send what it gives."""


class DirectRouting:
    """Hands a request to the direct route that it matches, any other to `app`, which routes as FastAPI does."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        """routes: all of the app; the direct ones are found among them, also in routers that it includes."""
        self.app = app
        found = [(context.path, context.original_route) for context in iter_route_contexts(routes)]
        self.routes = [route for path, route in found if isinstance(route, DirectRoute) and route.path == path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for route in self.routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return
        await self.app(scope, receive, send)
