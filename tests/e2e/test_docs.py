"""The other lines of the documents: training and export run in their order, what cannot run is at least spelt right."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from service.cli import app as petseg
from tests.e2e.documents import PAGES, Block, blocks
from tests.e2e.server import ROOT
from tests.e2e.test_readme import LINES
from training.cli import app as petseg_train

COMMANDS = {"petseg": petseg, "petseg-train": petseg_train}
ELSEWHERE = {"python", "python3", "pip", "make", "mkdir", "cp", "curl"}
"""Commands of others, in blocks that are not run."""
RUN_HERE = [ROOT / "docs" / name for name in ("limits.md", "models.md", "training.md")]


def is_run_here(block: Block) -> bool:
    return block.page in RUN_HERE and not block.not_run


def steps(line: str) -> list[list[str]]:
    """The commands of one line, split into words, without variables and the folder of the environment."""
    parts = [shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", part.strip()), comments=True) for part in line.split("&&")]
    return [[each[0].removeprefix(".venv/bin/"), *each[1:]] for each in parts if each[0] != "."]


def test_every_line_is_run_or_says_why_not() -> None:
    run_here = {line for block in blocks("sh") if is_run_here(block) for line in block.commands()}
    unaccounted = [
        f"{block.page.name}: {line}"
        for block in blocks("sh")
        if not block.not_run
        for line in block.commands()
        if line not in run_here and line not in LINES
    ]
    assert unaccounted == [], "run them in a test, or begin their block with `# not run: REASON`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_that_are_not_run_are_spelt_right(page: Path) -> None:
    for block in blocks("sh", (page,)):
        for words in (each for line in block.commands() if block.not_run for each in steps(line)):
            if words[0] not in COMMANDS:
                assert words[0] in ELSEWHERE, f"{words[0]} is no command of this project"
                continue
            group = typer.main.get_command(COMMANDS[words[0]])
            assert isinstance(group, TyperGroup)
            command = group.commands[words[1]]
            command.make_context(words[1], words[2:])  # raises for an unknown option or a value of a wrong kind


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_lines_run_in_their_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would, in a clone, where the shipped checkpoints lie; in this process, which has torch loaded."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "checkpoints").symlink_to(ROOT / "models" / "checkpoints")
    monkeypatch.chdir(tmp_path)
    if "onnxruntime" in page.read_text(encoding="utf-8"):
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    for block in blocks("sh", (page,)):
        for line in block.commands() if is_run_here(block) else ():
            (words,) = steps(line)
            ended = CliRunner().invoke(COMMANDS[words[0]], words[1:])
            assert ended.exit_code == 0, f"{line}\n{ended.output}\n{ended.exception!r}"
    for block in blocks("python", (page,)):
        exec(compile(block.text, page.name, "exec"), {})


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.partition("#")[0]
            if path and not path.startswith(("http://", "https://")) and not (page.parent / path).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_model_guide_holds_the_readmes_table() -> None:
    """`petseg-train compare` writes both."""
    tables = [
        re.findall(r"<!-- table:start -->(.*?)<!-- table:end -->", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        for name in ("README.md", "docs/models.md")
    ]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1], "petseg-train compare models/checkpoints --readme README.md --readme docs/models.md"
