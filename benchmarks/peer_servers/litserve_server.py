"""LitServe tuned for the machine: a single-threaded worker for each core, batching, its fast queue.

`python -m benchmarks.peer_servers.litserve_server PORT`.
"""

import os
import sys
from typing import Any

import litserve
from fastapi import Request, Response

from benchmarks.peer_servers.task import MAX_BATCH_SIZE, Task, load_task

BATCH_TIMEOUT_S = 0.005
"""Of 0, 5 and 50 ms the one of the highest rate with 1, 8 and 32 clients: with 0 its workers spin while they wait."""


class SegmentApi(litserve.LitAPI):
    """The task's three steps under LitServe's names."""

    task: Task

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        self.task = load_task()

    def decode_request(self, request: Request) -> Any:
        """A form with the part `image`."""
        form: Any = request
        return self.task.prepare(form["image"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Our task stacks the images itself."""
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        """Scores of the batch, each beside what it was made of."""
        return list(zip(x, self.task.predict(x), strict=True))

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One output for each request."""
        return output

    def encode_response(self, output: Any) -> Response:
        """The mask as PNG."""
        return Response(self.task.draw(*output), media_type="image/png")


def main() -> None:
    """Serve until a signal."""
    server = litserve.LitServer(
        SegmentApi(api_path="/segment", max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cpu",
        workers_per_device=os.cpu_count() or 1,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
