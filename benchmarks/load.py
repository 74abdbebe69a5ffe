"""The load generator: a process of its own, which tells the CPU time that it took from the server.

`run_load` starts it and reads its result; `python -m benchmarks.load` is the process. Closed loop: each client asks
again once it has its answer. Open loop: requests come at a fixed rate, whatever becomes of them.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.http_client import Answer, Connection, ConnectionLostError
from benchmarks.requests import Asked, Request, build_request, read_photos
from benchmarks.statistics import Latency, describe_latency

_GRACE_S = 20.0


@dataclass(frozen=True)
class Load:
    """What the load generator is to do."""

    port: int
    photos: Path
    asked: Asked
    seconds: float
    warm_up_s: float = 0.0
    """Before the clock starts, with the same load."""
    clients: int = 1
    """Closed loop: clients that ask side by side."""
    rate: float = 0.0
    """Open loop where above 0: requests a second."""
    answers: Path | None = None
    """Folder for the body of one good answer to each photo, named by the photo's place."""
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class LoadResult:
    """What the clients saw while the clock ran."""

    seconds: float
    answered: int
    """Good answers."""
    answered_in_all: int
    """The same with those before the clock started and after it stopped: the work that a server's CPU time is of."""
    statuses: dict[str, int]
    """Answers by status; `lost` for connections that broke."""
    good: Latency
    refused: Latency
    """Of the answers 429 and 503."""
    without_retry_after: int
    """Refusals that did not say when to come again."""
    client_cpu_s: float
    received_bytes: int

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds

    @property
    def errors(self) -> int:
        """Requests that got no good answer."""
        return sum(count for status, count in self.statuses.items() if status != "200")


@dataclass
class _Tally:
    starts_at: float
    ends_at: float
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kept: dict[int, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    without_retry_after: int = 0
    answered_in_all: int = 0

    def count(self, place: int, started_at: float, answer: Answer | None) -> None:
        now = time.perf_counter()
        if answer is not None and answer.status == 200:
            self.answered_in_all += 1
            self.kept.setdefault(place, answer.body)
        # By its end alone: without those under way at the start, a short load would count as many too few as there are
        # clients, and the rate of a slow server suffer more than that of a fast one.
        if not self.starts_at <= now <= self.ends_at:
            return
        self.latencies["lost" if answer is None else str(answer.status)].append(now - started_at)
        if answer is not None:
            self.received_bytes += len(answer.body)
            self.without_retry_after += answer.status in (429, 503) and answer.header("retry-after") is None


def run_load(load: Load) -> LoadResult:
    """Run the load in a process of its own. Raises RuntimeError with what that process said."""
    spec = json.dumps(asdict(load), default=str)
    done = subprocess.run([sys.executable, "-m", "benchmarks.load"], input=spec, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the load generator ended with {done.returncode}:\n{done.stderr}")
    return read_result(done.stdout)


async def run_load_beside(load: Load) -> LoadResult:
    """As `run_load`, while the caller's event loop goes on."""
    return await asyncio.to_thread(run_load, load)


def read_result(text: str) -> LoadResult:
    """The result that the process printed."""
    found = json.loads(text)
    return LoadResult(**(found | {name: Latency(**found[name]) for name in ("good", "refused")}))


async def generate(load: Load) -> LoadResult:
    """Do what `load` says, in this process."""
    requests = [build_request(load.asked, photo, load.host, load.port) for photo in read_photos(load.photos)]
    began_at = time.perf_counter()
    tally = _Tally(began_at + load.warm_up_s, began_at + load.warm_up_s + load.seconds)
    work = asyncio.ensure_future(_open_loop(load, requests, tally) if load.rate else _closed(load, requests, tally))
    await asyncio.sleep(load.warm_up_s)
    cpu_before = time.process_time()
    await asyncio.wait([work], timeout=tally.ends_at - time.perf_counter())
    cpu_s = time.process_time() - cpu_before
    await asyncio.wait([work], timeout=_GRACE_S)  # what is under way ends, so that the next load finds an idle server
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if load.answers is not None:
        load.answers.mkdir(parents=True, exist_ok=True)
        for place, body in tally.kept.items():
            (load.answers / f"{place}.bin").write_bytes(body)
    good = tally.latencies.get("200", [])
    return LoadResult(
        seconds=load.seconds,
        answered=len(good),
        answered_in_all=tally.answered_in_all,
        statuses={status: len(each) for status, each in sorted(tally.latencies.items())},
        good=describe_latency(good),
        refused=describe_latency(tally.latencies.get("429", []) + tally.latencies.get("503", [])),
        without_retry_after=tally.without_retry_after,
        client_cpu_s=cpu_s,
        received_bytes=tally.received_bytes,
    )


async def _closed(load: Load, requests: list[Request], tally: _Tally) -> None:
    async def ask_again_and_again(client: int) -> None:
        connection = await Connection.open(load.host, load.port)
        number = client
        try:
            while time.perf_counter() < tally.ends_at:
                if not connection.is_open:
                    connection = await Connection.open(load.host, load.port)
                await _ask(connection, requests, number, tally)
                number += load.clients
        finally:
            connection.close()

    await asyncio.gather(*(ask_again_and_again(client) for client in range(load.clients)))


async def _open_loop(load: Load, requests: list[Request], tally: _Tally) -> None:
    idle: list[Connection] = []

    async def ask_once(number: int) -> None:
        while idle and not idle[-1].is_open:
            idle.pop()
        try:
            connection = idle.pop() if idle else await Connection.open(load.host, load.port)
        except OSError:
            tally.count(number % len(requests), time.perf_counter(), None)
            return
        await _ask(connection, requests, number, tally)
        idle.append(connection)

    began_at, number = time.perf_counter(), 0
    try:
        async with asyncio.TaskGroup() as tasks:
            while (now := time.perf_counter()) < tally.ends_at:
                # All that are due by now: a late wake-up must not thin out the load.
                while number < (now - began_at) * load.rate:
                    tasks.create_task(ask_once(number))
                    number += 1
                await asyncio.sleep(0.002)
    finally:
        for connection in idle:
            connection.close()


async def _ask(connection: Connection, requests: list[Request], number: int, tally: _Tally) -> None:
    place = number % len(requests)
    started_at = time.perf_counter()
    try:
        answer = await connection.ask(*requests[place].parts(number))
    except ConnectionLostError:
        tally.count(place, started_at, None)
    else:
        tally.count(place, started_at, answer)


def main() -> None:
    """Read a Load from standard input, run it, print a LoadResult."""
    import uvloop

    given = json.load(sys.stdin)
    load = Load(
        **(
            given
            | {
                "photos": Path(given["photos"]),
                "asked": Asked(**given["asked"]),
                "answers": given["answers"] and Path(given["answers"]),
            }
        )
    )
    print(json.dumps(asdict(uvloop.run(generate(load)))))


if __name__ == "__main__":
    main()
