"""The command line: `petseg serve` and `petseg openapi`, beside the commands of photo_cli.py and key_cli.py."""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from models.base import describe_kind
from models.checkpoint import CheckpointError
from models.prompts import PromptKind
from service import key_cli, photo_cli
from service.app import create_app
from service.operation import create_operation_app
from service.pipeline import Service
from service.predictor import Predictor
from service.protocol import bounded_protocol
from service.settings import Settings, SettingsError, read_settings, variable

app = typer.Typer(help="Cut cats and dogs out of photographs.", no_args_is_help=True, add_completion=False)
app.add_typer(photo_cli.app)
app.add_typer(key_cli.app, name="key")


class OperationServer(uvicorn.Server):
    """Uvicorn for the operation port: leaves the signals to the service's server, which starts and ends it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class Server(uvicorn.Server):
    """Uvicorn that turns /readyz false with the first signal, finishes accepted requests and exits with 0.

    The operation port, where there is one, answers from before the start until after the last request.
    """

    def __init__(self, service_app: FastAPI, config: uvicorn.Config, operation_socket: socket.socket | None) -> None:
        super().__init__(config)
        self._service_app = service_app
        self._operation_socket = operation_socket

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen until a signal."""
        if self._operation_socket is None:
            await super().serve(sockets)
            return
        app = create_operation_app(self._service_app)
        operation = OperationServer(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
        answering = asyncio.create_task(operation.serve([self._operation_socket]))
        try:
            await super().serve(sockets)
        finally:
            operation.should_exit = True
            await answering

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
    try:
        run_server(service_app, settings)
    except OSError as error:
        fail(str(error))


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(document_text(), nl=False)


def run_server(service_app: FastAPI, settings: Settings) -> None:
    """Listen until a signal. Raises OSError where the operation port cannot be had."""
    Server(service_app, server_config(service_app, settings), open_operation_port(settings)).run()


def server_config(service_app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Uvicorn's own settings for the service's port."""
    return uvicorn.Config(
        service_app,
        host=settings.host,
        port=settings.port,
        http=bounded_protocol(settings),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )


def open_operation_port(settings: Settings) -> socket.socket | None:
    """The listening socket of the operation port, or None where none is set. Raises OSError with one line."""
    if settings.operation_port is None:
        return None
    address = (settings.operation_host, settings.operation_port)
    try:
        return socket.create_server(address)
    except OSError as error:
        name, reason = variable("operation_port"), os.strerror(error.errno or 0)
        raise OSError(f"{name}: {address[0]}:{address[1]} cannot be had ({reason}); choose another") from error


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
            f"{side} x {side} px  {size_mb:6.1f} MB  {checkpoint.digest[:12]}  {predictor.engine.name}"
        )
    return rows


def fail(message: str) -> NoReturn:
    """One line to stderr, exit code 2."""
    typer.echo(f"petseg: {message}", err=True)
    raise typer.Exit(2)
