"""What we mean to reach, and whether these results do. Every ratio is taken inside one alternation, then the median."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks.peers import Turn
from benchmarks.raw import RawResult
from benchmarks.scenarios import Figures
from benchmarks.serve import Row
from benchmarks.statistics import median, without_client
from service.settings import Settings


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

        NaN where one of the sides did not take part, or got no answer.
        """
        return median(self.ratios(ours, theirs, value, clients))

    def ratios(self, ours: str, theirs: Sequence[str], value: Callable[[Row], float], clients: int) -> list[float]:
        """The same of each alternation."""
        found = []
        for alternation in range(self.alternations):
            own, best = self.row(ours, alternation, clients), self._best(theirs, alternation, clients)
            if own is not None and best is not None:
                found.append(value(own) / value(best))
        return found

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
        return median(ratios)

    def ceiling(self, precision: str, theirs: Sequence[str], clients: int) -> float:
        """Median of the best raw pipeline's rate by the best peer's: no server with our engine can do more here."""
        ratios = []
        for alternation in range(self.alternations):
            if (best := self._best(theirs, alternation, clients)) is not None:
                ratios.append(self._raw_rate(precision, alternation) / best.rate)
        return median(ratios)

    def _best(self, names: Sequence[str], alternation: int, clients: int) -> Row | None:
        """The row of the highest rate among those contestants in one alternation."""
        rows = [row for name in names if (row := self.row(name, alternation, clients)) is not None and row.answered]
        return max(rows, key=lambda row: row.rate, default=None)

    def _raw_rate(self, precision: str, alternation: int) -> float:
        """The best raw pipeline's rate in one alternation; NaN where none ran."""
        runs = [each.rate for each in self.raw if each.precision == precision]
        size = len(runs) // max(1, self.alternations)
        return max(runs[alternation * size : (alternation + 1) * size], default=math.nan)

    def best(self, names: Sequence[str], clients: int, value: Callable[[Row], float]) -> str:
        """Who of `names` has the highest median of `value`; empty where none got an answer."""
        medians = {name: median_of(self, name, clients, value) for name in names}
        known = [name for name in names if not math.isnan(medians[name])]
        return max(known, key=medians.__getitem__, default="")

    def same_pixels(self, name: str) -> float:
        """The worst agreement with the reference masks; NaN where it did not take part."""
        return min((turn.same_pixels for turn in self.turns if turn.contestant == name), default=math.nan)

    def start_s(self, name: str) -> float:
        """Median seconds from spawn to ready."""
        return median([turn.start_s for turn in self.turns if turn.contestant == name])


DEADLINE_S: float = Settings.model_fields["deadline_s"].default
"""That of a server with default settings."""
PEERS = ("fastapi", "uvicorn-workers", "litserve", "ray", "bentoml")
"""In the fastest precision that the CPU computes in."""
BATCHING_PEERS = ("litserve", "ray")
FP32_PEERS = ("fastapi-fp32", "litserve-fp32")
"""The same in fp32, where `PEERS` are faster in another."""

LEAST_SAME = {"fp32": 0.9999, "bf16": 0.995, "int8": 0.95}
"""Share of pixels as in the reference masks, by precision, below which a rate is worth nothing. What integers may cost
is judged by mIoU, which `petseg-train quantize` measures; here a whole network is only told from a broken one."""


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
    return [
        *(_judge_rate(found, clients, *rival) for clients in (8, 32) for rival in rivals),
        *_judge_masks(found, dict.fromkeys(("petseg-fp32", ours, "petseg-int8"))),
        *_judge_raw(found, dict.fromkeys(("petseg-fp32", ours, "petseg-int8"))),
        *_judge_waiting(found, ours),
    ]


def _judge_rate(found: Comparison, clients: int, name: str, theirs: Sequence[str], least: float, whom: str) -> Goal:
    ratios = found.ratios(name, theirs, rate, clients)
    most = found.ceiling(_precision(name), theirs, clients)
    if len(theirs) > 1 and (best := found.best(theirs, clients, rate)):
        whom = f"{whom} ({best})"
    goal = at_least(f"{name}, {clients} clients: rate by that of {whom}", least, median(ratios))
    if len(ratios) > 1:
        goal = replace(goal, got=f"{goal.got} ({min(ratios):.2f} - {max(ratios):.2f})")
    if found.same_pixels(name) < LEAST_SAME[_precision(name)]:
        goal = replace(goal, got=f"{goal.got}, but wrong masks", is_met=False)
    return replace(goal, ceiling="" if math.isnan(most) else f"{most:.2f}")


def _judge_masks(found: Comparison, names: Iterable[str]) -> list[Goal]:
    """Of float32 all pixels are wanted, which rounding alone may cost a few of."""
    goals = []
    for name in names:
        precision = _precision(name)
        least = 1.0 if precision == "fp32" else LEAST_SAME[precision]
        goals.append(at_least(f"{name}: pixels as in the reference masks", least, found.same_pixels(name), digits=7))
    return goals


def _judge_raw(found: Comparison, names: Iterable[str]) -> list[Goal]:
    goals = []
    for name in names:
        for least, has_client in ((0.85, True), (0.95, False)):
            what = "rate by the raw pipeline's, the better of 8 and 32 clients"
            what += "" if has_client else ", the load generator's CPU time taken off"
            got = max_of(found.raw_ratio(name, _precision(name), clients, has_client) for clients in (8, 32))
            goals.append(at_least(f"{name}: {what}", least, got))
    return goals


def _judge_waiting(found: Comparison, ours: str) -> list[Goal]:
    """Latencies and memory, each by the peer that needs least."""

    def by_lowest(what: str, most: float, peers: Sequence[str], clients: int, value: Callable[[Row], float]) -> Goal:
        lowest = found.best(peers, clients, lambda row: -value(row))
        got = found.ratio(ours, (lowest,), value, clients)
        return at_most(f"{ours}{what} ({lowest or 'no peer'})", most, got)

    return [
        by_lowest(", 1 client: p50 by the lowest of the peers", 0.6, PEERS, 1, lambda row: row.p50_ms),
        by_lowest(", 32 clients: p99 by the lowest of the peers", 0.5, PEERS, 32, lambda row: row.p99_ms),
        by_lowest(": memory by the lowest of the batching peers", 0.5, BATCHING_PEERS, 32, lambda row: row.peak_pss_mb),
    ]


def _precision(name: str) -> str:
    return name.removeprefix("petseg-")


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
        at_most("good photos lost to a truncated one among eight", 0.0, figure("bad_photo", "good_lost")),
        at_most("/healthz under full load: p99 in ms", 20.0, figure("health", "p99_ms")),
        at_most("/healthz under full load: answers that were not 200", 0.0, figure("health", "failed")),
        at_most("overload: p99 of a refusal in ms", 50.0, figure("overload", "refused_p99_ms")),
        at_most("overload: refusals without Retry-After", 0.0, figure("overload", "without_retry_after")),
        at_most("overload: accepted requests past their deadline (504)", 0.0, figure("overload", "late")),
        at_most(
            "overload: the slowest accepted answer in ms", 1000 * DEADLINE_S, figure("overload", "accepted_max_ms")
        ),
        at_most("overload: answers of another kind, or none", 0.0, figure("overload", "other")),
        at_most("overload: growth of memory in MB once settled", 10.0, figure("overload", "growth_mb")),
        at_least("overload: the process lives on", 1.0, figure("overload", "is_alive")),
        at_least("overload: accepted by the sustainable rate", 0.8, figure("overload", "accepted_of_sustainable")),
    ]


def median_of(found: Comparison, name: str, clients: int, value: Callable[[Row], float]) -> float:
    """Median over the alternations; NaN where the contestant did not take part, or got no answer."""
    return median(values_of(found, name, clients, value))


def values_of(found: Comparison, name: str, clients: int, value: Callable[[Row], float]) -> list[float]:
    """One value for each alternation in which the contestant got an answer."""
    rows = [found.row(name, alternation, clients) for alternation in range(found.alternations)]
    return [value(row) for row in rows if row is not None and row.answered]


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
