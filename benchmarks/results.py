"""Results on disk: one JSON file for each command, read again by the page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.edges import EdgeRow
from benchmarks.goals import Comparison
from benchmarks.gpu import GpuRow
from benchmarks.machine import describe_machine
from benchmarks.peers import Turn
from benchmarks.raw import RawResult
from benchmarks.scenarios import Figures
from benchmarks.serve import Row


@dataclass(frozen=True)
class PeerResults:
    """Our server and its peers on one model."""

    model: str
    summary: str
    """What the model is, by its card."""
    comparison: Comparison
    contestants: dict[str, str]
    """Summary by contestant."""
    absent: list[str]
    """Who did not take part, and why."""


@dataclass(frozen=True)
class Results:
    """All that the page shows; what was not measured is empty."""

    machine: dict[str, str]
    """Of the run that is named last in `runs`."""
    runs: dict[str, dict[str, str]]
    """By command what is told of its run: date, commit, processor, and the window of its loads."""
    raw: list[RawResult]
    serve: list[Row]
    scenarios: dict[str, Figures]
    edges: list[EdgeRow]
    settings: Comparison | None
    """Our server under several settings."""
    settings_summaries: dict[str, str]
    gpu_raw: list[RawResult]
    gpu: list[GpuRow]
    peers: list[PeerResults]
    """The study's model first."""


def write_results(folder: Path, command: str, found: Mapping[str, Any]) -> None:
    """<command>.json in `folder`, with the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    text = json.dumps({"date": day, "machine": describe_machine(), **found}, indent=1, default=_as_json)
    (folder / f"{command}.json").write_text(text + "\n")


def read_results(folder: Path) -> Results:
    """What the commands left in `folder`."""
    names = ("raw", "serve", "scenarios", "edges", "settings", "gpu")
    raw, serve, scenarios, edges, settings, gpu = (_read(folder / f"{name}.json") for name in names)
    peers = {path.stem.removeprefix("peers-"): _read(path) for path in sorted(folder.glob("peers-*.json"))}
    commands = dict(zip(names, (raw, serve, scenarios, edges, settings, gpu), strict=True))
    commands |= {f"peers --model {model}": found for model, found in peers.items()}
    made = {command: found for command, found in commands.items() if found}
    machines = [found["machine"] | found.get("versions", {}) for found in made.values()]
    return Results(
        machine=machines[-1] if machines else describe_machine(),
        runs={command: _describe_run(found) for command, found in made.items()},
        raw=[RawResult(**each) for each in raw.get("results", [])],
        serve=[Row(**each) for each in serve.get("rows", [])],
        scenarios=scenarios.get("scenarios", {}),
        edges=[EdgeRow(**each) for each in edges.get("rows", [])],
        settings=_read_comparison(settings) if settings else None,
        settings_summaries=settings.get("contestants", {}),
        gpu_raw=[RawResult(**each) for each in gpu.get("raw", [])],
        gpu=[GpuRow(**each) for each in gpu.get("rows", [])],
        peers=[
            PeerResults(model, found["model"], _read_comparison(found), found["contestants"], found["absent"])
            for model, found in peers.items()
        ],
    )


def _describe_run(found: dict[str, Any]) -> dict[str, str]:
    machine = found["machine"]
    return {
        "date": found.get("date", ""),
        "commit": machine["commit"],
        "processor": machine["processor"],
        "window": found.get("window", ""),
    }


def _read_comparison(found: dict[str, Any]) -> Comparison:
    turns = [Turn(**(turn | {"rows": tuple(Row(**row) for row in turn["rows"])})) for turn in found["turns"]]
    raw = [RawResult(**each) for each in found["raw"]]
    return Comparison(turns, raw, found["alternations"], found["cores"])


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _as_json(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
