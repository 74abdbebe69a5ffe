"""What a server process holds while it runs, read from Linux's /proc: memory, threads, open files."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    requests: int
    """Requests answered by then."""
    rss_bytes: int
    threads: int
    files: int
    """Open file descriptors, connections included."""


@dataclass
class Watch:
    """Looks at a process every `every` requests."""

    pid: int
    every: int
    samples: list[Sample] = field(default_factory=list)
    _seen: int = 0

    def count(self) -> None:
        """One more request has been answered."""
        if self._seen % self.every == 0:
            self.samples.append(look_at(self.pid, self._seen))
        self._seen += 1

    @property
    def growth_bytes(self) -> float:
        """Median memory of the last quarter of the run, less that of the second: the first one fills caches."""
        return self._change(lambda sample: sample.rss_bytes)

    @property
    def growth_threads(self) -> float:
        """The same of threads."""
        return self._change(lambda sample: sample.threads)

    @property
    def growth_files(self) -> float:
        """The same of open files."""
        return self._change(lambda sample: sample.files)

    def _change(self, value: Callable[[Sample], float]) -> float:
        quarter = max(1, len(self.samples) // 4)
        early, late = self.samples[quarter : 2 * quarter] or self.samples, self.samples[-quarter:]
        return statistics.median(map(value, late)) - statistics.median(map(value, early))


def look_at(pid: int, requests: int) -> Sample:
    """A sample of the running process `pid`."""
    process = Path("/proc") / str(pid)
    lines = (line.partition(":") for line in (process / "status").read_text().splitlines())
    status = {name: value.split() for name, _, value in lines}
    return Sample(
        requests,
        rss_bytes=1024 * int(status["VmRSS"][0]),
        threads=int(status["Threads"][0]),
        files=len(list((process / "fd").iterdir())),
    )
