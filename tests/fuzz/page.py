"""The figures of a run as a Markdown page."""

import platform
from collections import Counter
from collections.abc import Iterable

from PIL import __version__ as pillow_version

from tests.fuzz.api import CHECKS, RequestReport
from tests.fuzz.images import MAX_GROWTH_BYTES, ImageReport
from tests.fuzz.server import DEADLINE_S

_MIB = 1 << 20


def render(images: ImageReport, requests: RequestReport) -> str:
    """The page."""
    return "\n".join([*_head(images, requests), *_images(images), *_requests(requests), ""])


def _head(images: ImageReport, requests: RequestReport) -> Iterable[str]:
    yield "# Fuzzing"
    yield ""
    yield "Written by `make fuzz`. To repeat this very run:"
    yield ""
    yield "```sh"
    yield "# not run: takes minutes"
    yield (
        f"python -m tests.fuzz --images {images.count} --image-seed {images.seed} "
        f"--requests {requests.wanted} --request-seed {requests.seed}"
    )
    yield "```"
    yield ""
    versions = f"Python {platform.python_version()}, Pillow {pillow_version}"
    yield f"{versions}; the models are small ones of the tests, as networks are not the matter here."
    yield ""


def _images(report: ImageReport) -> Iterable[str]:
    before, peak, end = (size // _MIB for size in (report.baseline_bytes, report.peak_bytes, report.end_bytes))
    yield "## Mutated image files"
    yield ""
    yield f"{report.count} files, seed {report.seed}: {_verdict(report.faults)}."
    yield ""
    yield "- wanted of every file: no 5xx; a refusal that fits, or a mask; of a sound file a mask of its size"
    yield f"- slowest answer: {report.slowest_s:.2f} s ({report.slowest}), deadline {DEADLINE_S:g} s"
    yield f"- memory of the server: {before} MiB after the warm-up, {peak} MiB at its highest, {end} MiB at the end"
    yield f"- growth: {peak - before} MiB, limit {MAX_GROWTH_BYTES // _MIB} MiB"
    yield f"- took {report.took_s:.0f} s"
    yield ""
    yield from _table("kind", report.statuses)
    yield from _faults(report.faults)


def _requests(report: RequestReport) -> Iterable[str]:
    yield "## Generated requests"
    yield ""
    yield f"{report.requests} requests by schemathesis {report.version}, seed {report.seed}: {_verdict(report.faults)}."
    yield ""
    yield f"- checks: {', '.join(CHECKS)}; none slower than {DEADLINE_S:g} s"
    yield f"- took {report.took_s:.0f} s"
    yield ""
    yield from _table("address", report.answers)
    yield from _faults(report.faults)


def _table(name: str, rows: dict[str, Counter[str]]) -> Iterable[str]:
    told = sorted({status for counts in rows.values() for status in counts})
    yield f"| {name} | {' | '.join(told)} |"
    yield f"|---|{'---:|' * len(told)}"
    for row, counts in sorted(rows.items()):
        yield f"| {row} | {' | '.join(str(counts[status]) for status in told)} |"
    yield ""


def _faults(faults: list[str]) -> Iterable[str]:
    for fault in faults[:50]:
        yield f"- fault: {fault}"
    if faults:
        yield ""


def _verdict(faults: list[str]) -> str:
    return f"**{len(faults)} faults**" if faults else "**no fault**"
