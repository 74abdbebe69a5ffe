"""Sees forward passes that never end: says so once for each, and for how long a model has not answered.

Readiness and liveness look at the same clock by themselves (`Service`), so they hold even if this task should not run.
"""

import asyncio
import logging
import sys
import threading
import traceback

from service.device_pipeline import DevicePipeline
from service.pipeline import Service

logger = logging.getLogger("petseg.watchdog")


class Watchdog:
    """Reports the passes of `service` that take longer than its `stall_s`."""

    def __init__(self, service: Service[DevicePipeline]) -> None:
        self._service = service
        self._reported: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        stall_s = self._service.settings.stall_s
        while stall_s > 0:
            await asyncio.sleep(min(1.0, stall_s / 4))
            self.look()

    def look(self) -> None:
        """Report what has stalled, or gone on, since the last look."""
        for pipeline in self._service.pipelines.values():
            oldest = pipeline.passes.oldest if pipeline.is_stalled else None
            reported = self._reported.get(pipeline.name)
            if oldest is None:
                if self._reported.pop(pipeline.name, None):
                    logger.warning("%s goes on: the forward pass that had stalled has ended", pipeline.name)
            elif oldest != reported:
                self._reported[pipeline.name] = oldest
                pipeline.passes.count_stall()
                self._report(pipeline, thread=oldest[0])

    def _report(self, pipeline: DevicePipeline, thread: int) -> None:
        frame = sys._current_frames().get(thread)
        names = {each.ident: each.name for each in threading.enumerate()}
        logger.error(
            "%s has stalled: a forward pass has run for %.0f s, wanted at most %g s; thread %s stands at\n%s",
            pipeline.name,
            pipeline.passes.running_s,
            self._service.settings.stall_s,
            names.get(thread, "?"),
            "".join(traceback.format_stack(frame)) if frame else "(ended)",
        )
