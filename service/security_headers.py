"""What browsers are told about every answer: load nothing from elsewhere, guess no type, keep no photo.

And CORS, which is off: a page of another origin may call the service only where the operator names that origin.
"""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of our own pages: files of this service, and pictures that their scripts make."""

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""Content-Security-Policy of all that is no page: opened as a document it runs nothing."""

Header = tuple[bytes, bytes]
"""As ASGI has it: the name in lower case."""

_ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_UNKEPT: Header = (b"cache-control", b"no-store")
_OF_PAGES = (*_ALWAYS, (b"content-security-policy", PAGE_POLICY.encode()), _UNKEPT)
_OF_DATA = (*_ALWAYS, (b"content-security-policy", DATA_POLICY.encode()), _UNKEPT)
_OF_UNCHANGED = (*_ALWAYS, _UNKEPT)
"""Of a 304, which has no type to judge by, and whose policy browsers would give to the page that they hold."""

READABLE = (
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Image-Id",
    "X-Prompt",
    "X-Prompt-Chosen-By",
    "X-Request-Id",
)
"""Headers that pages of a named origin may read."""


class SecurityHeaders:
    """Adds the headers; those that an answer sets itself stay."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message["headers"])
                is_page = given.get(b"content-type", b"").startswith(b"text/html")
                wanted = _OF_UNCHANGED if message["status"] == 304 else _OF_PAGES if is_page else _OF_DATA
                message["headers"] = [*message["headers"], *(header for header in wanted if header[0] not in given)]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def add_security_headers(app: FastAPI, cors_origins: Sequence[str]) -> None:
    """The headers on every answer of `app`, and CORS for `cors_origins` alone."""
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", "X-Request-Id", "traceparent"],
            expose_headers=READABLE,
        )
    app.add_middleware(SecurityHeaders)
