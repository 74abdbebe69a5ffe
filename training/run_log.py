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
        path = self.folder / "log.csv"
        row = {"stage": stage, "epoch": epoch, **flat}
        known = _columns(path)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, known or list(row), restval="", extrasaction="ignore")
            if not known:
                writer.writeheader()
            writer.writerow(row)
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


def _columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _flatten(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in figures.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}/") if isinstance(value, dict) else {name: float(value)}
    return flat
