"""Sends the corpus with many clients at once and counts what came back."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from tests.soak.cases import Case, Corpus
from tests.soak.checks import WrongAnswerError

TIMEOUT_S = 60.0


class LostError(Exception):
    """A request got no answer."""


@dataclass
class Tally:
    """What came back, by kind of case."""

    counts: Counter[str] = field(default_factory=Counter)
    least_agreement: dict[str, float] = field(default_factory=lambda: defaultdict(lambda: 1.0))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what they had to be."""
    lost: list[str] = field(default_factory=list)
    """Requests that got no answer."""

    @property
    def total(self) -> int:
        """Requests sent."""
        return sum(self.counts.values())


Send = Callable[[Case], Awaitable[httpx.Response | None]]
"""Sends one case; None where there is nothing to check. Raises LostError."""


async def run_load(
    send: Send, corpus: Corpus, indices: Iterable[int], clients: int, tally: Tally, after_each: Callable[[], None]
) -> None:
    """Send the cases of `indices` with `clients` of them under way at any time; `after_each` is called in between."""
    waiting = iter(indices)

    async def work() -> None:
        for index in waiting:
            await send_and_check(send, corpus.draw(index), f"request {index}", tally)
            after_each()

    await asyncio.gather(*(work() for _ in range(clients)))


async def send_and_check(send: Send, case: Case, name: str, tally: Tally) -> None:
    """Send one case and put the outcome into `tally`."""
    started_at = time.perf_counter()
    tally.counts[case.kind] += 1
    try:
        answer = await send(case)
    except LostError as error:
        tally.lost.append(f"{name}, {case.kind}: {error}")
        return
    tally.seconds[case.kind].append(time.perf_counter() - started_at)
    if answer is None:
        return
    try:
        found = case.check(answer)
    except WrongAnswerError as error:
        tally.wrong.append(f"{name}, {case.kind}: {error}")
    else:
        tally.least_agreement[case.kind] = min(found, tally.least_agreement[case.kind])


def sender(client: httpx.AsyncClient) -> Send:
    """Sends to the server that `client` has as its base URL."""

    async def send(case: Case) -> httpx.Response | None:
        if case.hangs_up:
            await hang_up(str(client.base_url), case)
            return None
        try:
            return await client.request(case.method, case.path, content=case.body, headers=case.headers)
        except httpx.TransportError as error:
            raise LostError(repr(error)) from error

    return send


async def hang_up(url: str, case: Case) -> None:
    """Begin to send the case and close the connection half way through its body."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    head = [f"{case.method} {case.path} HTTP/1.1", f"host: {address.netloc}", f"content-length: {len(case.body)}"]
    head += [f"{name}: {value}" for name, value in case.headers.items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + case.body[: len(case.body) // 2])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
