"""What we mean to reach, and whether these results do. Every ratio is taken inside one alternation, then the median."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.peers import Turn
from benchmarks.raw import RawResult
from benchmarks.scenarios import Figures
from benchmarks.serve import Row
from benchmarks.statistics import median, without_client


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    name: str
    wanted: str
    got: str
    is_met: bool | None
    """None where it was not measured."""
    ceiling: str = ""
    """What the raw pipeline, which serves nobody, comes to on this machine; empty where that means nothing."""


@dataclass(frozen=True)
class Comparison:
    """All turns and raw runs of one `peers` command."""

    turns: Sequence[Turn]
    raw: Sequence[RawResult]
    alternations: int
    cores: int

    @property
    def peers_precision(self) -> str:
        """What `PEERS` computed in; bf16 where none took part."""
        return next((turn.precision for turn in self.turns if turn.contestant in PEERS), "bf16")

    def row(self, name: str, alternation: int, clients: int) -> Row | None:
        """The contestant's row in one alternation."""
        for turn in self.turns:
            if turn.contestant == name and turn.alternation == alternation:
                return next((row for row in turn.rows if row.clients == clients), None)
        return None

    def ratio(self, ours: str, theirs: Sequence[str], value: Callable[[Row], float], clients: int) -> float:
        """Median over the alternations of our value by the best peer's; the best is the one of the highest rate.

        NaN where one of the sides did not take part.
        """
        ratios = []
        for alternation in range(self.alternations):
            own, best = self.row(ours, alternation, clients), self._best(theirs, alternation, clients)
            if own is not None and best is not None:
                ratios.append(value(own) / value(best))
        return median(ratios)

    def raw_ratio(self, ours: str, precision: str, clients: int, has_client: bool) -> float:
        """Median of our rate by the best raw pipeline's of the same alternation, the load generator's CPU on or off."""
        ratios = []
        for alternation in range(self.alternations):
            row, raw_rate = self.row(ours, alternation, clients), self._raw_rate(precision, alternation)
            if row is not None:
                rate, client_cpu_s = row.rate, row.client_cpu_ms * row.answered / 1000
                if not has_client:
                    rate = without_client(rate, client_cpu_s, row.seconds, self.cores)
                ratios.append(rate / raw_rate)
        return _median_of_known(ratios)

    def ceiling(self, precision: str, theirs: Sequence[str], clients: int) -> float:
        """Median of the best raw pipeline's rate by the best peer's: no server with our engine can do more here."""
        ratios = []
        for alternation in range(self.alternations):
            if (best := self._best(theirs, alternation, clients)) is not None:
                ratios.append(self._raw_rate(precision, alternation) / best.rate)
        return _median_of_known(ratios)

    def _best(self, names: Sequence[str], alternation: int, clients: int) -> Row | None:
        """The row of the highest rate among those contestants in one alternation."""
        rows = [row for name in names if (row := self.row(name, alternation, clients)) is not None]
        return max(rows, key=lambda row: row.rate, default=None)

    def _raw_rate(self, precision: str, alternation: int) -> float:
        """The best raw pipeline's rate in one alternation; NaN where none ran."""
        runs = [each.rate for each in self.raw if each.precision == precision]
        size = len(runs) // max(1, self.alternations)
        return max(runs[alternation * size : (alternation + 1) * size], default=math.nan)

    def same_pixels(self, name: str) -> float:
        """The worst agreement with the reference masks; NaN where it did not take part."""
        return min((turn.same_pixels for turn in self.turns if turn.contestant == name), default=math.nan)

    def start_s(self, name: str) -> float:
        """Median seconds from spawn to ready."""
        return median([turn.start_s for turn in self.turns if turn.contestant == name])


PEERS = ("fastapi", "uvicorn-2", "litserve", "ray", "bentoml")
"""In the fastest precision that the CPU computes in."""
BATCHING_PEERS = ("litserve", "ray")
FP32_PEERS = ("fastapi-fp32", "litserve-fp32")
"""The same in fp32, where `PEERS` are faster in another."""


def rate(row: Row) -> float:
    """Good answers a second."""
    return row.rate


def judge_peers(found: Comparison) -> list[Goal]:
    """The goals that a comparison with the peers decides; those of bf16 only where the CPU computes in it."""
    fast = found.peers_precision
    ours = f"petseg-{fast}"
    rivals: list[tuple[str, Sequence[str], float, str]] = [
        ("petseg-int8", PEERS, 2.2, f"best {fast} peer"),
        (ours, ("fastapi",), 2.8, f"plain FastAPI, {fast}"),
        (ours, ("litserve-engine",), 1.3, f"LitServe running our engine, {fast}"),
        ("petseg-fp32", PEERS if fast == "fp32" else FP32_PEERS, 1.5, "best fp32 peer"),
    ]
    if fast == "bf16":
        rivals.insert(0, (ours, PEERS, 1.8, "best bf16 peer"))
    goals = []
    for clients in (8, 32):
        for name, theirs, least, whom in rivals:
            got = found.ratio(name, theirs, rate, clients)
            most = found.ceiling(name.removeprefix("petseg-"), theirs, clients)
            goal = at_least(f"{name}, {clients} clients: rate by that of {whom}", least, got)
            goals.append(replace(goal, ceiling="" if math.isnan(most) else f"{most:.2f}"))
    same = found.same_pixels("petseg-fp32")
    goals.append(at_least("petseg-fp32: pixels equal to the reference masks", 1.0, same, digits=8))
    for name in dict.fromkeys(("petseg-fp32", ours, "petseg-int8")):
        precision = name.removeprefix("petseg-")
        for least, has_client in ((0.85, True), (0.95, False)):
            what = "rate by the raw pipeline's" + ("" if has_client else ", the load generator's CPU time taken off")
            got = max_of(found.raw_ratio(name, precision, clients, has_client) for clients in (8, 32))
            goals.append(at_least(f"{name}: {what}", least, got))
    fastest = min(
        PEERS, key=lambda name: not_nan(median_of(found, name, 1, lambda row: row.p50_ms), otherwise=math.inf)
    )
    one = found.ratio(ours, (fastest,), lambda row: row.p50_ms, 1)
    goals.append(at_most(f"{ours}, 1 client: p50 by the lowest of the peers ({fastest})", 0.6, one))
    calmest = min(
        PEERS, key=lambda name: not_nan(median_of(found, name, 32, lambda row: row.p99_ms), otherwise=math.inf)
    )
    tail = found.ratio(ours, (calmest,), lambda row: row.p99_ms, 32)
    goals.append(at_most(f"{ours}, 32 clients: p99 by the lowest of the peers ({calmest})", 0.5, tail))
    memory = found.ratio(ours, BATCHING_PEERS, lambda row: row.peak_pss_mb, 32)
    goals.append(at_most(f"{ours}: memory by the best batching peer's", 0.5, memory))
    return goals


def judge_scenarios(found: dict[str, Figures]) -> list[Goal]:
    """The goals that the scenarios decide."""

    def figure(scenario: str, name: str) -> float:
        return found.get(scenario, {}).get(name, math.nan)

    return [
        at_most(
            "seconds from start to ready, all shipped models, nothing kept from before",
            15.0,
            figure("start", "seconds"),
        ),
        at_most(
            "click on a kept photo by the first click, on the study's ViT-L/14 (random weights)",
            0.15,
            figure("full_size_clicks", "kept_of_first"),
        ),
        at_most("the same on the shipped model", 0.15, figure("clicks", "kept_of_first")),
        at_most(
            "the same on the shipped model: milliseconds in the server",
            10.0,
            figure("clicks", "kept_server_ms"),
        ),
        at_most("request after 48 hang-ups by the same when idle", 2.0, figure("hang_ups", "after_of_idle")),
        at_most("good photos lost to a bad one among eight", 0.0, figure("bad_photo", "good_lost")),
        at_most("/healthz under full load: p99 in ms", 20.0, figure("health", "p99_ms")),
        at_most("overload: p99 of a refusal in ms", 50.0, figure("overload", "refused_p99_ms")),
        at_most("overload: refusals without Retry-After", 0.0, figure("overload", "without_retry_after")),
        at_most("overload: accepted requests past their deadline", 0.0, figure("overload", "late")),
        at_most("overload: answers of another kind, or none", 0.0, figure("overload", "other")),
        at_most("overload: growth of memory in MB once settled", 10.0, figure("overload", "growth_mb")),
        at_least("overload: accepted by the sustainable rate", 0.8, figure("overload", "accepted_of_sustainable")),
    ]


def median_of(found: Comparison, name: str, clients: int, value: Callable[[Row], float]) -> float:
    """Median over the alternations; NaN where the contestant did not take part."""
    rows = [found.row(name, alternation, clients) for alternation in range(found.alternations)]
    return median([value(row) for row in rows if row is not None])


def not_nan(value: float, otherwise: float) -> float:
    """`value`, or `otherwise` for NaN."""
    return otherwise if math.isnan(value) else value


def _median_of_known(values: Iterable[float]) -> float:
    """The median without NaN; NaN where all are."""
    return median([value for value in values if not math.isnan(value)])


def max_of(values: Iterable[float]) -> float:
    """The largest that is not NaN; NaN where all are."""
    known = [value for value in values if not math.isnan(value)]
    return max(known, default=math.nan)


def at_least(name: str, least: float, got: float, digits: int = 2) -> Goal:
    """A goal from below."""
    return Goal(name, f">= {least:g}", _show(got, digits), None if math.isnan(got) else got >= least)


def at_most(name: str, most: float, got: float, digits: int = 2) -> Goal:
    """A goal from above."""
    return Goal(name, f"<= {most:g}", _show(got, digits), None if math.isnan(got) else got <= most)


def _show(value: float, digits: int) -> str:
    return "not measured" if math.isnan(value) else f"{value:.{digits}f}"
