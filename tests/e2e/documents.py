"""The code blocks of the README and of docs/: what the tests run, and what they are told cannot run there."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.server import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    text: str

    @property
    def not_run(self) -> str | None:
        """Why the tests do not run it, from its first line."""
        found = re.match(r"# not run: (.+)\n", self.text)
        return found[1] if found else None

    def commands(self) -> list[str]:
        """Its lines without comments and blank ones."""
        lines = (re.sub(r"\s+#\s.*$", "", line) for line in self.text.splitlines())
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks(kind: str, pages: tuple[Path, ...] = PAGES) -> list[Block]:
    """All blocks fenced as `kind`, page by page in their order."""
    fence = re.compile(rf"^```{kind}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(page, text) for page in pages for text in fence.findall(page.read_text(encoding="utf-8"))]
