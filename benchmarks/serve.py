"""Load on our server through real HTTP: each model at rising numbers of clients, each output, each kind of body."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import ours
from benchmarks.load import Load, run_load
from benchmarks.processes import Server, run_server
from benchmarks.requests import Asked
from models.checkpoint import read_card
from models.folders import CHECKPOINT_FOLDER

CLIENTS = (1, 8, 32, 128)
OUTPUTS = ("png", "rle", "overlay", "cutout", "probability")

PROMPTS = {"clip": "text=a%20photo%20of%20a%20cat", "prompt": "x=200&y=150"}
"""Query by architecture; other models take none."""


@dataclass(frozen=True)
class Row:
    """One load and what it came to."""

    server: str
    model: str
    output: str
    body: str
    photo: str
    clients: int
    rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    errors: int
    server_cpu_ms: float
    """CPU milliseconds of the server's processes for each good answer."""
    client_cpu_ms: float
    """The same of the load generator, which shares the cores."""
    peak_pss_mb: float
    peak_rss_mb: float
    seconds: float
    answered: int


@dataclass(frozen=True)
class Case:
    """One load to put on a server."""

    model: str
    asked: Asked
    photos: Path
    clients: int
    output: str = "png"
    photo: str = "100 KB"


def fill_folder(folder: Path, pattern: str = "*") -> list[str]:
    """Put the shipped checkpoints of these names beside the study's into `folder`; returns all names."""
    for path in CHECKPOINT_FOLDER.glob(f"{pattern}.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def ask_for(folder: Path, model: str, output: str = "png", body: str = "raw") -> Asked:
    """A request to `model` with a prompt where it takes one; unique where a cache would answer the second one."""
    prompt = PROMPTS.get(read_card(folder / f"{model}.safetensors").architecture)
    query = "&".join(filter(None, [prompt, f"output={output}" if output != "png" else None]))
    return Asked(f"/segment/{model}" + (f"?{query}" if query else ""), body, is_unique=prompt is not None)


def list_cases(
    folder: Path, photos: Path, large_photos: Path | None, models: Sequence[str], clients: Sequence[int], busy: int
) -> list[Case]:
    """Every model as PNG at each of `clients`; for the first model each output and body at `busy` clients."""
    first = models[0]
    cases = [Case(model, ask_for(folder, model), photos, count) for model in models for count in clients]
    cases += [Case(first, ask_for(folder, first, output), photos, busy, output) for output in OUTPUTS[1:]]
    cases += [Case(first, ask_for(folder, first, body="multipart"), photos, count) for count in clients]
    if large_photos is not None:
        cases += [
            Case(first, ask_for(folder, first, output), large_photos, count, output, "12 megapixels")
            for output in ("png", "rle")
            for count in (1, 8)
        ]
    return cases


def measure_serve(folder: Path, cases: Sequence[Case], seconds: float, warm_up_s: float, rounds: int) -> Iterator[Row]:
    """Put each case on one server that holds all models of `folder`, with default settings."""
    contestant = ours("petseg", "default", folder)
    with run_server(contestant.command, contestant.environment, contestant.ready_path) as server:
        for case in cases:
            yield put(server, "petseg", case, seconds, warm_up_s, rounds)


def put(
    server: Server,
    name: str,
    case: Case,
    seconds: float,
    warm_up_s: float,
    rounds: int,
    answers: Path | None = None,
) -> Row:
    """One case on a running server."""
    load = Load(server.port, case.photos, case.asked, seconds, warm_up_s, case.clients, rounds, answers=answers)
    cpu_s: list[float] = []
    with server.measured() as meter:
        result = run_load(load, on_clock=lambda: cpu_s.append(meter.cpu_s()))
    use, answered = meter.use, max(1, result.answered)
    return Row(
        server=name,
        model=case.model,
        output=case.output,
        body=case.asked.body,
        photo=case.photo,
        clients=case.clients,
        rate=result.rate,
        p50_ms=result.good.p50_ms,
        p90_ms=result.good.p90_ms,
        p99_ms=result.good.p99_ms,
        errors=result.errors,
        server_cpu_ms=1000 * (cpu_s[-1] - cpu_s[0]) / answered,
        client_cpu_ms=1000 * result.client_cpu_s / answered,
        peak_pss_mb=use.peak_pss_mb,
        peak_rss_mb=use.peak_rss_mb,
        seconds=result.seconds,
        answered=result.answered,
    )
