"""The command line: `petseg serve` and the documents' tables, beside the commands of photo_cli.py and key_cli.py."""

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from fastapi import FastAPI

from models import upsampling
from models.base import describe_kind
from models.checkpoint import CheckpointError, load_checkpoint
from models.onnx_export import ExportError, export_onnx
from models.prompts import PromptKind
from service import key_cli, photo_cli
from service.app import choose_fronts, create_app
from service.front import run_front
from service.hub import Hub, hub_settings
from service.logs import configure_logging
from service.memory import return_large_blocks
from service.predictor import Predictor
from service.reference import TABLES, fill
from service.server import SWITCH_INTERVAL_S, Server, leave, server_config
from service.settings import Settings, SettingsError, read_settings, variable

logger = logging.getLogger("petseg.cli")


class PortError(OSError):
    """A port that cannot be listened on; says in one line which, why, and what to do."""


app = typer.Typer(help="Cut cats and dogs out of photographs.", no_args_is_help=True, add_completion=False)
app.add_typer(photo_cli.app)
app.add_typer(key_cli.app, name="key")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; over PETSEG_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for any free one; over PETSEG_PORT.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder of *.safetensors; over PETSEG_CHECKPOINTS.")] = None,
    log_requests: Annotated[bool, typer.Option(help="One line per request.")] = True,
) -> None:
    """Serve the page, the HTTP API and every checkpoint of a folder.

    Without options: the checkpoints that ship with petseg, on http://127.0.0.1:8000. All else is set by PETSEG_*
    environment variables, listed in docs/settings.md.
    """
    try:
        settings = choose_fronts(read_settings(host=host, port=port, checkpoints=checkpoints))
        configure_logging(settings.log_format, settings.log_level, log_requests)
        return_large_blocks()
        with bind_port(settings) as listener:
            hub = Hub(run_front, settings, listener, log_requests) if settings.fronts else None
            service_app = create_app(hub_settings(settings) if settings.fronts else settings)
            service_app.state.hub = hub
            for line in describe_models(service_app.state.predictors, settings):
                say(line, settings)
            if upsampling.compiled is None:
                logger.warning("masks are drawn by numpy, in twice the time: petseg was installed without a C compiler")
            greeting = f"petseg on {address_of(listener)} - open it in a browser; the API's reference is at /docs"
            run_server(service_app, settings, listener, lambda: say(greeting, settings))
    except (SettingsError, CheckpointError, PortError) as error:
        fail(str(error))


@app.command(hidden=True)
def reference(
    table: Annotated[str, typer.Argument(help=f"One of {', '.join(TABLES)}.")],
    into: Annotated[Path | None, typer.Option(help="Document to fill, between the table's markers.")] = None,
) -> None:
    """Print a table of the documents, from the code."""
    if table not in TABLES:
        fail(f"got table {table!r}, wanted one of {', '.join(TABLES)}")
    text = TABLES[table]()
    if into is None:
        typer.echo(text, nl=False)
    else:
        into.write_text(fill(into.read_text(encoding="utf-8"), table, text), encoding="utf-8")


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(document_text(), nl=False)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A checkpoint file.")],
    onnx: Annotated[Path, typer.Option(help="Folder for the graphs.")],
) -> None:
    """Write a checkpoint as ONNX graphs: one, or an encoder and a decoder where it takes a prompt. Extra: onnx."""
    try:
        exported = export_onnx(load_checkpoint(checkpoint), onnx)
    except (CheckpointError, ExportError) as error:
        fail(str(error))
    for graph in exported:
        size_mb = graph.path.stat().st_size / 1e6
        typer.echo(f"wrote {graph.path} ({size_mb:.1f} MB), within {graph.largest_difference:.1g} of torch")


def run_server(
    service_app: FastAPI, settings: Settings, listener: socket.socket, on_start: Callable[[], None] | None = None
) -> None:
    """Listen until a signal, then end the process; `on_start` is called once it can be asked.

    Behind fronts it is they who listen. Raises PortError where a port cannot be had.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = Server(service_app, server_config(service_app, settings), open_operation_port(settings), on_start)
    try:
        server.run(sockets=[] if service_app.state.hub else [listener])
    except OSError as error:  # two can bind a port as long as neither listens
        raise PortError(str(error)) from error
    logger.info("stopped")
    leave(1 if server.is_dead else 0)


def bind_port(settings: Settings) -> socket.socket:
    """The service's port, taken before the models are loaded; until it is listened on, callers are refused.

    Raises PortError.
    """
    address = (settings.host, settings.port)
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise PortError(
            f"{address[0]}:{address[1]} cannot be had ({error.strerror}); "
            f"choose others with --host and --port, or {variable('host')} and {variable('port')}"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """URL of a bound socket."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_operation_port(settings: Settings) -> socket.socket | None:
    """The listening socket of the operation port, or None where none is set. Raises PortError."""
    if settings.operation_port is None:
        return None
    address = (settings.operation_host, settings.operation_port)
    try:
        return socket.create_server(address)
    except OSError as error:
        name, reason = variable("operation_port"), os.strerror(error.errno or 0)
        raise PortError(f"{name}: {address[0]}:{address[1]} cannot be had ({reason}); choose another") from error


def document_text() -> str:
    """The OpenAPI document as the text of openapi.json."""
    return json.dumps(create_app(Settings(), checkpoints=[]).openapi(), indent=2, ensure_ascii=False) + "\n"


def say(line: str, settings: Settings) -> None:
    """Print a line; whoever reads JSON reads nothing else."""
    if settings.log_format == "json":
        logger.info(line.strip())
    else:
        typer.echo(line)


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
