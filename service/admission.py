"""The gate before every route: who calls, how often, how many at once, and how a body may come in.

What it refuses costs next to nothing: no byte of the body is read before the caller is known and has a place.
"""

import asyncio
import base64
import ipaddress
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api_keys import ApiKey, KeyRing
from service.errors import (
    BodyTooSlow,
    Overloaded,
    Problem,
    QuotaExceeded,
    TooManyAtOnce,
    Unauthorized,
    problem_response,
)
from service.rate_limits import Allowance, Quota, RateLimiter
from service.settings import Settings

PROBES = frozenset({"/healthz", "/readyz"})
"""Answered whatever the load: a probe that is refused takes a busy server out of service."""

PUBLIC = frozenset({"/", "/docs", "/openapi.json"})
PUBLIC_FOLDERS = ("/docs/", "/problems/", "/web/")
"""What is answered without a key; all else needs one where keys are set."""


class Limiter(Protocol):
    """Grants requests by quota, here or in another process."""

    async def take(self, client: str, quota: Quota) -> bool:
        """Take one request from the bucket of `client`; False where it holds none."""

    async def look(self, client: str, quota: Quota) -> Allowance:
        """Where `client` stands, nothing taken."""

    def charge(self, client: str, quota: Quota, requests: int) -> None:
        """Take `requests` whatever the bucket holds."""


class OwnLimiter:
    """Buckets of this process."""

    def __init__(self) -> None:
        self.buckets = RateLimiter()

    async def take(self, client: str, quota: Quota) -> bool:
        """Take one request from the bucket of `client`; False where it holds none."""
        return self.buckets.take(client, quota)

    async def look(self, client: str, quota: Quota) -> Allowance:
        """Where `client` stands, nothing taken."""
        return self.buckets.look(client, quota)

    def charge(self, client: str, quota: Quota, requests: int) -> None:
        """Take `requests` whatever the bucket holds."""
        self.buckets.charge(client, quota, requests)


@dataclass
class Visit:
    """One admitted request."""

    client: str
    quota: Quota | None
    limiter: Limiter
    held_bytes: int = field(default=0, init=False)
    """Of its body, in memory until it leaves."""

    def charge(self, requests: int) -> None:
        """Count the request as `requests` more, where it turns out to hold many."""
        if self.quota is not None and requests > 0:
            self.limiter.charge(self.client, self.quota, requests)


class Admission:
    """Lets a request through to `app`, or answers with the Problem that keeps it out."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing | None, limiter: Limiter | None = None) -> None:
        self.app = app
        self.settings = settings
        self.keys = keys
        self.limiter: Limiter = limiter or OwnLimiter()
        self.in_flight: Counter[str] = Counter()
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        try:
            visit = await self._admit(scope)
        except Problem as problem:
            await problem_response(Request(scope), problem)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["visit"] = visit
        if (record := state.get("record")) is not None and visit.client.startswith("key "):
            record.caller = visit.client.removeprefix("key ")
        try:
            await self.app(scope, self._bounded(receive, visit), _with_rate_headers(send, visit))
        finally:
            self.held_bytes -= visit.held_bytes
            self._leave(visit.client)

    async def _admit(self, scope: Scope) -> Visit:
        """Count a request in. Raises the Problem that keeps it out."""
        client, per_minute = self._identify(scope)
        quota = Quota(per_minute) if per_minute else None
        if self.in_flight.total() >= self.settings.max_requests:
            raise Overloaded(
                f"got one request more than the {self.settings.max_requests} that the server holds; try again in 1 s",
                headers={"Retry-After": "1"},
            )
        if self.in_flight[client] >= self.settings.max_client_requests:
            raise TooManyAtOnce(
                f"got one request more than the {self.settings.max_client_requests} that one client may have "
                "in flight; wait for an answer before sending the next",
                headers={"Retry-After": "1"},
            )
        self.in_flight[client] += 1
        try:
            await self._charge(client, quota)
        except BaseException:
            self._leave(client)
            raise
        return Visit(client, quota, self.limiter)

    async def _charge(self, client: str, quota: Quota | None) -> None:
        if quota is not None and not await self.limiter.take(client, quota):
            allowance = await self.limiter.look(client, quota)
            raise QuotaExceeded(
                f"got more than {quota.requests} requests in {quota.window_s:g} s; "
                f"try again in {allowance.retry_after_s} s",
                headers={"Retry-After": str(allowance.retry_after_s), **rate_headers(quota, allowance)},
            )

    def _leave(self, client: str) -> None:
        self.in_flight[client] -= 1
        if not self.in_flight[client]:
            del self.in_flight[client]

    def _identify(self, scope: Scope) -> tuple[str, int]:
        """(the caller's name for counting, its requests per minute). Raises Unauthorized."""
        if self.keys is None or is_public(scope["path"]):
            return f"address {address_of(scope)}", self.settings.requests_per_minute
        key = self._find_key(Headers(scope=scope))
        per_minute = key.requests_per_minute
        return f"key {key.name}", self.settings.requests_per_minute if per_minute is None else per_minute

    def _find_key(self, headers: Headers) -> ApiKey:
        assert self.keys is not None
        wanted = "wanted a key as Authorization: Bearer KEY or X-API-Key: KEY; ask the operator for one"
        challenge = {"WWW-Authenticate": 'Bearer realm="petseg"'}
        presented = headers.get("x-api-key") or key_in(headers.get("authorization", ""))
        if not presented:
            raise Unauthorized(f"got no API key, {wanted}", headers=challenge)
        if (key := self.keys.find(presented)) is None:
            raise Unauthorized(f"got an API key that is not known (any more), {wanted}", headers=challenge)
        return key

    def _bounded(self, receive: Receive, visit: Visit) -> Receive:
        """`receive` within the bounds of time and memory, up to the body's end; beyond it waits for the disconnect."""
        settings = self.settings
        is_whole = False
        started_at = time.monotonic()

        async def receive_bounded() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()
            allowed_s = settings.body_timeout_s + visit.held_bytes / settings.min_body_bytes_per_s
            try:
                async with asyncio.timeout(max(0.0, started_at + allowed_s - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(
                    f"got {visit.held_bytes} body bytes in {allowed_s:.3g} s, wanted all within "
                    f"{settings.body_timeout_s:g} s, or {settings.min_body_bytes_per_s} bytes a second from then on",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                self._hold(visit, len(message.get("body", b"")))
            return message

        return receive_bounded

    def _hold(self, visit: Visit, size: int) -> None:
        if self.held_bytes + size > self.settings.max_held_bytes:
            raise Overloaded(
                f"got more body bytes at once than the {self.settings.max_held_bytes} that the server holds; "
                "try again in 1 s",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        visit.held_bytes += size
        self.held_bytes += size


def key_in(authorization: str) -> str:
    """The key of an Authorization header: a bearer's token, or the password of those who know no other way to send one.

    Label Studio is one of them. Empty where there is none.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def is_public(path: str) -> bool:
    """Whether `path` is answered without a key."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def address_of(scope: Scope) -> str:
    """The caller's address; of IPv6 the /64 network, which is what one subscriber has."""
    return _subscriber_of(scope["client"][0]) if scope.get("client") else "unknown"


@lru_cache(maxsize=4096)
def _subscriber_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def rate_headers(quota: Quota, allowance: Allowance) -> dict[str, str]:
    """RateLimit fields of draft-ietf-httpapi-ratelimit-headers-10; one photo of a batch counts as one request."""
    return {
        "RateLimit-Policy": f'"default";q={quota.requests};w={quota.window_s:g}',
        "RateLimit": f'"default";r={allowance.remaining};t={allowance.full_after_s}',
    }


def _with_rate_headers(send: Send, visit: Visit) -> Send:
    quota = visit.quota
    if quota is None:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in rate_headers(quota, await visit.limiter.look(visit.client, quota)).items():
                headers[name] = value
        await send(message)

    return send_with_headers
