"""Small pictures for the results page."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.goals import Comparison, median_of, rate
from benchmarks.raw import FORWARD, RawResult
from benchmarks.serve import Row

_SIZE, _DPI = (7.2, 3.6), 80


def plot_peers(path: Path, found: Comparison, clients: Sequence[int]) -> None:
    """Bars: median rate of each contestant at each number of clients."""
    names = list(dict.fromkeys(turn.contestant for turn in found.turns))
    figure, axes = plt.subplots(figsize=_SIZE, dpi=_DPI)
    height = 0.8 / len(clients)
    for place, count in enumerate(clients):
        rates = [median_of(found, name, count, rate) for name in names]
        places = [index + height * (place - (len(clients) - 1) / 2) for index in range(len(names))]
        axes.barh(places, rates, height, label=f"{count} client{'s' * (count > 1)}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("photos a second")
    axes.legend()
    _save(figure, path)


def plot_models(path: Path, rows: Sequence[Row]) -> None:
    """Lines: rate (left) and p99 latency (right) of each model by number of clients."""
    figure, (left, right) = plt.subplots(1, 2, figsize=_SIZE, dpi=_DPI)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model and (row.output, row.body, row.photo) == PLAIN]
        clients = [row.clients for row in own]
        left.plot(clients, [row.rate for row in own], marker="o", label=model)
        right.plot(clients, [row.p99_ms for row in own], marker="o", label=model)
    for axes, label in ((left, "photos a second"), (right, "p99 latency (ms)")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("clients")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    left.legend(fontsize="small")
    _save(figure, path)


PLAIN = ("png", "raw", "100 KB")
"""(output, body, photo) of the rows that compare the models."""


def plot_raw(path: Path, results: Sequence[RawResult], model: str) -> None:
    """Lines: images a second of the forward pass by batch size, one for each precision and number of streams."""
    figure, axes = plt.subplots(figsize=_SIZE, dpi=_DPI)
    own = [each for each in results if each.model == model and each.task == FORWARD]
    for precision, streams in dict.fromkeys((each.precision, each.streams) for each in own):
        line = [each for each in own if (each.precision, each.streams) == (precision, streams)]
        label = f"{precision}, {streams} stream{'s' * (streams > 1)}"
        axes.plot([each.batch_size for each in line], [each.rate for each in line], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size")
    axes.set_ylabel("images a second, forward alone")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # inside it would lie over a line
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
