"""What a network needs on a GPU to be fed by one busy interpreter: recorded passes, and copies beside the computation.

Eagerly, a pass is hundreds of calls, each of which waits for the interpreter's lock while other threads decode photos;
replayed as a CUDA graph it is one. `torch_engine.py` wraps both halves of a network in this.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

logger = logging.getLogger("petseg.engine")

_REHEARSALS = 3
"""Runs before a recording, in which libraries choose their algorithms and allocate."""


def graph_sizes(largest: int) -> list[int]:
    """Batch sizes worth a recording of their own, ascending, up to `largest`.

    A batch is padded to the next of them: from eight rows on by a third at most.
    """
    steps = [1, 2, 4, *range(8, 24, 4), *range(24, 64, 8), *range(64, 96, 16), *range(96, largest, 32)]
    return sorted({size for size in steps if size < largest} | {largest})


class Recorder:
    """Whether this thread's calls of the functions that share it are recorded first."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def is_on(self) -> bool:
        """Whether a call of a size that has no recording makes one."""
        return getattr(self._of_thread, "is_on", False)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Record inside the block."""
        self._of_thread.is_on = True
        try:
            yield
        finally:
            self._of_thread.is_on = False


class GraphedFunction:
    """A function of tensors of B rows that gives tensors of B rows, replayed where there is a recording of B or more.

    Takes and gives them in any nest of tuples and dicts, the same each time. Rows that pad a batch hold what an earlier
    one left there: no row may depend on another. Beyond the largest recording, and where none can be made, the function
    itself is called. Several threads may call it at once, all on one CUDA stream.
    """

    def __init__(self, function: Callable[..., Any], recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._lock = threading.Lock()
        self._recordings: dict[int, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._is_refused = False

    @property
    def sizes(self) -> list[int]:
        """Batch sizes that are recorded."""
        return sorted(self._recordings)

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives for `inputs`."""
        rows = tree_leaves(inputs)[0].shape[0]
        with self._lock:  # recordings share memory: what one gives must be copied before another runs
            if self._recorder.is_on and rows not in self._recordings and not self._is_refused:
                self._record(rows, inputs)
            size = min((size for size in self._recordings if size >= rows), default=None)
            if size is not None:
                return self._recordings[size].replay(inputs, rows)
        return self._function(*inputs)

    def _record(self, rows: int, inputs: Any) -> None:
        try:
            self._recordings[rows] = _Recording(self._function, inputs, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_refused = True
            logger.warning("no CUDA graph of this network, which goes on without: %s", error)


class _Recording:
    """One batch size's graph with the tensors that it reads and writes."""

    def __init__(self, function: Callable[..., Any], example: Any, pool: Any) -> None:
        self._inputs = tree_map(torch.clone, example)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with _measured_convolutions():
            with torch.cuda.stream(stream):
                for _ in range(_REHEARSALS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads go on meanwhile: a reload records beside live traffic.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    def replay(self, inputs: Any, rows: int) -> Any:
        """What the function gives for `inputs` of `rows`, at most as many as were recorded, in memory of its own."""
        for own, given in zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True):
            own[:rows].copy_(given)
        self._graph.replay()
        return tree_map(lambda output: output[:rows].clone(), self._outputs)


@contextmanager
def _measured_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each shape: those that are recorded come again and again."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class HostLink:
    """Copies between host and GPU on streams of their own: no batch's copy waits for another batch's computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inbound: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._outbound: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> Tensor:
        """`tensor` on the GPU; the current stream waits for it, the caller does not where it is pinned."""
        with torch.cuda.stream(self._inbound):
            sent = tensor.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._inbound)
        sent.record_stream(current)
        return sent

    def fetch(self, tensor: Tensor) -> Tensor:
        """`tensor` on the CPU, in pinned memory, once it is computed; the caller sleeps until then."""
        self._outbound.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outbound):
            fetched = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            fetched.copy_(tensor, non_blocking=True)
            is_done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            is_done.record()
        tensor.record_stream(self._outbound)
        is_done.synchronize()
        return fetched
