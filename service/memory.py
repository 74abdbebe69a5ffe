"""Memory that is not used any more, handed back to the system instead of kept for later."""

import ctypes
import gc
import os
import threading
from contextlib import suppress

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""

_OWN_MAPPING_BYTES = 1 << 20
"""Blocks from this size on go back as soon as they are freed. Squares and logits of one photo are below it, at the
sizes of the models that ship; features of a batch are above.

Lower, and each photo costs hundreds of page faults: at 128 KB a fifth of the throughput."""

_KEPT_BYTES = 32 << 20
"""Freed memory at the end of a heap that is kept for later."""

_collecting = threading.Lock()


def return_large_blocks() -> None:
    """Keep glibc from holding on to the features of large batches, for the whole process; called before they come.

    By itself it raises its threshold with each large block that is freed, up to 32 MB, and cuts later ones out of its
    heaps, of which each thread has one, where they leave gaps. Whoever sets MALLOC_* variables is obeyed.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def freeze_objects() -> None:
    """Spare the garbage collector all that the process holds by now; called before it takes requests.

    Each of its full rounds would walk through torch and every network and hold the interpreter for as long: four tenths
    of a second, where hundreds of photos are under way a quarter of the time. `free_memory` looks at all of it again.
    """
    gc.freeze()


def free_memory() -> None:
    """Hand back what a network held; takes some tenths of a second, on any thread.

    Modules refer to each other in circles, torch keeps GPU memory, and the C library keeps what was freed in pieces.
    """
    with _collecting:
        is_frozen = gc.get_freeze_count() > 0
        gc.unfreeze()
        gc.collect()
        if is_frozen:
            gc.freeze()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
