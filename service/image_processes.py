"""Work on pixels, in the calling thread or in a process beside it.

One interpreter decodes some hundred photos a second whatever the number of its threads, for each holds its lock part of
the time; a GPU takes thousands. So each thread of the pool may have a process of its own, to which it hands the work
and for which it waits without the lock. A photo that kills its process costs no other photo anything.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, Protocol, TypeVar

import torch

logger = logging.getLogger("petseg.images")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PRELOADED = ("service.rendering", "service.image_work")
"""Imported once, in the process that all others are forked from: they begin at once and share its memory."""

_START_S = 60.0
"""For the first of them: it waits for these imports."""

_END_S = 2.0
"""For a process to end by itself once nobody can hand it anything."""


def can_have_processes() -> bool:
    """Whether this system can fork processes from one that has no threads."""
    return "forkserver" in multiprocessing.get_all_start_methods()


class ImageProcessError(RuntimeError):
    """The process that did the work ended, twice, or gave no answer in time."""


class ImageWork(Protocol):
    """Where work on pixels is done. Several threads may call it at once."""

    def call(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Result:
        """What `function` gives; raises what it raises."""

    def start(self) -> None:
        """Set up on the calling thread what its first call would have to wait for."""

    def close(self) -> None:
        """End what was started."""


class InThread:
    """Does the work where it is called."""

    def call(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Result:
        """What `function` gives."""
        return function(*arguments, **keywords)

    def start(self) -> None:
        """Nothing has to be set up."""

    def close(self) -> None:
        """Nothing was started."""


class ImageProcesses:
    """Does the work of each calling thread in a process of its own.

    function: importable by name; arguments and results are pickled, so arrays rather than tensors. Raises
    ImageProcessError where the process ended and so did a second one, or where `patience_s` have passed.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        self._of_thread = threading.local()
        self._processes: set[_Process] = set()
        self._lock = threading.Lock()
        atexit.register(self.close)  # before multiprocessing's own, which would wait for processes that wait for us

    def call(
        self, function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
    ) -> Result:
        """What `function` gives in this thread's process."""
        for is_last in (False, True):
            try:
                result: Result = self._own().ask(function, arguments, keywords, self._patience_s)
                return result
            except _ProcessGoneError as error:
                self._forget_own()
                logger.error("a process that works on photos ended: %s", error)
                if is_last or error.is_late:
                    raise ImageProcessError(f"the process that worked on the photo ended: {error}") from error
        raise AssertionError("unreachable: the loop returns or raises")

    def start(self) -> None:
        """Start this thread's process and wait until it answers."""
        self.call(os.getpid)

    def close(self) -> None:
        """End all processes; what they still do is lost."""
        atexit.unregister(self.close)
        with self._lock:
            processes, self._processes = self._processes, set()
        for process in processes:
            process.hang_up()  # all at once: they end side by side
        for process in processes:
            process.end()

    def _own(self) -> "_Process":
        process: _Process | None = getattr(self._of_thread, "process", None)
        if process is None:
            process = self._of_thread.process = _Process(self._context)
            with self._lock:
                self._processes.add(process)
        return process

    def _forget_own(self) -> None:
        process: _Process | None = getattr(self._of_thread, "process", None)
        self._of_thread.process = None
        if process is not None:
            with self._lock:
                self._processes.discard(process)
            process.end()


class _ProcessGoneError(Exception):
    """Nothing more can be had of the process; `is_late`: it was killed because it gave no answer in time."""

    def __init__(self, message: str, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


class _Process:
    """One process and this end of the pipe to it."""

    def __init__(self, context: Any) -> None:
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True, name="images")
        self._process.start()
        other.close()
        try:
            self.ask(os.getpid, (), {}, _START_S)
        except _ProcessGoneError:
            self.end()
            raise

    def ask(self, function: Any, arguments: Any, keywords: Any, patience_s: float) -> Any:
        """What the function gives there; raises what it raises."""
        try:
            self._pipe.send((function, arguments, keywords))
            if not self._pipe.poll(patience_s):
                self._process.kill()
                raise _ProcessGoneError(f"it gave no answer within {patience_s:g} s", is_late=True)
            is_good, outcome = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(_END_S)
            raise _ProcessGoneError(f"exit code {self._process.exitcode}") from error
        if not is_good:
            raise outcome
        return outcome

    def hang_up(self) -> None:
        """Let it end by itself."""
        self._pipe.close()

    def end(self) -> None:
        """Hang up, and make sure."""
        self.hang_up()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()


def ignore_signals_to_the_group() -> None:
    """Leave Ctrl-C and what service managers send to the server: what it has accepted must be finished first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def serve(pipe: Connection) -> None:
    """Answer what comes through `pipe` until it is closed: what a process of ours does."""
    ignore_signals_to_the_group()
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments, keywords = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(*arguments, **keywords)
        except Exception as error:
            answer = False, error
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception as error:  # what cannot be pickled
            pipe.send((False, RuntimeError(f"{type(error).__name__}: {error}")))
