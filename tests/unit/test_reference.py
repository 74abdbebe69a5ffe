"""The tables of the documents say what the code says."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.errors import PROBLEMS
from service.reference import TABLES, fill, settings_table
from service.settings import Settings, variable

DOCS = Path(__file__).parents[2] / "docs"
WRITTEN = {"settings": DOCS / "settings.md", "problems": DOCS / "http.md"}


@pytest.mark.parametrize("name", TABLES)
def test_a_document_holds_the_table_as_the_code_has_it(name: str) -> None:
    document = WRITTEN[name].read_text(encoding="utf-8")
    fix = f"petseg reference {name} --into docs/{WRITTEN[name].name}"
    assert document == fill(document, name, TABLES[name]()), f"the table is old; run {fix}"


def test_every_setting_is_explained() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]
    assert silent == []
    table = settings_table()
    assert all(f"`{variable(name)}`" in table for name in Settings.model_fields)
    assert "| `PETSEG_PORT` | `8000` | Port to listen on; 0 is any free one. |" in table
    assert "| `PETSEG_CHECKPOINTS` | `models/checkpoints` |" in table
    assert "| `PETSEG_CACHE_BYTES` | `268435456` (256 MiB) |" in table
    assert "One of `auto`, `cpu`, `cuda`." in table


def test_every_problem_type_is_listed() -> None:
    assert all(
        f"| `/problems/{slug}` | {problem.status} |" in TABLES["problems"]() for slug, problem in PROBLEMS.items()
    )


def test_the_command_prints_and_fills(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["reference", "problems"])
    assert printed.stdout == TABLES["problems"]()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- problems:start -->\nold\n<!-- problems:end -->\nafter\n")
    assert CliRunner().invoke(app, ["reference", "problems", "--into", str(page)]).exit_code == 0
    table = TABLES["problems"]()
    assert page.read_text() == f"before\n<!-- problems:start -->\n\n{table}\n<!-- problems:end -->\nafter\n"
    wrong = CliRunner().invoke(app, ["reference", "faults"])
    assert (wrong.exit_code, wrong.stderr) == (2, "petseg: got table 'faults', wanted one of settings, problems\n")
    with pytest.raises(ValueError, match="got a document without <!-- settings:start -->"):
        fill("nothing", "settings", "")
