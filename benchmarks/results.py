"""Results on disk: one JSON file for each command, read again by the page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.edges import EdgeRow
from benchmarks.goals import Comparison
from benchmarks.machine import describe_machine
from benchmarks.peers import Turn
from benchmarks.raw import RawResult
from benchmarks.scenarios import Figures
from benchmarks.serve import Row


@dataclass(frozen=True)
class Results:
    """All that the page shows; what was not measured is empty."""

    machine: dict[str, str]
    raw: list[RawResult]
    serve: list[Row]
    scenarios: dict[str, Figures]
    edges: list[EdgeRow]
    settings: Comparison | None
    """Our server under several settings."""
    comparison: Comparison | None
    """Our server and its peers."""
    contestants: dict[str, str]
    """Summary by contestant, of both comparisons."""
    absent: list[str]
    """Who did not take part, and why."""


def write_results(folder: Path, command: str, found: Mapping[str, Any]) -> None:
    """<command>.json in `folder`, with the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": describe_machine(), **found}, indent=1, default=_as_json)
    (folder / f"{command}.json").write_text(text + "\n")


def read_results(folder: Path) -> Results:
    """What the commands left in `folder`."""
    names = ("raw", "serve", "scenarios", "edges", "settings", "peers")
    raw, serve, scenarios, edges, settings, peers = (_read(folder / f"{name}.json") for name in names)
    machines = [found["machine"] for found in (raw, serve, scenarios, edges, settings, peers) if found]
    return Results(
        machine=(machines[-1] if machines else describe_machine()) | peers.get("versions", {}),
        raw=[RawResult(**each) for each in raw.get("results", [])],
        serve=[Row(**each) for each in serve.get("rows", [])],
        scenarios=scenarios.get("scenarios", {}),
        edges=[EdgeRow(**each) for each in edges.get("rows", [])],
        settings=_read_comparison(settings),
        comparison=_read_comparison(peers),
        contestants=settings.get("contestants", {}) | peers.get("contestants", {}),
        absent=peers.get("absent", []),
    )


def _read_comparison(found: dict[str, Any]) -> Comparison | None:
    if not found:
        return None
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
