"""Print what petseg needs, and what the named extras add, as a requirements file: pyproject.toml [EXTRA...]."""

import sys
import tomllib
from pathlib import Path


def list_requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Requirements of the project and of its `extras`; KeyError names an extra that does not exist."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(each for extra in extras for each in optional[extra])]


if __name__ == "__main__":
    print("\n".join(list_requirements(Path(sys.argv[1]), sys.argv[2:])))
