"""The committed document is the one that the code gives, and it names every problem."""

import json
from pathlib import Path
from typing import Any

from service.cli import document_text
from service.errors import PROBLEMS

COMMITTED = Path(__file__).parents[2] / "openapi.json"


def test_the_whole_document_is_the_committed_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == document_text(), "run: python -m service openapi > openapi.json"


def test_every_problem_stands_in_the_document() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    missing = [slug for slug in PROBLEMS if f"/problems/{slug}`" not in text]
    assert missing == ["method-not-allowed", "headers-too-large"]  # on no address in particular: `default` covers them


def test_every_operation_answers_failures_with_problems() -> None:
    document: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    assert list(response["content"]) == ["application/problem+json"]
            assert "default" in operation["responses"]


def test_every_reference_leads_somewhere() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    document = json.loads(text)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names
    assert names <= set(document["components"]["schemas"])
