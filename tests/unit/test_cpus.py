"""CPUs are counted as this process may use them."""

import os
from pathlib import Path

import pytest

from models.cpus import available_cpus


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ([], 8),
        (["max 100000\n"], 8),
        (["200000 100000\n"], 2),
        (["150000 100000\n"], 2),
        (["50000 100000\n"], 1),
        (["3200000 100000\n"], 8),
        (["300000\n", "100000\n"], 3),
        (["-1\n", "100000\n"], 8),
    ],
)
def test_cpus_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], cpus: int
) -> None:
    paths = [tmp_path / f"limit{place}" for place in range(len(files))]
    for path, text in zip(paths, files, strict=True):
        path.write_text(text)
    monkeypatch.setattr("models.cpus._CPU_LIMITS", ((tmp_path / "missing",), tuple(paths)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cpus() == cpus
