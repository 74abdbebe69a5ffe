"""`python -m benchmarks`: edges, raw, serve, scenarios, settings, peers; page; all of them in one command."""

import asyncio
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

from benchmarks.contestants import Contestant, our_variants, ours, peers, settings_variants
from benchmarks.edges import measure_edges
from benchmarks.goals import Comparison, judge_peers
from benchmarks.gpu import GpuPlan, GpuRow, measure_gpu, raw_runs
from benchmarks.hub import HubRow, measure_hub
from benchmarks.load import Load
from benchmarks.page import write_page
from benchmarks.peers import CLIENTS as PEER_CLIENTS
from benchmarks.peers import Plan, Turn, alternate
from benchmarks.peers_environment import DEFAULT_FOLDER, has_package, install_peers, peer_versions, peers_or_own_python
from benchmarks.photos import write_large_photos, write_photos
from benchmarks.processes import run_server
from benchmarks.raw import RawResult, raw_grid, run_raw
from benchmarks.results import read_results, write_results
from benchmarks.scenarios import Figures, bad_photo, clicks, hang_ups, health, overload, start
from benchmarks.serve import CLIENTS, ask_for, fill_folder, list_cases, measure_serve
from benchmarks.study import (
    FULL_SIZE,
    FULL_SIZE_TEXT,
    NAME,
    copy_shipped_checkpoint,
    write_full_size_checkpoint,
    write_int8_checkpoint,
    write_study_checkpoint,
)
from models.checkpoint import read_card

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure the models, the service and its peers.")

DEFAULT_OUT = Path("runs/benchmarks")
DEFAULT_PAGE = Path("docs/benchmarks.md")
RECOMMENDED = "timm_unet"
"""The shipped model that users are told to take: its forward pass is short, so that serving weighs more."""

Out = Annotated[Path, typer.Option(help="Folder for photos, checkpoints and results.")]
Photos = Annotated[Path | None, typer.Option(help="Folder of *.jpg to send; else drawn from scikit-image's cat.")]
Weights = Annotated[str, typer.Option(help="Of the study's UNet: shipped (the shipped one, widened) or random.")]
Short = Annotated[bool, typer.Option("--short", help="Half of the time, with half as long loads.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Seconds: whether it runs at all, no figures worth reading.")]
Peers = Annotated[Path, typer.Option(help="The peers' virtual environment.")]
T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """How long everything takes."""

    seconds: float
    warm_up_s: float
    rounds: int
    alternations: int
    overload_s: float
    is_smoke: bool = False

    @property
    def window(self) -> str:
        """How long each load is measured, in words."""
        return f"at least {self.seconds:g} s and {self.rounds} answers to each client"

    @classmethod
    def choose(cls, short: bool, smoke: bool) -> "Pace":
        """By the command line's flags."""
        if smoke:
            return cls(0.3, 0.1, 1, 1, 1.0, is_smoke=True)
        return cls(2.0, 0.7, 6, 3, 20.0) if short else cls(4.0, 1.0, 10, 3, 60.0)


def main() -> None:
    """The command line; what the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)


@app.command("raw")
def raw_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """The forward pass alone, and bytes to PNG, in one process: by precision, streams and batch size."""
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    study = write_study_checkpoint(out / "study", weights)
    seconds = pace.seconds / 3
    if pace.is_smoke:
        runs = raw_grid(study, sent, seconds=0.1, batch_sizes=(2,), streams=(1,), chosen=("fp32",))
    else:
        write_int8_checkpoint(study)
        runs = raw_grid(study, sent, seconds=seconds)
        folder = out / "models"
        fill_folder(ensure(folder))
        for path in sorted(folder.glob("*.safetensors")):
            if path.stem != NAME:
                runs += raw_grid(path, sent, seconds=seconds, batch_sizes=(1, 8), streams=(os.cpu_count() or 1,))
    results = [tell(each, f"{each.model} {each.task} {each.precision}") for each in run_raw(runs)]
    write_results(out, "raw", {"results": results})


@app.command("serve")
def serve_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """Load on our server over HTTP: each model by number of clients, each output, each kind of body."""
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    write_study_checkpoint(ensure(out / "models"), weights)
    shipped = "prompt" if pace.is_smoke else "*"
    models = [NAME, *(name for name in fill_folder(out / "models", shipped) if name != NAME)]
    if pace.is_smoke:
        cases = list_cases(out / "models", sent, None, models[:1], (2,), 2)
    else:
        cases = list_cases(out / "models", sent, ensure_large_photos(out), models, (1, 32) if short else CLIENTS, 32)
    seconds = 0.75 * pace.seconds
    rows = [
        tell(row, f"{row.model} {row.output} {row.body} {row.photo} x {row.clients}")
        for row in measure_serve(out / "models", cases, seconds, pace.warm_up_s, pace.rounds)
    ]
    write_results(out, "serve", {"rows": rows, "window": replace(pace, seconds=seconds).window})


@app.command("scenarios")
def scenarios_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    short: Short = False,
    smoke: Smoke = False,
    overload_s: Annotated[float | None, typer.Option(help="Seconds of overload; 60 unless told.")] = None,
) -> None:
    """What averages hide: kept photos, hang-ups, a bad photo, health under load, overload."""
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    folder = ensure(out / "models")
    write_study_checkpoint(folder, weights)
    fill_folder(folder, "prompt" if pace.is_smoke else "*")
    contestant = ours("petseg", "default", folder)
    shipped = ensure(out / "shipped")
    fill_folder(shipped, "prompt" if pace.is_smoke else "*")
    found: dict[str, Figures] = {"start": tell_figures("start", start(ours("petseg", "default", shipped)))}
    if not pace.is_smoke:
        found["full_size_clicks"] = tell_figures("full_size_clicks", measure_full_size_clicks(out, sent))
    with run_server(contestant.command, contestant.environment, contestant.ready_path) as server:
        load = Load(server.port, sent, ask_for(folder, NAME), pace.seconds, pace.warm_up_s, rounds=pace.rounds)
        few = 2 if pace.is_smoke else 20
        found["clicks"] = tell_figures("clicks", asyncio.run(clicks(load, "prompt", few)))
        found["hang_ups"] = tell_figures("hang_ups", asyncio.run(hang_ups(load, 1 if pace.is_smoke else 5)))
        found["bad_photo"] = tell_figures("bad_photo", asyncio.run(bad_photo(load, few)))
        found["health"] = tell_figures("health", asyncio.run(health(load)))
        found["overload"] = tell_figures("overload", overload(server, load, overload_s or pace.overload_s))
    write_results(out, "scenarios", {"scenarios": found})


@app.command("peers")
def peers_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    model: Annotated[str, typer.Option(help="study, or a shipped one that takes no prompt.")] = NAME,
    weights: Weights = "shipped",
    peers_folder: Peers = DEFAULT_FOLDER,
    only: Annotated[str, typer.Option(help="Names of contestants, with commas; all unless told.")] = "",
    install: Annotated[bool, typer.Option(help="Make the peers' environment where it is missing.")] = True,
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """The same weights and task behind our server, LitServe, Ray Serve, BentoML and FastAPI, alternating."""
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    if model == NAME:
        checkpoint = write_study_checkpoint(out / NAME, weights)
    else:
        checkpoint = copy_shipped_checkpoint(out / "alone" / model, model)
    python = install_peers(peers_folder) if install else peers_or_own_python(peers_folder)
    if not pace.is_smoke:
        write_int8_checkpoint(checkpoint)
    contestants, absent = choose_contestants(checkpoint, python, only)
    clients = (2,) if pace.is_smoke else PEER_CLIENTS
    plan = Plan(
        sent, checkpoint, out / "answers", pace.seconds, pace.warm_up_s, pace.rounds, pace.alternations, clients
    )
    if pace.is_smoke:
        plan = replace(plan, raw_batch_sizes=(2,), raw_streams=(2,))
    turns: list[Turn] = []
    raw: list[RawResult] = []
    for each in alternate(contestants, plan):
        if isinstance(each, str):
            absent.append(each)
            typer.echo(each)
        elif isinstance(each, RawResult):
            raw.append(tell(each, f"raw {each.precision} {each.streams} x {each.batch_size}"))
        else:
            turns.append(each)
            for row in each.rows:
                tell(row, f"{each.contestant} x {row.clients}")
    found = {
        "model": read_card(checkpoint).summary,
        "contestants": {each.name: each.summary for each in contestants},
        "versions": peer_versions(python),
        "absent": absent,
        "alternations": plan.alternations,
        "cores": os.cpu_count() or 1,
        "turns": turns,
        "raw": raw,
    }
    write_results(out, f"peers-{model}", found | {"window": pace.window})
    for goal in judge_peers(Comparison(turns, raw, plan.alternations, os.cpu_count() or 1)):
        typer.echo(f"{goal.name:<100} wanted {goal.wanted:<8} got {goal.got}")


@app.command("gpu")
def gpu_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    fronts: Annotated[
        str, typer.Option(help="How many fronts, with commas; auto is what the server takes.")
    ] = "auto,0",
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """On a GPU: the raw forward pass, how much of it reaches the clients, and what is busy meanwhile."""
    if not (smoke or torch.cuda.is_available()):
        raise ValueError("got no GPU, wanted one; `raw` and `serve` measure on a CPU")
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    study = write_study_checkpoint(out / "study", weights)
    checkpoints = [study] if smoke else [study, write_full_size_checkpoint(out / "full-size-text", FULL_SIZE_TEXT)]
    cores = os.cpu_count() or 1
    sizes = (1, 32, 64, 128, 256)
    streams, threads = ((2,), (cores,)) if short else ((1, 2), (1, 4, cores))
    raw: list[RawResult] = []
    rows: list[GpuRow] = []
    for checkpoint in checkpoints:
        plan = GpuPlan(checkpoint, sent, pace.seconds, pace.warm_up_s, generators=max(1, cores // 4))
        if smoke:
            plan = replace(plan, clients=(2,), fronts=(1,))
            runs = raw_runs(plan, (1, 2), (1,), (1,))
        else:
            plan = replace(plan, fronts=read_fronts(fronts))
            runs = raw_runs(plan, sizes, streams, threads)
        raw += [tell(each, f"{each.model} {each.task} {each.precision}") for each in run_raw(runs)]
        for row in measure_gpu(plan):
            rows.append(tell(row, f"{row.model} {row.fronts} fronts x {row.clients}"))
            write_results(out, "gpu", {"raw": raw, "rows": rows, "window": f"{pace.seconds:g} s"})


@app.command("hub")
def hub_command(out: Out = DEFAULT_OUT, short: Short = False, smoke: Smoke = False) -> None:
    """What passes through the process behind fronts, with an engine that only waits: needs no GPU."""
    pace = Pace.choose(short, smoke)
    rows: list[HubRow] = []
    for model in ("clip",) if pace.is_smoke else (RECOMMENDED, "clip"):
        for speed in (750.0,) if pace.is_smoke else (750.0, 5000.0):  # as ViT-L/14 on an H200, and beyond any hub
            row = measure_hub(model, speed, 4 if pace.is_smoke else 384, pace.seconds)
            rows.append(tell(row, f"{row.model} x {row.callers}, engine of 2 x {row.speed:g}"))
            write_results(out, "hub", {"rows": rows, "window": f"{pace.seconds:g} s"})


@app.command("settings")
def settings_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """Our server under other settings than its defaults, alternating."""
    pace = Pace.choose(short, smoke)
    sent = photos or ensure_photos(out)
    checkpoint = write_study_checkpoint(out / "study", weights)
    variants = settings_variants(checkpoint.parent)
    alternations = min(2, pace.alternations)
    plan = Plan(
        sent, checkpoint, out / "answers", 0.75 * pace.seconds, pace.warm_up_s, pace.rounds, alternations, (1, 32)
    )
    turns = []
    for each in alternate(variants[: 1 if pace.is_smoke else None], plan):
        if isinstance(each, Turn):
            turns.append(each)
            for row in each.rows:
                tell(row, f"{each.contestant} x {row.clients}")
        else:
            typer.echo(str(each))
    found = {"turns": turns, "raw": [], "alternations": alternations, "cores": os.cpu_count()}
    write_results(out, "settings", found | {"contestants": {each.name: each.summary for each in variants}})


@app.command("edges")
def edges_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    short: Short = False,
    smoke: Smoke = False,
) -> None:
    """Decoding, enlarging and encoding, each way beside the others."""
    sent = photos or ensure_photos(out)
    checkpoint = write_study_checkpoint(out / "study", weights)
    large = sent if smoke else ensure_large_photos(out)
    torch.set_num_threads(1)
    rows = measure_edges(checkpoint, sent, large, 1 if smoke else 5 if short else 15)
    for row in rows:
        typer.echo(f"{row.step:<22} {row.photo:<14} {row.way:<66} {row.ms:8.2f} ms {row.size_bytes or '':>8}")
    write_results(out, "edges", {"rows": rows})


@app.command("page")
def page_command(
    out: Out = DEFAULT_OUT,
    page: Annotated[Path, typer.Option(help="Markdown file.")] = DEFAULT_PAGE,
    steps: Annotated[bool, typer.Option(help="With what was tried, which is of no one machine.")] = True,
) -> None:
    """Write the results page from what the other commands measured."""
    write_page(page, read_results(out), has_steps=steps)
    typer.echo(f"wrote {page}")


@app.command("all")
def all_command(
    out: Out = DEFAULT_OUT,
    photos: Photos = None,
    weights: Weights = "shipped",
    peers_folder: Peers = DEFAULT_FOLDER,
    page: Annotated[Path, typer.Option(help="Markdown file.")] = DEFAULT_PAGE,
    short: Short = False,
) -> None:
    """Everything, then the page: about 70 minutes on two cores, 45 with --short."""
    edges_command(out, photos, weights, short)
    raw_command(out, photos, weights, short)
    serve_command(out, photos, weights, short)
    scenarios_command(out, photos, weights, short)
    settings_command(out, photos, weights, short)
    for model in (NAME, RECOMMENDED):
        peers_command(out, photos, model, weights, peers_folder, short=short)
    page_command(out, page)


def choose_contestants(checkpoint: Path, python: Path, only: str) -> tuple[list[Contestant], list[str]]:
    """Who takes part, and in words who does not. Raises ValueError for a name that nobody bears."""
    everyone = our_variants(checkpoint) + peers(python, checkpoint)
    names = [name for name in only.split(",") if name]
    if unknown := set(names) - {each.name for each in everyone}:
        raise ValueError(f"got --only {sorted(unknown)[0]}, wanted some of {', '.join(each.name for each in everyone)}")
    chosen = [each for each in everyone if not names or each.name in names]
    absent = [f"`{each.name}` was left out of this run." for each in everyone if each not in chosen]
    missing = {each.package for each in chosen if each.package and not has_package(python, each.package)}
    absent += [
        f"{each.name} did not take part: {each.package} is not installed." for each in chosen if each.package in missing
    ]
    return [each for each in chosen if each.package not in missing], absent


def ensure_photos(out: Path) -> Path:
    """The drawn photos under `out`, drawn where they are missing."""
    folder = out / "photos"
    return folder if folder.is_dir() else write_photos(folder)


def ensure_large_photos(out: Path) -> Path:
    """The drawn photos of 12 megapixels, drawn where they are missing."""
    folder = out / "large-photos"
    return folder if folder.is_dir() else write_large_photos(folder)


def read_fronts(text: str) -> tuple[int | None, ...]:
    """Whole numbers, or None for `auto`, with commas between them. Raises ValueError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word == "auto" or word.isdigit() for word in words):
        raise ValueError(f"got {text!r}, wanted whole numbers or auto with commas between them")
    return tuple(None if word == "auto" else int(word) for word in words)


def ensure(folder: Path) -> Path:
    """`folder`, made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(found: T, name: str) -> T:
    """Print the gist of a row as soon as it is there."""
    facts = asdict(found)  # type: ignore[call-overload]
    load = ("streams", "batch_size", "rate", "p50_ms", "p99_ms", "server_cpu_ms", "client_cpu_ms", "cpu_ms", "errors")
    shown = (*load, "batch", "gpu_busy", "cores", "hub", "loop", "host", "hub_ms", "loop_ms")
    typer.echo(f"{name:<44} " + "  ".join(f"{key} {facts[key]:.4g}" for key in shown if key in facts))
    return found


def measure_full_size_clicks(out: Path, photos: Path) -> Figures:
    """Clicks where the encoder is the study's: a server of its own, for its weights take up 2 GB."""
    contestant = ours("petseg", "default", write_full_size_checkpoint(out / "full-size").parent, model=FULL_SIZE)
    with run_server(contestant.command, contestant.environment, contestant.ready_path) as server:
        load = Load(server.port, photos, contestant.asked, seconds=0.0)
        return asyncio.run(clicks(load, FULL_SIZE, count=5))


def tell_figures(name: str, figures: Figures) -> Figures:
    """Print a scenario's figures as soon as they are there."""
    typer.echo(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return figures
