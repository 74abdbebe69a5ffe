"""Whose turn is next where CPUs are short: the event loop's, before that of all who work on photos.

It needs little for each request, but every answer waits for it, and a refusal waits for nothing else. Where photos want
more CPUs than there are, a fair share of one is less than it needs: at four times the rate that two CPUs sustain,
refusals took a tenth of a second, some of them many, instead of milliseconds (benchmarks/steps.md).
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_BEHIND = 10
"""Steps of niceness: a tenth of the event loop's share, where both want the same CPU."""

_NICEST = 19


def yield_to_event_loop() -> None:
    """Let the event loop run before the calling thread, and before those that it starts from now on.

    For good, since going back takes a privilege: never on a thread that event loops or their processes start from.
    Against other processes it counts as well, within the control group or session that they share with this one.
    """
    if sys.platform != "linux":  # elsewhere the whole process would yield, to others
        return
    with suppress(OSError):  # a sandbox that allows no priorities is no reason not to serve
        wanted = min(_NICEST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + _BEHIND)
        thread = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < wanted:
            os.setpriority(os.PRIO_PROCESS, thread, wanted)


def call_yielding(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **keywords: Arguments.kwargs
) -> Result:
    """What `function` gives, on a thread of its own: engines start theirs there, which yield as it does."""
    with ThreadPoolExecutor(1, initializer=yield_to_event_loop) as executor:
        return executor.submit(function, *arguments, **keywords).result()
