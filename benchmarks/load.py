"""The load generator: a process of its own, which tells the CPU time that it took from the server.

`run_load` starts it and reads its result; `python -m benchmarks.load` is the process. Closed loop: each client asks
again once it has its answer. Open loop: requests come at a fixed rate, whatever becomes of them.
"""

import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.http_client import Answer, Connection, ConnectionLostError
from benchmarks.requests import Asked, Request, build_request, read_photos
from benchmarks.statistics import Latency, describe_latency

_GRACE_S = 20.0
"""For what is under way once the clock has stopped."""
_LONGEST_S = 20.0
"""The clock stops after so long whether or not each client has had its rounds."""
_WARM_UP_ROUNDS = 2
_RETRY_S = 0.05
_MARK = "clock"
"""Line that the process prints when the clock starts, and again when it stops."""


@dataclass(frozen=True)
class Load:
    """What the load generator is to do."""

    port: int
    photos: Path
    asked: Asked
    seconds: float
    """The clock runs at least so long."""
    warm_up_s: float = 0.0
    """Before the clock starts, with the same load."""
    clients: int = 1
    """Closed loop: clients that ask side by side."""
    rounds: int = 0
    """Closed loop: answers for each client, in the mean, before the clock may stop, and two before it starts: a short
    window holds too few answers of a slow server for a rate, and cuts off its latencies."""
    rate: float = 0.0
    """Open loop where above 0: requests a second."""
    answers: Path | None = None
    """Folder for the body of one good answer to each photo, named by the photo's place."""
    host: str = "127.0.0.1"
    first: int = 0
    """Number of the first request. Photos are unique by number: generators beside each other need others each."""


@dataclass(frozen=True)
class LoadResult:
    """What the clients saw while the clock ran."""

    seconds: float
    """How long that was."""
    answered: int
    """Good answers."""
    statuses: dict[str, int]
    """Answers by status; `lost` for connections that broke or could not be had, `unanswered` for those given up."""
    good: Latency
    """Of what was asked while the clock ran, however late the answer came; in an open loop from when it was due."""
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
    """What was asked and answered. The clock is a window on it: `start` opens it, `stop` closes it."""

    started_at: float = math.inf
    stopped_at: float = math.inf
    ended: Counter[str] = field(default_factory=Counter)
    """Requests by status that ended while the clock ran. By their end alone: without those under way at the start, a
    short load would count as many too few as there are clients."""
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds by status, of requests that were sent while the clock ran."""
    under_way: int = 0
    """Of these, how many have not ended."""
    answered_in_all: int = 0
    kept: dict[int, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    without_retry_after: int = 0

    def start(self) -> None:
        self.started_at = time.perf_counter()

    def stop(self) -> None:
        self.stopped_at = time.perf_counter()

    @property
    def is_stopped(self) -> bool:
        return self.stopped_at < math.inf

    @property
    def is_over(self) -> bool:
        """Whether nothing that was sent while the clock ran is open: until then the load goes on as it was."""
        return self.is_stopped and self.under_way <= 0

    def send(self, asked_at: float) -> None:
        self.under_way += self._is_timed(asked_at)

    def count(self, place: int, asked_at: float, answer: Answer | None) -> None:
        now, status = time.perf_counter(), "lost" if answer is None else str(answer.status)
        if answer is not None and answer.status == 200:
            self.answered_in_all += 1
            self.kept.setdefault(place, answer.body)
        if self._is_timed(asked_at):
            self.under_way -= 1
            self.latencies[status].append(now - asked_at)
        if self._is_timed(now):
            self.ended[status] += 1
            if answer is not None:
                self.received_bytes += len(answer.body)
                self.without_retry_after += answer.status in (429, 503) and answer.header("retry-after") is None

    def _is_timed(self, moment: float) -> bool:
        return self.started_at <= moment <= self.stopped_at


def run_load(load: Load, on_clock: Callable[[], object] = lambda: None) -> LoadResult:
    """Run the load in a process of its own. Raises RuntimeError with what that process said.

    on_clock: called when the clock starts and when it stops.
    """
    spec = json.dumps(asdict(load), default=str)
    said = ""
    with tempfile.TemporaryFile("w+") as errors:
        words = [sys.executable, "-m", "benchmarks.load", spec]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for said in process.stdout:
                if said.strip() == _MARK:
                    on_clock()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"the load generator ended with {process.returncode}:\n{errors.read()}")
    return read_result(said)


async def run_load_beside(load: Load) -> LoadResult:
    """As `run_load`, while the caller's event loop goes on."""
    return await asyncio.to_thread(run_load, load)


def read_result(text: str) -> LoadResult:
    """The result that the process printed."""
    found = json.loads(text)
    return LoadResult(**(found | {name: Latency(**found[name]) for name in ("good", "refused")}))


async def generate(load: Load, on_clock: Callable[[], object] = lambda: None) -> LoadResult:
    """Do what `load` says, in this process."""
    requests = [build_request(load.asked, photo, load.host, load.port) for photo in read_photos(load.photos)]
    tally = _Tally()
    work = asyncio.ensure_future(_open_loop(load, requests, tally) if load.rate else _closed(load, requests, tally))
    least = 0 if load.rate else load.rounds * load.clients
    few = min(least, _WARM_UP_ROUNDS * load.clients)
    await _wait(work, load.warm_up_s, lambda: tally.answered_in_all >= few)
    tally.start()
    on_clock()
    cpu_before = time.process_time()
    await _wait(work, load.seconds, lambda: tally.ended.total() >= least)
    tally.stop()
    cpu_s = time.process_time() - cpu_before
    on_clock()
    await asyncio.wait([work], timeout=_GRACE_S)
    if work.done():
        work.result()  # a defect of the generator is no result
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if load.answers is not None:
        load.answers.mkdir(parents=True, exist_ok=True)
        for place, body in tally.kept.items():
            (load.answers / f"{place}.bin").write_bytes(body)
    unanswered = {"unanswered": tally.under_way} if tally.under_way > 0 else {}
    return LoadResult(
        seconds=tally.stopped_at - tally.started_at,
        answered=tally.ended["200"],
        statuses=dict(sorted(tally.ended.items())) | unanswered,
        good=describe_latency(tally.latencies["200"]),
        refused=describe_latency(tally.latencies["429"] + tally.latencies["503"]),
        without_retry_after=tally.without_retry_after,
        client_cpu_s=cpu_s,
        received_bytes=tally.received_bytes,
    )


async def _wait(work: "asyncio.Future[None]", seconds: float, is_enough: Callable[[], bool]) -> None:
    """Let `work` go on for `seconds`, and beyond that until it is enough, `_LONGEST_S` at most."""
    began_at = time.perf_counter()
    while (spent := time.perf_counter() - began_at) < seconds or (not is_enough() and spent < _LONGEST_S):
        if (await asyncio.wait([work], timeout=min(0.02, max(0.001, seconds - spent))))[0]:
            return


async def _closed(load: Load, requests: list[Request], tally: _Tally) -> None:
    async def ask_again_and_again(client: int) -> None:
        connection: Connection | None = None
        number = load.first + client
        try:
            while not tally.is_over:
                if connection is None or not connection.is_open:
                    connection = await _connect(load, tally, time.perf_counter())
                if connection is None:
                    await asyncio.sleep(_RETRY_S)
                    continue
                await _ask(connection, requests, number, time.perf_counter(), tally)
                number += load.clients
        finally:
            if connection is not None:
                connection.close()

    await asyncio.gather(*(ask_again_and_again(client) for client in range(load.clients)))


async def _connect(load: Load, tally: _Tally, asked_at: float) -> Connection | None:
    """A connection; None, and a lost request, where none is to be had."""
    try:
        return await Connection.open(load.host, load.port)
    except OSError:
        tally.send(asked_at)
        tally.count(0, asked_at, None)
        return None


async def _open_loop(load: Load, requests: list[Request], tally: _Tally) -> None:
    idle: list[Connection] = []

    async def ask_once(number: int, due_at: float) -> None:
        while idle and not idle[-1].is_open:
            idle.pop()
        connection = idle.pop() if idle else await _connect(load, tally, due_at)
        if connection is None:
            return
        try:
            await _ask(connection, requests, number, due_at, tally)
        except asyncio.CancelledError:
            connection.close()
            raise
        idle.append(connection)

    began_at, number = time.perf_counter(), load.first
    try:
        async with asyncio.TaskGroup() as tasks:
            while not tally.is_stopped:
                # All that are due by now: a late wake-up must not thin out the load.
                while (due_at := began_at + (number - load.first) / load.rate) < time.perf_counter():
                    tasks.create_task(ask_once(number, due_at))
                    number += 1
                await asyncio.sleep(0.002)
    finally:
        for connection in idle:
            connection.close()


async def _ask(connection: Connection, requests: list[Request], number: int, asked_at: float, tally: _Tally) -> None:
    """Send one request and count its answer. asked_at: when it was sent, or was due."""
    place = number % len(requests)
    tally.send(asked_at)
    try:
        answer = await connection.ask(*requests[place].parts(number))
    except ConnectionLostError:
        tally.count(place, asked_at, None)
    else:
        tally.count(place, asked_at, answer)


def main() -> None:
    """Run the Load given as the only argument; print `_MARK` as the clock starts and stops, then a LoadResult."""
    import uvloop

    given = json.loads(sys.argv[1])
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
    result = uvloop.run(generate(load, lambda: print(_MARK, flush=True)))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
