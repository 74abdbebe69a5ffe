"""Ray Serve: a single-threaded replica for each core, `@serve.batch`.

`python -m benchmarks.peer_servers.ray_server PORT`.
"""

import os
import sys
import time
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from benchmarks.peer_servers.task import MAX_BATCH_SIZE, load_task

_REPLICAS = os.cpu_count() or 1


@serve.deployment(num_replicas=_REPLICAS, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
class Segmenter:
    """One replica."""

    def __init__(self) -> None:
        self._task = load_task()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.0)
    async def segment(self, uploads: list[bytes]) -> list[bytes]:
        """Masks as PNG of a batch."""
        prepared = [self._task.prepare(upload) for upload in uploads]
        scores = self._task.predict(prepared)
        return [self._task.draw(*each) for each in zip(prepared, scores, strict=True)]

    async def __call__(self, request: Request) -> Response:
        """A form with the part `image`."""
        if request.method == "GET":
            return PlainTextResponse("ok")
        form: Any = await request.form()
        batched: Any = self.segment
        return Response(await batched(await form["image"].read()), media_type="image/png")


def main() -> None:
    """Serve until a signal."""
    ray.init(
        num_cpus=2 * _REPLICAS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    application: Any = Segmenter
    serve.run(application.bind(), route_prefix="/segment")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
