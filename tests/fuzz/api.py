"""Requests that schemathesis generates from the server's own OpenAPI document, and its judgement of the answers."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.fuzz.server import DEADLINE_S, serve

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not among them: that all that fits the schema is taken (no schema says which bytes are an image, or which prompt fits
a model), and that all else is refused (in a form everything is text, so that wrong types may turn into right ones)."""

OPERATIONS = 8
"""Those with parameters, among which the requests are shared out; the others get one or two each."""

MAX_ROUNDS = 8

PROCESSES = 2
"""Of schemathesis, side by side: making requests takes longer than answering them."""


@dataclass
class RequestReport:
    """What the generated requests came to."""

    seed: int
    wanted: int
    requests: int = 0
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """By address, how often each status was given, as the server's own figures tell."""
    faults: list[str] = field(default_factory=list)
    took_s: float = 0.0
    version: str = field(default_factory=lambda: version("schemathesis"))

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def run_requests(seed: int, wanted: int, folder: Path) -> RequestReport:
    """At least `wanted` requests, in rounds with the seeds `seed`, `seed` + 1, ...; schemathesis' words to `folder`."""
    report = RequestReport(seed, wanted)
    started_at = time.monotonic()
    seeds = itertools.count(seed)
    with serve(folder / "requests-server.log") as (url, _), ThreadPoolExecutor(PROCESSES) as pool:
        for _ in range(MAX_ROUNDS):
            left = wanted - report.requests
            if left <= 0 or report.faults:
                break
            examples = max(1, left // OPERATIONS // PROCESSES)
            runs = [pool.submit(_run_one, url, next(seeds), examples, folder) for _ in range(PROCESSES)]
            for run in runs:
                requests, faults = run.result()
                report.requests += requests
                report.faults += faults
        report.answers = read_answers(httpx.get(f"{url}/metrics", timeout=30).text)
        if httpx.get(f"{url}/readyz", timeout=30).status_code != 200:
            report.faults.append("the server is not ready at the end")
    if report.requests < wanted:
        report.faults.append(f"got {report.requests} requests, wanted {wanted}")
    report.took_s = time.monotonic() - started_at
    return report


def _run_one(url: str, seed: int, examples: int, folder: Path) -> tuple[int, list[str]]:
    """One process of schemathesis: how many requests it sent, and what was wrong."""
    written = folder / f"requests-{seed}.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        # One worker: of two, each counts the other's depth in Python 3.11's ast module, and both end with SystemError.
        *("--seed", str(seed), "--max-examples", str(examples), "--workers", "1"),
        *("--checks", ",".join(CHECKS), "--max-response-time", str(DEADLINE_S)),
        *("--request-timeout", str(DEADLINE_S + 10), "--phases", "examples,coverage,fuzzing"),
        *("--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off"),
        *("--report", "json", "--report-json-path", str(written)),
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "NO_COLOR": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    (folder / f"requests-{seed}.log").write_text(finished.stdout + finished.stderr)
    if not written.exists():
        return 0, [f"schemathesis ended with {finished.returncode}: {finished.stderr[-2000:]}"]
    document: dict[str, Any] = json.loads(written.read_text())
    faults = [
        f"{failure['title']} ({failure['count']} times): {', '.join(failure['operations'])}, seed {seed}"
        for failure in document["failures"]
    ]
    faults += [f"{error['title']} ({error['count']} times), seed {seed}" for error in document["errors"]]
    if finished.returncode and not faults:
        faults.append(f"schemathesis ended with {finished.returncode}, seed {seed}")
    return document["test_cases"]["generated"], faults


def read_answers(metrics: str) -> dict[str, Counter[str]]:
    """Statuses by address, from the figures that the server gives Prometheus."""
    answers: dict[str, Counter[str]] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "petseg_requests_total":
                route = sample.labels["route"] or "(elsewhere)"
                answers.setdefault(route, Counter())[sample.labels["status"]] += int(sample.value)
    return answers
