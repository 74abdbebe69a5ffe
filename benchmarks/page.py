"""Results -> docs/benchmarks.md with its pictures."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.edges import EdgeRow
from benchmarks.goals import Comparison, Goal, judge_peers, judge_scenarios, median_of, rate, values_of
from benchmarks.gpu import best_forward, judge_gpu
from benchmarks.peers import CLIENTS
from benchmarks.plots import PLAIN, plot_models, plot_peers, plot_raw
from benchmarks.raw import DEVICE, FORWARD, PIPELINE, RawResult
from benchmarks.results import PeerResults, Results
from benchmarks.serve import Row
from benchmarks.statistics import median
from benchmarks.study import NAME
from service.stages import STAGES

STEPS = Path(__file__).with_name("steps.md")
"""What was tried, by hand: what paid and what did not."""

_SCENARIOS = {
    "start": "Start",
    "clicks": "A click on a kept photo",
    "full_size_clicks": "The same on ViT-L/14, random weights",
    "hang_ups": "After 48 clients hang up",
    "bad_photo": "A truncated photo among eight",
    "health": "/healthz under full load",
    "overload": "Four times the sustainable rate",
}


def write_page(path: Path, found: Results, has_steps: bool = True) -> None:
    """The page at `path`, pictures in the folder beside it that bears its name; at its end what was tried."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Benchmarks\n\nWritten by `python -m benchmarks page` from what the other commands measured; "
        "`python -m benchmarks all` does everything. The load generator shares the cores with the servers.",
        table(("machine", ""), found.machine.items()),
        table(
            ("command", "date", "commit", "processor", "each load runs"),
            ((command, *run.values()) for command, run in found.runs.items()),
        ),
    ]
    parts += ["## Goals"]
    for judged in found.peers:
        parts += [
            f"Against other servers, on `{judged.model}`, medians with the lowest and highest of the alternations; "
            "*most here* is the rate of our pipeline in one process that serves nobody, by that of the same peer:",
            _goals_table(judge_peers(judged.comparison)),
        ]
    if found.scenarios:
        parts += ["By itself:", _goals_table(judge_scenarios(found.scenarios))]
    if found.gpu:
        parts += ["On a GPU:", _goals_table(judge_gpu(found.gpu_raw, found.gpu)), *_gpu_section(found)]
    for results in found.peers:
        picture = f"peers-{results.model}.png"
        plot_peers(pictures / picture, results.comparison, CLIENTS)
        parts += _peers_section(results, f"{pictures.name}/{picture}")
    if found.serve:
        plot_models(pictures / "models.png", found.serve)
        parts += _serve_section(found.serve, f"{pictures.name}/models.png")
    if found.settings is not None:
        parts += _settings_section(found.settings, found.settings_summaries)
    if found.scenarios:
        parts.append("## Scenarios")
        rows = [
            (_SCENARIOS[scenario], name.replace("_", " "), f"{value:.3g}" if value < 100 else f"{value:.0f}")
            for scenario, figures in found.scenarios.items()
            for name, value in figures.items()
        ]
        parts.append(table(("scenario", "figure", ""), rows))
    if found.raw:
        plot_raw(pictures / "raw.png", found.raw, NAME)
        parts += _raw_section(found.raw, f"{pictures.name}/raw.png")
    if found.edges:
        parts += _edges_section(found.edges)
    if has_steps:
        parts.append(STEPS.read_text().strip())
    path.write_text("\n\n".join(parts) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column right-aligned where they hold figures."""
    lines = [tuple(row) for row in rows]
    is_number = [all(_is_figure(line[place]) for line in lines) for place in range(len(header))]
    rule = ["---:" if numeric and place else "---" for place, numeric in enumerate(is_number)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (tuple(header), tuple(rule), *lines))


def _is_figure(text: str) -> bool:
    return not text or text[0].isdigit() or text in ("-", "not measured")


def _goals_table(goals: Sequence[Goal]) -> str:
    has_ceilings = any(goal.ceiling for goal in goals)
    verdicts = {True: "yes", False: "**no**", None: "-"}
    header = ("goal", "wanted", "got", *(["most here"] if has_ceilings else []), "met")
    rows = [
        (goal.name, goal.wanted, goal.got, *([goal.ceiling] if has_ceilings else []), verdicts[goal.is_met])
        for goal in goals
    ]
    return table(header, rows)


def _peers_section(found: PeerResults, picture: str) -> list[str]:
    comparison = found.comparison
    rows = []
    for name in dict.fromkeys(turn.contestant for turn in comparison.turns):
        rates = [_with_range(values_of(comparison, name, clients, rate)) for clients in CLIENTS]
        p50, p99, server_cpu, client_cpu, pss = (
            f"{median_of(comparison, name, CLIENTS[-1], value):.{digits}f}"
            for value, digits in (
                (lambda row: row.p50_ms, 0),
                (lambda row: row.p99_ms, 0),
                (lambda row: row.server_cpu_ms, 1),
                (lambda row: row.client_cpu_ms, 2),
                (lambda row: row.peak_pss_mb, 0),
            )
        )
        one = f"{median_of(comparison, name, 1, lambda row: row.p50_ms):.1f}"
        errors = str(sum(row.errors for turn in comparison.turns if turn.contestant == name for row in turn.rows))
        same = f"{100 * comparison.same_pixels(name):.2f}"
        start = f"{comparison.start_s(name):.1f}"
        summary = found.contestants.get(name, "")
        rows.append((f"`{name}`: {summary}", *rates, one, p50, p99, server_cpu, client_cpu, pss, start, same, errors))
    header = (
        "server",
        *(f"req/s at {clients}" for clients in CLIENTS),
        "p50 at 1 (ms)",
        "p50 at 32",
        "p99 at 32",
        "CPU ms/request",
        "load generator's",
        "peak memory (MB, PSS)",
        "start (s)",
        "pixels as reference (%)",
        "errors",
    )
    raw = [each for each in comparison.raw if each.task == PIPELINE]
    by_run = {(each.precision, each.streams, each.batch_size) for each in raw}
    raw_rows = [
        (precision, str(streams), str(batch_size), f"{_median_rate(raw, precision, streams, batch_size):.0f}")
        for precision, streams, batch_size in sorted(by_run)
    ]
    return [
        f"## Against other servers: `{found.model}`",
        f"The same weights ({found.summary.rstrip('.')}) and the same task: photos of about 100 KB as multipart, "
        f"the mask back as PNG. Medians of {comparison.alternations} alternations. The peers' handlers are what their "
        "documentation and that of the libraries would have: Pillow opens, resizes and writes, torch computes. "
        "`litserve-engine` runs our engine instead, `litserve-pipeline` our decoding, resizing and PNG as well, so "
        f"that the serving alone is left: {_of_pipeline(comparison)}. The reference masks come from PyTorch in fp32 on "
        "squares as our own decoding and resizing make them, hence a few pixels of the peers' differ in fp32 too.",
        f"![rates]({picture})",
        table(header, rows),
        *found.absent,
        "The whole pipeline in one process without HTTP, in the same alternations:",
        table(("precision", "threads", "batch size", "photos a second"), raw_rows),
    ]


def _with_range(values: Sequence[float]) -> str:
    """The median, and between which values it lies."""
    if not values:
        return "-"
    return f"{median(values):.0f}" + (f" ({min(values):.0f} - {max(values):.0f})" if len(values) > 1 else "")


def _of_pipeline(found: Comparison) -> str:
    """Our rate by that of the peer that runs all our code but the server, in words."""
    ours = f"petseg-{found.peers_precision}"
    ratios = {clients: found.ratio(ours, ("litserve-pipeline",), rate, clients) for clients in CLIENTS}
    shown = [f"{ratio:.2f} at {clients}" for clients, ratio in ratios.items() if not math.isnan(ratio)]
    return f"our rate by its own is {', '.join(shown)} clients" if shown else "it did not take part here"


def _median_rate(raw: Sequence[RawResult], precision: str, streams: int, batch_size: int) -> float:
    return median(
        [
            each.rate
            for each in raw
            if (each.precision, each.streams, each.batch_size) == (precision, streams, batch_size)
        ]
    )


def _settings_section(found: Comparison, summaries: dict[str, str]) -> list[str]:
    def cells(name: str) -> tuple[str, ...]:
        figures: list[str] = []
        for clients in (1, 32):
            figures += [
                f"{median_of(found, name, clients, rate):.0f}",
                f"{found.ratio(name, ('default',), rate, clients):.2f}",
                f"{median_of(found, name, clients, lambda row: row.p50_ms):.1f}",
            ]
        cpu, pss = (
            median_of(found, name, 32, value) for value in (lambda row: row.server_cpu_ms, lambda row: row.peak_pss_mb)
        )
        return (f"{name}: {summaries.get(name, '')}", *figures, f"{cpu:.1f}", f"{pss:.0f}")

    header = ("setting", "req/s at 1", "by default's", "p50 (ms)", "req/s at 32", "by default's", "p50 (ms)")
    names = dict.fromkeys(turn.contestant for turn in found.turns)
    return [
        "## What the settings do",
        f"Medians of {found.alternations} alternations, raw bodies.",
        table((*header, "CPU ms/request", "PSS (MB)"), map(cells, names)),
    ]


def _edges_section(rows: Sequence[EdgeRow]) -> list[str]:
    cells = [
        (row.step, row.photo, row.way, f"{row.ms:.2f}", f"{row.of_plain:.2f}", f"{row.size_bytes or ''}")
        for row in rows
    ]
    return [
        "## Around the network",
        "CPU milliseconds in one thread, and the time by that of the first way.",
        table(("step", "photo", "way", "ms", "by first", "bytes"), cells),
    ]


def _serve_section(rows: Sequence[Row], picture: str) -> list[str]:
    def cells(row: Row) -> tuple[str, ...]:
        return (
            f"`{row.model}`",
            row.output,
            row.body,
            row.photo,
            str(row.clients),
            f"{row.rate:.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p90_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.server_cpu_ms:.1f}",
            f"{row.client_cpu_ms:.2f}",
            f"{row.peak_pss_mb:.0f}",
            f"{row.peak_rss_mb:.0f}",
            str(row.errors),
        )

    header = ("model", "output", "body", "photo", "clients", "req/s", "p50 (ms)", "p90", "p99", "CPU ms/request")
    costs = ("load generator's", "PSS (MB)", "RSS (MB)", "errors")
    plain = [row for row in rows if (row.output, row.body, row.photo) == PLAIN]
    return [
        "## Our server under load",
        "One process with all models and default settings. Photos sent to `clip` and `prompt` differ each time, so "
        "that none is kept from before.",
        f"![rates and latencies]({picture})",
        table(header + costs, map(cells, plain)),
        "### Outputs, bodies and large photos",
        table(header + costs, (cells(row) for row in rows if row not in plain)),
    ]


def _gpu_section(found: Results) -> list[str]:
    rows = [
        (
            f"`{row.model}`",
            str(row.fronts),
            str(row.clients),
            f"{row.rate:.0f}",
            f"{row.rate / best_forward(found.gpu_raw, row.model).rate:.2f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.batch:.1f}",
            f"{100 * row.gpu_busy:.0f}",
            f"{row.cores:.1f}",
            f"{row.hub:.2f}",
            f"{100 * row.loop:.0f}",
            f"{100 * row.host:.0f}",
            *(f"{row.stage_ms[stage]:.1f}" for stage in STAGES),
            str(row.errors),
        )
        for row in found.gpu
    ]
    load = ("model", "fronts", "clients", "photos/s", "by raw", "p50 (ms)", "p99", "photos a pass", "GPU busy (%)")
    stages = (f"{stage} (ms)" for stage in STAGES)
    header = (*load, "cores", "the hub's", "its event loop (%)", "all CPUs busy (%)", *stages, "errors")
    return [
        "## On a GPU",
        "Fronts speak HTTP and work on photos, the hub runs the network; load generators take CPUs too. A GPU is busy, "
        "by its driver, while any kernel runs. A hub's event loop that is busy all the time is the limit of its "
        "server; CPUs that are so, of the machine.",
        table(header, rows),
        "The raw passes: squares in the GPU's memory to logits in the host's, the same from the host's memory, and "
        "uploads to PNG in one process with so many threads.",
        _raw_table(found.gpu_raw),
    ]


def _raw_section(results: Sequence[RawResult], picture: str) -> list[str]:
    return ["## Without HTTP", f"![forward]({picture})", _raw_table(results)]


def _raw_table(results: Sequence[RawResult]) -> str:
    tasks = {FORWARD: "forward alone", DEVICE: "forward alone, from the device's memory", PIPELINE: "bytes to PNG"}
    rows = [
        (
            f"`{each.model}`",
            tasks[each.task],
            each.precision,
            str(each.streams),
            str(each.batch_size),
            f"{each.rate:.0f}",
            f"{each.cpu_ms:.1f}",
        )
        for each in results
    ]
    header = ("model", "task", "precision", "streams", "batch size", "photos a second", "CPU ms/photo")
    return table(header, rows)
