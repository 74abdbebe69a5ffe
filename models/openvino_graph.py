"""Torch modules as OpenVINO graphs: converted, proven equal, kept on disk, compiled for this CPU.

`openvino_engine.py` calls this; nothing else in the project speaks to OpenVINO.
"""

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.engine import EngineError, Precision, Rows, join_rows
from models.stopping import stoppable
from models.stored_graph import StoredGraph

logger = logging.getLogger("petseg.engine")

_EXAMPLE_ROWS = 2
_PROOF_ROWS = 3
"""Another number than was traced: a graph that took the batch for a constant fails its proof."""
_TOLERANCE = 1e-3
"""Largest difference from torch in float32, as a share of the largest output."""
_KEPT_DAYS = 30
_GRAPH_FILE = "graph.xml"
_KEY = re.compile("[0-9a-f]{32}")
"""What `graph_key` gives: a folder of such a name that holds a graph is ours to delete, any other the user's."""


def is_installed() -> bool:
    """Whether the extra `openvino` is."""
    return importlib.util.find_spec("openvino") is not None


@cache
def load_openvino() -> Any:
    """The package, without its telemetry.

    OpenVINO reports each import to its maker over the network, from a forked process, unless its telemetry package is
    missing. A service neither calls home nor forks for it.
    """
    modules = cast(dict[str, Any], sys.modules)
    modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


@cache
def core() -> Any:
    """The one runtime of the process."""
    return load_openvino().Core()


def has_native_bf16() -> bool:
    """Whether this CPU computes in bfloat16 rather than imitating it."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_matrix_units() -> bool:
    """Whether this CPU multiplies whole tiles of bfloat16 (AMX), several times as fast as rows of it."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@dataclass(frozen=True)
class GraphOptions:
    """How graphs are compiled."""

    precision: Precision
    streams: int
    """Batches that may run side by side."""
    threads: int
    """Threads of each."""
    alone_threads: int = 0
    """Threads of a batch while no other runs; up to `threads` is no difference."""
    row_by_row: bool = False
    """Whether a batch is run as that many passes of one row: the graph is compiled for this shape alone, which is
    quicker than for any number of rows, and one row's features stay in the caches."""


class Occupancy:
    """How many passes are under way on the CPU, over all graphs that share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def enter(self) -> Iterator[bool]:
        """Count a pass in for the block; gives whether it was alone when it began."""
        with self._lock:
            self._running += 1
            is_alone = self._running == 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._running -= 1


class Graph:
    """A compiled graph. Several threads may call it at once; up to `streams` of them run.

    One with `alone_threads` is compiled twice: side by side, passes of one thread each get most out of the cores; a
    single caller waits less for one pass on all of them.
    """

    def __init__(self, model: Any, options: GraphOptions, occupancy: Occupancy | None = None) -> None:
        """occupancy: shared with the graphs that run on the same cores; where left out this graph has them alone."""
        self._occupancy = occupancy or Occupancy()
        self.is_row_by_row = options.row_by_row
        compiled = _CompiledForOne if options.row_by_row else _Compiled
        self._beside = compiled(model, options.precision, options.streams, options.threads)
        self._alone = self._beside
        if options.alone_threads > options.threads:
            self._alone = compiled(model, options.precision, 1, options.alone_threads)

    @property
    def precision(self) -> Precision:
        """What it computes in: bf16 that was asked for is fp32 on a CPU without instructions for it."""
        return self._beside.precision

    def release_memory(self) -> None:
        """Give back the buffers that passes have grown; what runs meanwhile keeps its own."""
        for compiled in {self._beside, self._alone}:
            compiled.release_memory()

    def __call__(self, *inputs: Rows) -> tuple[Tensor, ...]:
        """Outputs for `inputs`, rows of any one number, float32 on the CPU.

        An output that is one of `inputs` as it came may be that tensor itself.
        """
        with self._occupancy.enter() as is_alone:
            return (self._alone if is_alone else self._beside)(*inputs)


class _Compiled:
    """A graph compiled for so many streams, with the requests that are idle."""

    def __init__(self, model: Any, precision: Precision, streams: int, threads: int) -> None:
        # With AVX-512 alone OpenVINO would imitate bf16, slower than float32.
        is_bf16 = precision is Precision.BF16 and has_native_bf16()
        self._compiled = core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams * threads,
                "ENABLE_CPU_PINNING": False,  # others run on these cores too
            },
        )
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        self.precision = Precision.BF16 if hint == load_openvino().Type.bf16 else Precision.FP32
        self._idle: deque[Any] = deque()

    def __call__(self, *inputs: Rows) -> tuple[Tensor, ...]:
        """Outputs for `inputs`, as `Graph` gives them.

        Not to be stopped: a graph for any number of rows keeps the shapes of a pass that did not end.
        """
        arrays = [join_rows(rows).contiguous().numpy() for rows in inputs]
        with self._request() as request:
            outputs = request.infer(arrays, share_inputs=True)
            return tuple(torch.from_numpy(outputs[place]) for place in range(len(outputs)))

    @contextmanager
    def _request(self) -> Iterator[Any]:
        try:
            request = self._idle.pop()  # the one used last: its buffers are still in the caches
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            yield request
        finally:
            self._idle.append(request)

    def release_memory(self) -> None:
        self._idle.clear()
        with suppress(RuntimeError):  # another pass is under way
            self._compiled.release_memory()


class _CompiledForOne(_Compiled):
    """A graph compiled for one row, which runs batches row by row and may be stopped (`models.stopping`)."""

    def __init__(self, model: Any, precision: Precision, streams: int, threads: int) -> None:
        model = model.clone()
        model.reshape({port: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
        super().__init__(model, precision, streams, threads)
        self._shapes = [tuple(port.shape)[1:] for port in self._compiled.outputs]
        inputs = [port.node.friendly_name for port in model.inputs]
        sources = [port.node.input_value(0).node.friendly_name for port in model.outputs]
        self._handed_on = {place: inputs.index(name) for place, name in enumerate(sources) if name in inputs}
        """Outputs that are an input as it came, by place: OpenVINO knows both by one name and one memory."""

    def __call__(self, *inputs: Rows) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        read = [_contiguous(rows) for rows in inputs]  # where they lie: they must stay until the end
        outputs = [
            join_rows(read[self._handed_on[place]]) if place in self._handed_on else torch.empty((count, *shape))
            for place, shape in enumerate(self._shapes)
        ]
        with ExitStack() as held:
            requests = [held.enter_context(self._request()) for _ in range(count)]
            self._connect(requests, read, outputs)
            with stoppable(lambda: _cancel(requests)):
                _run_side_by_side(requests)
        return tuple(outputs)

    def _connect(self, requests: Sequence[Any], inputs: Sequence[Rows], outputs: Sequence[Tensor]) -> None:
        """Have each request read its own row of `inputs` and write its own row of `outputs`.

        Arrays handed to `start_async` go through a dozen of the package's Python functions, and what is written to
        OpenVINO's own memory has to be copied.
        """
        for place, rows in enumerate(inputs):
            for request, row in zip(requests, _shared_rows(rows), strict=True):
                request.set_input_tensor(place, row)
        for place, tensor in enumerate(outputs):
            if place not in self._handed_on:
                for request, row in zip(requests, _shared_rows(tensor), strict=True):
                    request.set_output_tensor(place, row)


def _contiguous(rows: Rows) -> Rows:
    return rows.contiguous() if isinstance(rows, Tensor) else [row.contiguous() for row in rows]


def _shared_rows(rows: Rows) -> Iterator[Any]:
    """Each of `rows`, as a batch of one, in the same memory."""
    make = load_openvino().Tensor
    arrays = rows.numpy()[:, None] if isinstance(rows, Tensor) else [row.numpy()[None] for row in rows]
    return (make(array, shared_memory=True) for array in arrays)


def _run_side_by_side(requests: Sequence[Any]) -> None:
    """All at once, for between two passes this thread would wait for the interpreter.

    Raises the first one's error, once all have ended: until then they read and write the callers' memory.
    """
    with ExitStack() as under_way:
        for request in requests:
            request.start_async()
            under_way.callback(request.wait)


def _cancel(requests: Sequence[Any]) -> None:
    for request in requests:
        request.cancel()


class GraphFolder:
    """Converted graphs on disk, so that a network is converted once on a machine. Works without, only slower."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def holds(self, key: str) -> bool:
        """Whether a graph lies under `key`."""
        return self.folder is not None and (self.folder / key / _GRAPH_FILE).is_file()

    def load(self, key: str, convert: Callable[[], Any]) -> Any:
        """The graph under `key`, or what `convert` gives, kept where the folder can be written to."""
        if self.folder is None:
            return convert()
        entry = self.folder / key
        if (graph := _read(entry)) is not None:
            return graph
        converted = convert()
        try:
            _write(converted, entry)
        except (OSError, RuntimeError) as error:
            logger.warning("%s: graphs are not kept (%s); the next start converts again", self.folder, error)
            return converted
        # Read back, its weights are a mapped file instead of a second copy in memory.
        return _read(entry) or converted


def graph_key(identity: str, part: str) -> str:
    """Name of a graph on disk: the weights, the code that reads them, and what converted them."""
    versions = (torch.__version__, load_openvino().__version__, _code_digest())
    return hashlib.sha256("\n".join((identity, part, *versions)).encode()).hexdigest()[:32]


def load_graph(stored: StoredGraph) -> Any:
    """A graph from a checkpoint, not compiled yet."""
    try:
        return core().read_model(stored.xml, stored.weights)
    except RuntimeError as error:
        raise EngineError(f"got a stored graph that OpenVINO does not read ({error}); make it again") from error


def store_graph(graph: Any) -> StoredGraph:
    """The reverse of `load_graph`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.xml"
        load_openvino().save_model(graph, file, compress_to_fp16=False)
        return StoredGraph(file.read_bytes(), file.with_suffix(".bin").read_bytes())


def convert(module: nn.Module, example: Callable[[int], Sequence[Tensor]], name: str) -> Any:
    """`module`, which learns no more, as a graph for any number of rows, proven to give what torch gives.

    example: inputs of so many rows. Raises EngineError for a network that does not convert, or not to the same.
    """
    logger.info("%s: converting for OpenVINO, once on this machine", name)
    module.requires_grad_(False)  # what learns is no constant of a graph
    inputs = tuple(example(_EXAMPLE_ROWS))
    try:
        with torch.no_grad(), _logging_kept():
            _ignore_tracing_warnings()
            # Unchecked, which halves its time: the graph itself is proven below.
            traced = torch.jit.trace(_Whole(module), inputs, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
            graph = load_openvino().convert_model(traced, example_input=inputs)
        _set_rows(graph, inputs, _PROOF_ROWS)  # refuses shapes that do not fit; running such a graph may crash
        _set_rows(graph, inputs, -1)
    except Exception as error:  # tracing and conversion raise many kinds; all mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"{name}: got a network that OpenVINO does not convert ({reason}); use torch") from error
    _prove(graph, module, example(_PROOF_ROWS), name)
    return graph


class _Whole(nn.Module):
    """A module whose parts tracing does not see: it would copy each, used or not, and a CLIP tower has hundreds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._run = module.__call__  # bound, so that it is no submodule

    def forward(self, *tensors: Tensor) -> Any:
        """What the module gives."""
        return self._run(*tensors)


def _ignore_tracing_warnings() -> None:
    """Tracing warns of each shape that it takes for a constant, which they are, and of its own retirement.

    For good rather than for the time of a trace: `catch_warnings` would swap the filters under all other threads.
    """
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Put the root logger back as it was: conversion sets it up for itself, and leaves it so when it fails."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _set_rows(graph: Any, inputs: Sequence[Tensor], rows: int) -> None:
    """Let `graph` take `rows` rows of such inputs; -1 for any number. Raises RuntimeError where its layers do not."""
    graph.reshape({port: [rows, *each.shape[1:]] for port, each in zip(graph.inputs, inputs, strict=True)})
    for output in graph.outputs:
        found = output.partial_shape[0]
        if not (found.is_dynamic if rows < 0 else found.get_length() == rows):
            raise RuntimeError(f"it gives {found} rows for {rows if rows > 0 else 'any number of them'}")


def _prove(graph: Any, module: nn.Module, inputs: Sequence[Tensor], name: str) -> None:
    """Compare `graph` with torch on inputs of another batch size than it was traced with."""
    with torch.no_grad():
        output = module(*inputs)
    wanted = output if isinstance(output, tuple) else (output,)
    got = Graph(graph, GraphOptions(Precision.FP32, 1, 1))(*inputs)
    for level, (one, other) in enumerate(zip(got, wanted, strict=True)):
        scale = float(other.abs().max())
        difference = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
        if not difference <= _TOLERANCE * max(scale, _TOLERANCE):
            raise EngineError(
                f"{name}: got an OpenVINO graph that differs from torch by {difference:.2g} in output {level}, wanted "
                f"at most {_TOLERANCE} of {scale:.2g}; use torch"
            )


def _read(entry: Path) -> Any:
    """The graph in the folder `entry`, or None."""
    file = entry / _GRAPH_FILE
    if not file.is_file():
        return None
    try:
        graph = core().read_model(file)
    except (OSError, RuntimeError) as error:
        logger.warning("%s: not readable (%s), converting again", file, error)
        return None
    with suppress(OSError):  # a folder that may only be read keeps graphs as well
        os.utime(entry)
    return graph


def _write(graph: Any, entry: Path) -> None:
    """Keep `graph` in the folder `entry`, which appears whole or not at all; forget graphs that were long unused."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent) as unfinished:
        inside = Path(unfinished) / "graph"
        inside.mkdir()
        load_openvino().save_model(graph, inside / _GRAPH_FILE, compress_to_fp16=False)
        shutil.rmtree(entry, ignore_errors=True)
        inside.rename(entry)
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for other in entry.parent.iterdir():
        with suppress(OSError):  # another process may forget the same one
            if _is_ours(other) and other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)


def _is_ours(entry: Path) -> bool:
    """Whether `_write` made it: an operator may name a folder that holds more than graphs."""
    return _KEY.fullmatch(entry.name) is not None and (entry / _GRAPH_FILE).is_file()


@cache
def _code_digest() -> str:
    """sha256 over the sources in `models`: a graph holds the code as well as the weights."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
