"""What averages hide: the start, clicks on a kept photo, callers that hang up, a bad photo among good ones, overload.

Each scenario but the first asks a running server; all return their figures by name.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import replace

from benchmarks.contestants import Contestant
from benchmarks.http_client import Answer, Connection
from benchmarks.load import Load, LoadResult, run_load, run_load_beside
from benchmarks.processes import Server, run_server
from benchmarks.requests import Asked, build_request, get_request, read_photos
from benchmarks.statistics import describe_latency, median

Figures = dict[str, float]

HANG_UPS = 48
_BUSY_CLIENTS = 32


def start(contestant: Contestant) -> Figures:
    """From spawn to the first good answer of `/readyz`: nothing kept from before, then with the graphs of that time.

    The first time also to when the last network is converted.
    """
    seconds, settled = [], []
    with tempfile.TemporaryDirectory() as empty:
        environment = contestant.environment | {"PETSEG_ENGINE_CACHE": empty}
        for _ in range(2):
            with run_server(contestant.command, environment, contestant.ready_path) as server:
                seconds.append(server.start_s)
                settled.append(server.settled_s)
    return {
        "seconds": seconds[0],
        "seconds_until_all_are_converted": settled[0],
        "seconds_with_networks_converted_before": seconds[1],
    }


async def clicks(load: Load, model: str, count: int = 20) -> Figures:
    """The first click on a photo, which is uploaded and encoded, against the second, by its image id."""
    first_s, second_s, first_server_ms, second_server_ms = [], [], [], []
    photos = read_photos(load.photos)
    connection = await Connection.open(load.host, load.port)
    for number in range(count):
        asked = Asked(f"/segment/{model}?x=200&y=150", "raw", is_unique=True)
        request = build_request(asked, photos[number % len(photos)], load.host, load.port)
        first, spent = await _timed(connection.ask(*request.parts(int(time.time_ns()))))
        first_s.append(spent)
        first_server_ms.append(_server_ms(first))
        path = f"/segment/{model}?x=210&y=160&image_id={first.header('x-image-id')}"
        again = build_request(Asked(path, "raw"), b"", load.host, load.port)
        second, spent = await _timed(connection.ask(*again.parts(0)))
        second_s.append(spent)
        second_server_ms.append(_server_ms(second))
    connection.close()
    return {
        "first_ms": 1000 * median(first_s),
        "kept_ms": 1000 * median(second_s),
        "kept_of_first": median(second_s) / median(first_s),
        "first_server_ms": median(first_server_ms),
        "kept_server_ms": median(second_server_ms),
    }


async def hang_ups(load: Load, rounds: int = 5) -> Figures:
    """The next request after 48 clients sent one each and hung up, against the same request to an idle server."""
    photos = read_photos(load.photos)
    request = build_request(load.asked, photos[0], load.host, load.port)
    idle_s, after_s = [], []
    for _ in range(rounds):
        await asyncio.sleep(0.5)
        idle_s.append(await _ask_anew(load, request.parts(0)))
        connections = await asyncio.gather(*(Connection.open(load.host, load.port) for _ in range(HANG_UPS)))
        for connection in connections:
            connection.send(*request.parts(0))
        await asyncio.sleep(0.1)
        for connection in connections:
            connection.close()
        after_s.append(await _ask_anew(load, request.parts(0)))
    return {
        "idle_ms": 1000 * median(idle_s),
        "after_ms": 1000 * median(after_s),
        "after_of_idle": median(after_s) / median(idle_s),
    }


async def bad_photo(load: Load, rounds: int = 20) -> Figures:
    """Seven good photos and a truncated one at once: how many good ones are lost, how many bad ones taken."""
    photos = read_photos(load.photos)
    lost = taken = 0
    for _ in range(rounds):
        good = [build_request(load.asked, photos[place % len(photos)], load.host, load.port) for place in range(7)]
        bad = build_request(load.asked, photos[0][: len(photos[0]) // 3], load.host, load.port)
        connections = [await Connection.open(load.host, load.port) for _ in range(8)]
        asked = [
            connection.ask(*request.parts(0)) for connection, request in zip(connections, [*good, bad], strict=True)
        ]
        answers = await asyncio.gather(*asked)
        lost += sum(answer.status != 200 for answer in answers[:-1])
        taken += answers[-1].status < 400
        for connection in connections:
            connection.close()
    return {"good": 7 * rounds, "good_lost": lost, "bad": rounds, "bad_taken": taken}


async def health(load: Load, path: str = "/healthz") -> Figures:
    """Answers of the health address while 32 clients keep the server busy; asked 20 times a second."""
    busy = asyncio.ensure_future(run_load_beside(replace(load, clients=_BUSY_CLIENTS)))
    await asyncio.sleep(min(1.0, load.warm_up_s + load.seconds / 2))
    connection = await Connection.open(load.host, load.port)
    request, spent_s, failed = get_request(path, load.host, load.port), [], 0
    while not busy.done():
        answer, spent = await _timed(connection.ask(request))
        spent_s.append(spent)
        failed += answer.status != 200
        await asyncio.wait([busy], timeout=0.05)
    connection.close()
    found = describe_latency(spent_s)
    figures = {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "max_ms": found.max_ms}
    return {"asked": found.count, "failed": failed} | figures


def overload(server: Server, load: Load, overload_s: float, times: float = 4.0) -> Figures:
    """Requests at `times` the rate that 32 clients reach: refusals must be quick, memory steady, nobody late."""
    sustainable = run_load(replace(load, clients=_BUSY_CLIENTS)).rate or 1.0
    with server.measured() as meter:
        result: LoadResult = run_load(
            replace(load, rate=times * sustainable, warm_up_s=0.1 * overload_s, seconds=0.9 * overload_s)
        )
    samples = [pss for _, pss in meter.pss_mb]
    settled, last = samples[len(samples) // 4], samples[-1]
    asked = sum(result.statuses.values())
    refused = sum(result.statuses.get(status, 0) for status in ("429", "503"))
    return {
        "sustainable_rate": sustainable,
        "asked_rate": asked / result.seconds,
        "accepted_rate": result.rate,
        "accepted_of_sustainable": result.rate / sustainable,
        "accepted_p99_ms": result.good.p99_ms,
        "accepted_max_ms": result.good.max_ms,
        "refused": refused,
        "refused_p50_ms": result.refused.p50_ms,
        "refused_p99_ms": result.refused.p99_ms,
        "without_retry_after": result.without_retry_after,
        "late": result.statuses.get("504", 0),  # its status where the deadline passed
        "other": asked - result.answered - refused - result.statuses.get("504", 0),  # `lost` and `unanswered` too
        "growth_mb": last - settled,
        "is_alive": float(server.process.poll() is None),
    }


async def _ask_anew(load: Load, parts: tuple[bytes, ...]) -> float:
    """Seconds of one request on a connection of its own, opening included."""
    started_at = time.perf_counter()
    connection = await Connection.open(load.host, load.port)
    await connection.ask(*parts)
    connection.close()
    return time.perf_counter() - started_at


async def _timed(asked: Awaitable[Answer]) -> tuple[Answer, float]:
    started_at = time.perf_counter()
    answer = await asked
    return answer, time.perf_counter() - started_at


def _server_ms(answer: Answer) -> float:
    """What the server says that it took in all."""
    parts = dict(part.strip().split(";dur=") for part in (answer.header("server-timing") or "total;dur=nan").split(","))
    return float(parts["total"])
