"""How many CPUs there are to use."""

import math
import os
from contextlib import suppress
from pathlib import Path

_CPU_LIMITS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Files of cgroups 2 and 1, as a container sees its own: CPU time in each slice of time, both in microseconds."""


def available_cpus() -> int:
    """CPUs that this process may use: fewer than the machine's under taskset, or by the limit of a container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _limit_of_container() or allowed)


def _limit_of_container() -> int | None:
    """CPUs that the limit of `docker run --cpus` or of a Kubernetes pod comes to, rounded up; None without one.

    A container sees every CPU of its machine. With as many streams it would use up its time at once, and then stand
    still until the next slice.
    """
    for files in _CPU_LIMITS:
        with suppress(OSError, ValueError):  # other versions of cgroups, and "max" where there is no limit
            time_us, slice_us = (int(word) for file in files for word in Path(file).read_text().split())
            if time_us > 0:
                return math.ceil(time_us / slice_us)
    return None
