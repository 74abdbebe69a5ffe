"""Memory goes back to the system; in processes of their own, for the allocator is the whole process's."""

import gc
import os
import subprocess
import sys
import weakref

import pytest

from service.memory import free_memory, freeze_objects

FREED = """
import psutil
import numpy as np
from service.memory import free_memory, return_large_blocks

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

{setup}
for _ in range(4):
    np.ones(20 << 17)  # 20 MB: once freed, glibc by itself takes blocks of that size from its heap
before = resident_mb()
large, small = [], []
for _ in range(30):
    large.append(np.ones(10 << 17))
    small.append(np.ones(1000))  # between them, so that nothing freed lies at the heap's end
del large
{then}
print(resident_mb() - before)
"""


def grown_mb(setup: str = "", then: str = "", **environment: str) -> float:
    """What 300 MB that were freed have left behind."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", FREED.format(setup=setup, then=then)],
        env=others | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ran.stdout)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="wants glibc")
def test_large_blocks_go_back_when_they_are_freed() -> None:
    assert grown_mb() > 200
    assert grown_mb("return_large_blocks()") < 30


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="wants glibc")
def test_what_was_freed_in_pieces_goes_back_when_asked() -> None:
    assert grown_mb(then="free_memory()") < 30


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="wants glibc")
def test_an_operators_own_variables_are_obeyed() -> None:
    assert grown_mb("return_large_blocks()", MALLOC_MMAP_THRESHOLD_=str(1 << 30)) > 200


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_the_collector_leaves_out_what_is_frozen_until_memory_is_asked_back() -> None:
    node = Node()
    is_there = weakref.ref(node)
    freeze_objects()
    try:
        del node
        gc.collect()
        assert is_there() is not None
        free_memory()
        assert is_there() is None
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
