"""Memory that two processes share, in slots: for a photo on its way to the network and its scores on the way back.

Copying both through a socket would take an event loop longer than all else that it does for a photo.
"""

import math
import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE


def can_share_memory() -> bool:
    """Whether this system has anonymous files, which vanish with the last process that has them open."""
    return hasattr(os, "memfd_create")


class PhotoSlots:
    """`count` slots of at least `size` bytes. Pages take memory from their first use on."""

    def __init__(self, descriptor: int, count: int, size: int) -> None:
        """descriptor: of an anonymous file of that length; taken over."""
        self.count = count
        self.size = size
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, max(1, count) * size)
        self._free = list(range(count))

    @classmethod
    def create(cls, count: int, size: int) -> "PhotoSlots":
        """New ones."""
        rounded = -(-max(1, size) // _PAGE) * _PAGE
        descriptor = os.memfd_create("petseg-photos")
        os.ftruncate(descriptor, max(1, count) * rounded)
        return cls(descriptor, count, rounded)

    def __reduce__(self) -> tuple[Any, ...]:
        """As an argument of a process that is started: the same memory there."""
        return _open, (reduction.DupFd(self._descriptor), self.count, self.size)

    def take(self, size: int) -> int | None:
        """A free slot for `size` bytes; None where there is none. Slots are one process's to take.

        The one that came back last: its memory is still in the CPU's caches.
        """
        return self._free.pop() if size <= self.size and self._free else None

    def give_back(self, slot: int) -> None:
        """Free a slot: the other process is done with it."""
        self._free.append(slot)

    def view(self, slot: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The beginning of a slot as an array; valid until the slot is given back."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        assert count * kind.itemsize <= self.size
        return np.frombuffer(self._memory, kind, count, slot * self.size).reshape(shape)

    def close(self) -> None:
        """Lend them to no further process. The memory goes with the last array that lies in it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _open(duplicate: Any, count: int, size: int) -> PhotoSlots:
    return PhotoSlots(duplicate.detach(), count, size)
