"""What browsers are told about every answer: load nothing from elsewhere, guess no type, keep no photo.

And CORS, which is off: a page of another origin may call the service only where the operator names that origin.
"""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
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

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

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
                headers = MutableHeaders(scope=message)
                is_page = headers.get("content-type", "").startswith("text/html")
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                # A 304 has no type to judge by, and browsers give its policy to the page that they hold.
                if message["status"] != 304:
                    headers.setdefault("Content-Security-Policy", PAGE_POLICY if is_page else DATA_POLICY)
                headers.setdefault("Cache-Control", "no-store")
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
