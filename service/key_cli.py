"""`petseg key`: the file of API keys that a server with PETSEG_KEYS reads."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.api_keys import KeyFileError, new_key, read_keys
from service.settings import SettingsError, read_settings, variable

app = typer.Typer(help="API keys: who may call.", no_args_is_help=True)

KeyFileOption = Annotated[Path | None, typer.Option("--file", help="File of keys; over PETSEG_KEYS.")]


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, dot, dash, underscore.")],
    file: KeyFileOption = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Over PETSEG_REQUESTS_PER_MINUTE.")] = None,
    expires: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day without it (UTC).")] = None,
) -> None:
    """Make a key, print it this once, and write its hash to the file. A running server takes it up by itself."""
    try:
        day = expires.date() if expires else None
        secret, _ = new_key(key_file(file), name, requests_per_minute=requests_per_minute, expires=day)
    except KeyFileError as error:
        fail(str(error))
    typer.echo(secret)


@app.command("list")
def list_keys(file: KeyFileOption = None) -> None:
    """Whose keys the file holds."""
    try:
        keys = read_keys(key_file(file))
    except KeyFileError as error:
        fail(str(error))
    for key in keys:
        rate = "" if key.requests_per_minute is None else f"  {key.requests_per_minute} requests/min"
        expiry = "" if key.expires is None else f"  expires {key.expires}"
        typer.echo(f"{key.name:<20} created {key.created or 'unknown'}{rate}{expiry}")


def key_file(given: Path | None) -> Path:
    """The file named, else that of PETSEG_KEYS; fails where there is neither."""
    try:
        file = given or read_settings().keys
    except SettingsError as error:
        fail(str(error))
    if file is None:
        fail(f"got no key file; give --file, or set {variable('keys')}")
    return file


def fail(message: str) -> NoReturn:
    """One line to stderr, exit code 2."""
    typer.echo(f"petseg: {message}", err=True)
    raise typer.Exit(2)
