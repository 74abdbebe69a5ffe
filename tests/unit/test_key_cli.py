"""Keys are made, listed and refused on the command line; the key itself is shown once."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import cli
from service.api_keys import KeyRing


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["key", *words])
    return result.exit_code, result.stdout, result.stderr


def test_a_key_is_made_and_opens(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    limits = ("--requests-per-minute", "60", "--expires", "2099-12-31")
    code, said, _ = run("new", "lab", "--file", str(file), *limits)
    assert code == 0
    found = KeyRing(file).find(said.strip())
    assert found is not None and (found.name, found.requests_per_minute) == ("lab", 60)
    run("new", "shop", "--file", str(file))
    code, listed, _ = run("list", "--file", str(file))
    lab, shop = listed.splitlines()
    assert lab.split() == ["lab", "created", str(found.created), "60", "requests/min", "expires", "2099-12-31"]
    assert shop.split()[0] == "shop"
    assert said.strip() not in listed + file.read_text()


def test_the_file_of_the_settings_is_meant_without_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSEG_KEYS", str(tmp_path / "keys.toml"))
    assert run("new", "lab")[0] == 0
    assert run("list")[1].startswith("lab ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new", "lab"), "petseg: got no key file; give --file, or set PETSEG_KEYS\n"),
        (("list", "--file", "nowhere.toml"), "petseg: nowhere.toml cannot be read (No such file or directory)"),
        (("new", "a b", "--file", "keys.toml"), "petseg: name: String should match pattern"),
    ],
)
def test_a_fault_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(said) and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
