"""The image corpus against a server process: every answer judged, its time and the server's memory watched."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.fuzz.corpus import MAX_PIXELS, Mutant, make_mutant
from tests.fuzz.judge import find_fault
from tests.fuzz.server import DEADLINE_S, serve

CLIENTS = 2
WARM_UP = 100
"""Files sent before memory counts: caches fill, and the allocator takes what it keeps."""

MAX_GROWTH_BYTES = 2 * MAX_PIXELS * 24 + (64 << 20)
"""Two threads each decoding and drawing the largest photo allowed, and room for bodies and the allocator."""


@dataclass
class ImageReport:
    """What the corpus came to."""

    seed: int
    count: int
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind of mutant, how often each answer was given."""
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    took_s: float = 0.0
    baseline_bytes: int = 0
    peak_bytes: int = 0
    end_bytes: int = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def run_corpus(seed: int, count: int, folder: Path) -> ImageReport:
    """Send files 0 to `count` of the corpus `seed`; those that find a fault are written to `folder`."""
    report = ImageReport(seed, count)
    with serve(folder / "images-server.log") as (url, process_id), httpx.Client(timeout=DEADLINE_S + 10) as client:
        started_at = time.monotonic()

        def send(index: int) -> None:
            mutant = make_mutant(seed, index)
            _send(client, url, mutant, report, folder)

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(send, range(min(WARM_UP, count))))
            report.baseline_bytes = memory_of(process_id, "VmRSS")
            list(pool.map(send, range(min(WARM_UP, count), count)))
        report.took_s = time.monotonic() - started_at
        report.peak_bytes, report.end_bytes = memory_of(process_id, "VmHWM"), memory_of(process_id, "VmRSS")
        if client.get(f"{url}/readyz").status_code != 200:
            report.faults.append("the server is not ready at the end")
    if (growth := report.peak_bytes - report.baseline_bytes) > MAX_GROWTH_BYTES:
        report.faults.append(f"memory grew by {growth >> 20} MiB, wanted at most {MAX_GROWTH_BYTES >> 20}")
    return report


def _send(client: httpx.Client, url: str, mutant: Mutant, report: ImageReport, folder: Path) -> None:
    asked_at = time.monotonic()
    try:
        answer = client.post(
            f"{url}/segment/colour", content=mutant.data, headers={"content-type": "application/octet-stream"}
        )
        told, fault = str(answer.status_code), None
        fault = find_fault(mutant, answer.status_code, answer.headers.get("content-type", ""), answer.content)
    except (httpx.HTTPError, OSError, SyntaxError) as error:
        told, fault = "none", f"got {type(error).__name__}: {error}"
    took_s = time.monotonic() - asked_at
    if fault is None and took_s > DEADLINE_S:
        fault = f"took {took_s:.1f} s, wanted at most {DEADLINE_S:g}"
    name = f"{mutant.kind} {mutant.index}"
    report.statuses.setdefault(mutant.kind, Counter())[told] += 1
    if took_s > report.slowest_s:
        report.slowest_s, report.slowest = took_s, name
    if fault is not None:
        report.faults.append(f"{name} ({len(mutant.data)} bytes): {fault}")
        (folder / f"fault-{report.seed}-{mutant.index}.bin").write_bytes(mutant.data)


def memory_of(process_id: int, field_name: str) -> int:
    """Bytes of a process: VmRSS as it is now, VmHWM at its highest."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the system tells no {field_name}; the memory check needs Linux")
