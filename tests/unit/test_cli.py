"""The command line's words: one line per model, one line per fault."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from models import upsampling
from service import __main__, cli
from service.app import create_app
from service.settings import Settings
from tests.fakes import ClickModel, TextModel, fake_checkpoint


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_openapi_prints_the_document(runner: CliRunner) -> None:
    result = runner.invoke(cli.app, ["openapi"])
    assert result.exit_code == 0
    assert result.stdout == cli.document_text()


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that `petseg serve` would have listened on: here it ends as soon as it could be asked."""
    ports: list[int] = []

    def run_server(app: FastAPI, settings: Settings, listener: socket.socket, on_start: Callable[[], None]) -> None:
        ports.append(listener.getsockname()[1])
        listener.close()
        on_start()

    monkeypatch.setattr(cli, "run_server", run_server)
    return ports


def test_serve_says_in_a_line_what_each_model_takes(
    runner: CliRunner, checkpoint_folder: Path, ports: list[int]
) -> None:
    result = runner.invoke(cli.app, ["serve", "--checkpoints", str(checkpoint_folder), "--port", "0"])
    assert result.exit_code == 0, result.output
    model, url = result.stdout.splitlines()
    digest = create_app(Settings(checkpoints=checkpoint_folder)).state.predictors[0].checkpoint.digest
    assert model.split() == [
        "unet",
        "unet",
        "takes",
        "no",
        "prompt",
        "32",
        "x",
        "32",
        "px",
        "0.0",
        "MB",
        digest[:12],
        "torch",
        "fp32",
    ]
    assert url == f"petseg on http://127.0.0.1:{ports[0]} - open it in a browser; the API's reference is at /docs"


@pytest.mark.usefixtures("ports")
@pytest.mark.parametrize(("compiled", "lines"), [(None, 1), (object(), 0)])
def test_serve_says_once_where_masks_take_longer(
    runner: CliRunner, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch, compiled: object, lines: int
) -> None:
    monkeypatch.setattr(upsampling, "compiled", compiled)
    result = runner.invoke(cli.app, ["serve", "--checkpoints", str(checkpoint_folder), "--port", "0"])
    assert result.exit_code == 0, result.output
    assert result.stderr.count("petseg was installed without a C compiler") == lines


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_during_the_start_ends_it(monkeypatch: pytest.MonkeyPatch, sign: signal.Signals, code: int) -> None:
    """Process 1 of a container is not ended by a signal that nobody handles, and a Ctrl-C wants no trace."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "argv", ["petseg", "serve"])
    monkeypatch.setattr(cli, "app", lambda prog_name: signal.raise_signal(sign))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        __main__.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert codes == [code]


def test_lines_say_whether_the_prompt_may_be_left_out(tmp_path: Path) -> None:
    checkpoints = [fake_checkpoint(ClickModel, "click"), fake_checkpoint(TextModel, "text")]
    for checkpoint in checkpoints:
        (tmp_path / f"{checkpoint.name}.safetensors").write_bytes(bytes(1_500_000))
    settings = Settings(checkpoints=tmp_path)
    click, text = cli.describe_models(create_app(settings, checkpoints).state.predictors, settings)
    assert "takes clicks  " in click
    assert "takes a text prompt or none  " in text
    assert "1.5 MB" in click


@pytest.mark.parametrize(
    ("variables", "options", "said"),
    [
        ({"PETSEG_PORT": "many"}, [], "PETSEG_PORT: got 'many'; "),
        ({"PETSEG_NOPE": "1"}, [], "got the unknown setting PETSEG_NOPE, wanted one of "),
        ({}, ["--checkpoints", "nowhere", "--port", "0"], "nowhere: got no *.safetensors"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: list[str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = runner.invoke(cli.app, ["serve", *options])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"petseg: {said}")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_port_in_use_is_one_line_before_anything_is_loaded(runner: CliRunner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runner.invoke(cli.app, ["serve", "--checkpoints", "nowhere", "--port", str(port)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"petseg: 127.0.0.1:{port} cannot be had (Address already in use); "
        "choose others with --host and --port, or PETSEG_HOST and PETSEG_PORT\n"
    )


def test_an_operation_port_in_use_is_one_line(
    runner: CliRunner, checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("PETSEG_OPERATION_PORT", str(port))
        result = runner.invoke(cli.app, ["serve", "--checkpoints", str(checkpoint_folder), "--port", "0"])
    assert result.exit_code == 2
    said = f"petseg: PETSEG_OPERATION_PORT: 127.0.0.1:{port} cannot be had (Address already in use); choose another\n"
    assert result.stderr == said
