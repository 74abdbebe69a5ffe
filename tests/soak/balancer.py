"""A small load balancer in the client, and processes behind it that are restarted and killed under load.

It does what any balancer can be told to do and no more: processes that are not ready get no requests, and a request
that was refused (no connection, or 503 with Retry-After) goes to the next process. One that breaks off is not sent
again: it counts as lost.
"""

import asyncio
import itertools
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.soak.cases import Case, Corpus
from tests.soak.load import TIMEOUT_S, LostError, Tally, run_load

_POLL_S = 0.05
_PATIENCE_S = 30.0
"""How long a request waits for a process that is ready."""

Process = subprocess.Popen[bytes]
Start = Callable[[], tuple[Process, str]]
"""Starts a server; returns once it is ready, with its address."""


@dataclass(eq=False)
class Backend:
    """One server process behind the balancer."""

    process: Process
    client: httpx.AsyncClient
    is_up: bool = True


@dataclass(frozen=True)
class Lost:
    """A request that broke off."""

    backend: Backend
    sent_at: float
    ended_at: float
    reason: str


@dataclass
class Balancer:
    """Sends each case to the next process that is ready."""

    backends: list[Backend] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    refused: int = 0
    """Times that a process refused a request, which then went to the next one."""
    _turns: "itertools.count[int]" = field(default_factory=itertools.count)

    async def send(self, case: Case) -> httpx.Response:
        """One case's answer. Raises LostError."""
        ends_at = time.monotonic() + _PATIENCE_S
        while time.monotonic() < ends_at:
            if (backend := self._next()) is None:
                await asyncio.sleep(_POLL_S)
                continue
            sent_at = time.monotonic()
            try:
                answer = await backend.client.request(case.method, case.path, content=case.body, headers=case.headers)
            except httpx.ConnectError:
                backend.is_up = False
                self.refused += 1
            except httpx.TransportError as error:
                backend.is_up = False
                self.lost.append(Lost(backend, sent_at, time.monotonic(), repr(error)))
                raise LostError(repr(error)) from error
            else:
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    return answer
                backend.is_up = False
                self.refused += 1
        raise LostError(f"no process was ready within {_PATIENCE_S:g} s")

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Ask every process again and again whether it is ready."""
        task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            task.cancel()
            for backend in self.backends:
                await backend.client.aclose()

    async def add(self, start: Start) -> Backend:
        """Start a process and send it requests once it is ready."""
        process, url = await asyncio.to_thread(start)
        backend = Backend(process, httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S))
        self.backends.append(backend)
        return backend

    async def remove(self, backend: Backend) -> None:
        """Forget a process that has ended."""
        self.backends.remove(backend)
        await backend.client.aclose()

    def _next(self) -> Backend | None:
        up = [backend for backend in self.backends if backend.is_up]
        return up[next(self._turns) % len(up)] if up else None

    async def _poll(self) -> None:
        while True:
            for backend in list(self.backends):
                try:
                    backend.is_up = (await backend.client.get("/readyz")).status_code == 200
                except (httpx.TransportError, RuntimeError):  # RuntimeError: closed in the meantime
                    backend.is_up = False
            await asyncio.sleep(_POLL_S)


@dataclass
class Rolling:
    """What came of restarting and killing processes under load."""

    tally: Tally = field(default_factory=Tally)
    restarts: int = 0
    kills: int = 0
    exit_codes: list[int] = field(default_factory=list)
    """Of the processes that were asked to stop."""
    refused: int = 0
    lost_to_kills: int = 0
    """Requests that were under way on a process when it was killed."""
    faults: list[str] = field(default_factory=list)
    """What should not have been."""


async def roll(
    start: Start, corpus: Corpus, *, restarts: int, kills: int, clients: int, pause_s: float = 1.0
) -> Rolling:
    """Two processes under load: `restarts` times one is replaced with SIGTERM, then `kills` times with SIGKILL."""
    balancer, result = Balancer(), Rolling(restarts=restarts, kills=kills)
    is_over = asyncio.Event()
    indices = itertools.takewhile(lambda _: not is_over.is_set(), itertools.count())
    try:
        for _ in range(2):
            await balancer.add(start)
        async with balancer.polling():
            load = asyncio.create_task(
                run_load(balancer.send, corpus, indices, clients, result.tally, after_each=lambda: None)
            )
            for _ in range(restarts):
                await asyncio.sleep(pause_s)
                await _restart(balancer, start, result)
            for _ in range(kills):
                await asyncio.sleep(pause_s)
                await _kill(balancer, start, result)
            await asyncio.sleep(pause_s)
            is_over.set()
            await load
    finally:
        for backend in balancer.backends:
            backend.process.kill()
            backend.process.wait()
    result.refused = balancer.refused
    if unanswered := len(result.tally.lost) - len(balancer.lost):
        result.faults.append(f"{unanswered} requests found no process that was ready")
    return result


async def _restart(balancer: Balancer, start: Start, result: Rolling) -> None:
    oldest, lost_before = balancer.backends[0], len(balancer.lost)
    oldest.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(oldest.process.wait, 60)
    result.exit_codes.append(code)
    if code != 0:
        result.faults.append(f"a process that got SIGTERM ended with {code}, wanted 0")
    result.faults += [f"lost to SIGTERM: {lost.reason}" for lost in balancer.lost[lost_before:]]
    await balancer.add(start)
    await balancer.remove(oldest)


async def _kill(balancer: Balancer, start: Start, result: Rolling) -> None:
    oldest, lost_before = balancer.backends[0], len(balancer.lost)
    killed_at = time.monotonic()
    oldest.process.kill()
    await asyncio.to_thread(oldest.process.wait, 60)
    gone_at = time.monotonic()
    await balancer.add(start)
    for lost in balancer.lost[lost_before:]:
        if lost.backend is oldest and lost.sent_at <= gone_at and lost.ended_at >= killed_at:
            result.lost_to_kills += 1
        else:
            result.faults.append(f"lost without having been under way on the killed process: {lost.reason}")
    await balancer.remove(oldest)
