"""The command line: `petseg serve` and `petseg openapi`; also `python -m service`."""

import json
import logging
import signal
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from models.base import describe_kind
from models.checkpoint import CheckpointError
from models.prompts import PromptKind
from service.app import create_app
from service.pipeline import Service
from service.predictor import Predictor
from service.settings import Settings, SettingsError, read_settings

app = typer.Typer(help="Cut cats and dogs out of photographs over HTTP.", no_args_is_help=True, add_completion=False)


class Server(uvicorn.Server):
    """Uvicorn that turns /readyz false with the first signal, finishes accepted requests and exits with 0."""

    def __init__(self, service_app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service_app = service_app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C does not wait any longer."""
        service: Service | None = getattr(self._service_app.state, "service", None)
        if service is not None:
            service.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; over PETSEG_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for any free one; over PETSEG_PORT.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of *.safetensors; over PETSEG_CHECKPOINTS.")] = None,
    log_requests: Annotated[bool, typer.Option(help="One line per request.")] = True,
) -> None:
    """Serve every checkpoint of the folder. All settings: PETSEG_* environment variables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("petseg.requests").setLevel(logging.INFO if log_requests else logging.WARNING)
    try:
        settings = read_settings(host=host, port=port, checkpoints=checkpoints)
        service_app = create_app(settings)
    except (SettingsError, CheckpointError) as error:
        fail(str(error))
    for line in describe_models(service_app.state.predictors, settings):
        typer.echo(line)
    typer.echo(f"petseg on http://{settings.host}:{settings.port} (documentation at /docs)")
    run_server(service_app, settings)


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(document_text(), nl=False)


def run_server(service_app: FastAPI, settings: Settings) -> None:
    """Listen until a signal."""
    config = uvicorn.Config(
        service_app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    Server(service_app, config).run()


def document_text() -> str:
    """The OpenAPI document as the text of openapi.json."""
    return json.dumps(create_app(Settings(), checkpoints=[]).openapi(), indent=2, ensure_ascii=False) + "\n"


def describe_models(predictors: Iterable[Predictor], settings: Settings) -> list[str]:
    """One readable line per model."""
    rows = []
    for predictor in predictors:
        checkpoint, model = predictor.checkpoint, predictor.model
        file = settings.checkpoints / f"{checkpoint.name}.safetensors"
        is_optional = model.prompt_kind is not PromptKind.NONE and not model.prompt_required
        takes = describe_kind(model.prompt_kind) + (" or none" if is_optional else "")
        size_mb = file.stat().st_size / 1e6
        side = predictor.image_size
        rows.append(
            f"  {checkpoint.name:<14} {checkpoint.card.architecture:<12} takes {takes:<22} "
            f"{side} x {side} px  {size_mb:6.1f} MB  {checkpoint.digest[:12]}"
        )
    return rows


def fail(message: str) -> NoReturn:
    """One line to stderr, exit code 2."""
    typer.echo(f"petseg: {message}", err=True)
    raise typer.Exit(2)
