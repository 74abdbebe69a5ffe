"""The soak's figures as a Markdown page."""

import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.soak.balancer import Rolling
from tests.soak.load import Tally
from tests.soak.watch import Sample, Watch

_MIB = 1 << 20
_MAX_SHOWN = 20


@dataclass(frozen=True)
class Soak:
    """One whole run."""

    command: str
    requests: int
    clients: int
    photos: int
    seed: int
    took_s: float
    tally: Tally
    watch: Watch
    exit_code: int
    """The server's, after SIGTERM."""
    rolling: Rolling | None
    faults: Sequence[str]
    """What should not have been; empty is a pass."""


def write_page(path: Path, soak: Soak) -> None:
    """Write the page of `soak`."""
    path.write_text("\n".join([*_summary(soak), *_answers(soak), *_memory(soak.watch), *_rolling(soak.rolling)]) + "\n")


def _summary(soak: Soak) -> Iterable[str]:
    tally = soak.tally
    bad = sum(count for kind, count in tally.counts.items() if kind.startswith("bad:"))
    yield "# Soak"
    yield ""
    yield (
        f"{tally.total} requests of {soak.clients} clients at once to one server process in {soak.took_s:.0f} s: "
        f"{tally.total - bad} good ones, each compared with a reference mask computed beforehand, and {bad} bad ones."
    )
    yield ""
    yield f"- result: **{'passed' if not soak.faults else 'FAILED'}**"
    yield f"- wrong answers: {len(tally.wrong)}; requests without an answer: {len(tally.lost)}"
    yield f"- exit code after SIGTERM: {soak.exit_code}"
    yield f"- to repeat: `{soak.command}`; request i of seed {soak.seed} is the same each time"
    yield f"- {_machine()}"
    for fault in soak.faults[:_MAX_SHOWN]:
        yield f"- fault: {fault}"
    yield ""


def _answers(soak: Soak) -> Iterable[str]:
    tally = soak.tally
    yield "## Answers"
    yield ""
    yield "Least agreement: share of pixels equal to the reference's, in the worst answer of the line."
    yield ""
    yield "| request | count | least agreement | median | 99 of 100 |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for kind in sorted(tally.counts):
        seconds = tally.seconds.get(kind, [])
        least = "" if kind.startswith(("bad:", "GET")) else f"{tally.least_agreement[kind]:.5f}"
        yield f"| {kind} | {tally.counts[kind]} | {least} | {_ms(seconds, 0.5)} | {_ms(seconds, 0.99)} |"
    yield ""


def _memory(watch: Watch) -> Iterable[str]:
    yield "## What the process held"
    yield ""
    yield (
        "Median of the last quarter less that of the second: "
        f"{watch.growth_bytes / _MIB:+.1f} MiB, {watch.growth_threads:+.0f} threads, {watch.growth_files:+.0f} files."
    )
    yield ""
    yield "| requests | memory | threads | open files |"
    yield "| ---: | ---: | ---: | ---: |"
    for sample in _spread(watch.samples, 12):
        yield f"| {sample.requests} | {sample.rss_bytes / _MIB:.0f} MiB | {sample.threads} | {sample.files} |"
    yield ""


def _rolling(rolling: Rolling | None) -> Iterable[str]:
    if rolling is None:
        return
    tally = rolling.tally
    lost_to_stops = len(tally.lost) - rolling.lost_to_kills
    yield "## Restarts under load"
    yield ""
    yield (
        f"Two processes, which linger for half a second, behind a balancer that sends on what was refused and nothing "
        f"else: {tally.total} requests, "
        f"{len(tally.wrong)} wrong answers, {rolling.refused} refusals sent on."
    )
    yield ""
    yield f"- {rolling.restarts} processes replaced with SIGTERM: {lost_to_stops} requests lost"
    yield (
        f"- {rolling.kills} processes replaced with SIGKILL: {rolling.lost_to_kills} requests lost, all of them under "
        "way on the killed process, each with a connection error"
    )


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    step = max(1, (len(samples) - 1) / (count - 1))
    return [samples[round(index * step)] for index in range(count) if round(index * step) < len(samples)]


def _ms(seconds: Sequence[float], share: float) -> str:
    if not seconds:
        return ""
    if len(seconds) == 1:
        return f"{1000 * seconds[0]:.0f} ms"
    return f"{1000 * statistics.quantiles(seconds, n=100, method='inclusive')[round(100 * share) - 1]:.0f} ms"


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, Python {platform.python_version()}, torch {torch.__version__}; server and clients on one machine"
