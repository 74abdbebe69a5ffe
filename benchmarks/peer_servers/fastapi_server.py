"""FastAPI with a blocking handler, which Starlette runs in its thread pool.

`uvicorn --factory benchmarks.peer_servers.fastapi_server:create_app`, with `--workers` for several processes.
"""

from fastapi import FastAPI, UploadFile
from fastapi.responses import Response

from benchmarks.peer_servers.task import answer, load_task


def create_app() -> FastAPI:
    """The whole server."""
    app = FastAPI()
    task = load_task()

    @app.post("/segment")
    def segment(image: UploadFile) -> Response:
        return Response(answer(task, image.file.read()), media_type="image/png")

    @app.get("/health")
    def check_health() -> dict[str, str]:
        return {"status": "ok"}

    return app
