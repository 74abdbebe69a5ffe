"""What a run shows while it works: progress bars on a terminal, CSV and TensorBoard on disk."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """One epoch's progress bar."""

    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, figures="")

    def advance(self, **figures: float) -> None:
        """One batch further, showing the figures."""
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._progress.update(self._task, advance=1, figures=text)


class RunLog:
    """Logs of one run under `folder`; a process that is not the first logs nothing."""

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self.folder = folder
        self.enabled = enabled
        self.console = Console(quiet=not enabled)
        self._writer: Any = None

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Bar]:
        """A bar that goes away when its epoch ends."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, description, total)

    def epoch(self, stage: str, epoch: int, figures: dict[str, Any]) -> None:
        """One line for people, one row in log.csv, one point on each TensorBoard curve."""
        if not self.enabled:
            return
        flat = _flatten(figures)
        self.console.print(
            f"{stage} epoch {epoch}: " + "  ".join(f"{k} {v:.4f}" for k, v in flat.items()), highlight=False
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        _append(self.folder / "log.csv", {"stage": stage, "epoch": epoch, **flat})
        for key, value in flat.items():
            self._tensorboard().add_scalar(f"{stage}/{key}", value, epoch)

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._writer is not None:
            self._writer.close()

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # half a second that `--help` need not wait for

            self._writer = SummaryWriter(str(self.folder))
        return self._writer


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log.csv, an empty string where an epoch did not measure something; [] without a file.

    An epoch that a killed run repeated stands once, as it went the last time.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = {(row["stage"], row["epoch"]): row for row in csv.DictReader(file)}
    return list(rows.values())


def _append(path: Path, row: dict[str, Any]) -> None:
    rows = read_log(path)
    columns = list(dict.fromkeys(column for each in (*rows, row) for column in each))
    # Written anew each time: a later stage measures what an earlier one did not, and then the header grows.
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, row])
    partial.replace(path)


def _flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in figures.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}/") if isinstance(value, dict) else {name: float(value)}
    return flat
