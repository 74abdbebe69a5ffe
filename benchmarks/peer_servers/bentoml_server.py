"""BentoML: a worker process for each core.

`python -m bentoml serve benchmarks.peer_servers.bentoml_server:Segmenter`.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peer_servers.task import answer, load_task


@bentoml.service(
    workers=os.cpu_count() or 1, traffic={"timeout": 60, "max_concurrency": 256}, metrics={"enabled": False}
)
class Segmenter:
    """One worker."""

    def __init__(self) -> None:
        self._task: Any = load_task()

    @bentoml.api(route="/segment")
    def segment(self, image: Annotated[Path, ContentType("image/jpeg")]) -> Annotated[bytes, ContentType("image/png")]:
        """The mask as PNG."""
        return answer(self._task, image.read_bytes())
