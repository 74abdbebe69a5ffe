"""BentoML: a worker process for each core, and the same with adaptive batching.

`python -m bentoml serve benchmarks.peer_servers.bentoml_server:Segmenter`, or `:BatchingSegmenter`.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peer_servers.task import MAX_BATCH_SIZE, answer, load_task

_SETTINGS: dict[str, Any] = {
    "workers": os.cpu_count() or 1,
    "traffic": {"timeout": 60, "max_concurrency": 256},
    "metrics": {"enabled": False},
}


@bentoml.service(**_SETTINGS)
class Segmenter:
    """One worker."""

    def __init__(self) -> None:
        self._task: Any = load_task()

    @bentoml.api(route="/segment")
    def segment(self, image: Annotated[Path, ContentType("image/jpeg")]) -> Annotated[bytes, ContentType("image/png")]:
        """The mask as PNG."""
        return answer(self._task, image.read_bytes())


@bentoml.service(**_SETTINGS)
class Batcher:
    """A worker that segments whole batches."""

    def __init__(self) -> None:
        self._task: Any = load_task()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=60_000)
    def segment(self, uploads: list[bytes]) -> list[bytes]:
        """Masks as PNG."""
        prepared = [self._task.prepare(upload) for upload in uploads]
        scores = self._task.predict(prepared)
        return [self._task.draw(*each) for each in zip(prepared, scores, strict=True)]


@bentoml.service(traffic=_SETTINGS["traffic"], metrics=_SETTINGS["metrics"])
class BatchingSegmenter:
    """The door to the batching workers: a batch is formed of the requests between two services."""

    batcher: Any = bentoml.depends(Batcher)

    @bentoml.api(route="/segment")
    async def segment(
        self, image: Annotated[Path, ContentType("image/jpeg")]
    ) -> Annotated[bytes, ContentType("image/png")]:
        """The mask as PNG."""
        masks: list[bytes] = await self.batcher.to_async.segment([image.read_bytes()])
        return masks[0]
