"""The service inside the caller's process, for a command without a server: the same app, asked without a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from models.checkpoint import CheckpointError, load_checkpoint
from service.app import create_app
from service.client import AsyncClient
from service.settings import read_settings


@asynccontextmanager
async def in_process_client(model: str | None = None) -> AsyncIterator[AsyncClient]:
    """A client of an app with the one model, or with all; settings from PETSEG_* as for a server.

    Raises SettingsError or CheckpointError.
    """
    settings = read_settings()
    # What bounds strangers does not bound the one who runs the command.
    settings = settings.model_copy(
        update={"keys": None, "requests_per_minute": 0, "max_client_requests": settings.max_requests}
    )
    checkpoints = None
    if model is not None:
        path = settings.checkpoints / f"{model}.safetensors"
        known = sorted(file.stem for file in settings.checkpoints.glob("*.safetensors"))
        if model not in known:
            raise CheckpointError(f"{settings.checkpoints}: got model {model!r}, wanted one of: {', '.join(known)}")
        checkpoints = [load_checkpoint(path)]
    app = create_app(settings, checkpoints)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient("http://in-process", timeout_s=settings.deadline_s + 60, transport=transport) as client:
            yield client
