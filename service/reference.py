"""Tables of the documents, from what the code says: settings and problem types. Printed by `petseg reference`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.errors import PROBLEMS
from service.settings import Settings, variable

_PACKAGE_ROOT = Path(__file__).parents[1]


def settings_table() -> str:
    """Markdown: each environment variable of the service, its default and what it sets."""
    rows = [
        (f"`{variable(name)}`", _default(name, field), _meaning(field)) for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "default", "what it sets"), rows)


def problems_table() -> str:
    """Markdown: each problem type under its URL, with its status, its title and what to do."""
    rows = [
        (f"`/problems/{slug}`", str(problem.status), problem.title, problem.about) for slug, problem in PROBLEMS.items()
    ]
    return _table(("type", "status", "title", "what it means and what to do"), sorted(rows, key=lambda row: row[1]))


TABLES = {"settings": settings_table, "problems": problems_table}
"""By the name that the markers in a document carry."""


def fill(document: str, name: str, table: str) -> str:
    """The document with `table` between its markers of that name; ValueError where it has none."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in document or end not in document:
        raise ValueError(f"got a document without {start} and {end}, wanted both")
    before, _, rest = document.partition(start)
    return f"{before}{start}\n\n{table}\n{end}{rest.partition(end)[2]}"


def _default(name: str, field: FieldInfo) -> str:
    default: Any = field.default
    if field.default_factory is not None or default in (None, "", ()):
        return "-"
    if isinstance(default, Path):
        return f"`{default.relative_to(_PACKAGE_ROOT)}`"
    if isinstance(default, int) and name.endswith("_bytes") and default % 1024 == 0:
        unit, size = next(
            (unit, size) for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)) if default % size == 0
        )
        return f"`{default}` ({default // size} {unit})"
    value = getattr(default, "get_secret_value", lambda: default)()
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "-"


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    listed = " One of " + ", ".join(f"`{choice}`" for choice in choices) + "." if choices else ""
    return " ".join((field.description or "").split()) + listed


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
