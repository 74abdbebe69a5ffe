"""`petseg segment` and `petseg models`: against a server, or with the models in this process.

Imports no torch: with --server the commands start at once. `cli.py` holds the commands of the server itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from service.client import AsyncClient, ClientError, UnreachableError
from service.client_requests import API_KEY_VARIABLE, SERVER_VARIABLE, AskedOutlines
from service.folder_results import Result
from service.photo_files import find_photos
from service.schemas import OUTLINES, ModelSummary
from service.segment_photos import Run, Summary, segment_photos

T = TypeVar("T")

SOME_FAILED, WRONG, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes beside 0: some photos have no mask; nothing could be begun; the server is gone; Ctrl-C."""

OUTPUT_HELP = (
    f"For each photo {', '.join(each for each in Result if each.suffix)}; "
    f"for all in one file {', '.join(each for each in Result if not each.suffix)}. "
    "Several: --output png --output coco. Default: png."
)

Server = Annotated[
    str | None,
    typer.Option(envvar=SERVER_VARIABLE, help="Address of a running server; without one the models run here."),
]
ApiKey = Annotated[str | None, typer.Option(envvar=API_KEY_VARIABLE, help="Where the server asks for one.")]

app = typer.Typer(help="Cut cats and dogs out of photographs.", no_args_is_help=True, add_completion=False)


@app.command()
def segment(
    photos: Annotated[list[str], typer.Argument(help="Files, folders (searched to the bottom), quoted globs.")],
    model: Annotated[str, typer.Option(help="One of `petseg models`.")] = "timm_unet",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("masks"),
    output: Annotated[list[Result] | None, typer.Option(metavar="FORM", help=OUTPUT_HELP)] = None,
    text: Annotated[str | None, typer.Option(help="Text prompt for all photos.")] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Click for all photos, in pixels: x,y on the animal or x,y,0 beside it.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="How far outlines may lie from the edge, in pixels.")] = None,
    server: Server = None,
    api_key: ApiKey = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Photos in work at the same time.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever an earlier run left.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Segment photos; what an earlier run has done is skipped.

    Exit code: 0 all done, 1 some photos failed, 2 nothing could be begun, 3 no answer from the server, 130 interrupted.
    """
    try:
        results = check_results(output or [Result.PNG])
        run = Run(
            model=model,
            photos=find_photos(photos, out),
            out=out,
            results=results,
            asked=read_asked(text, point, tolerance, results),
            jobs=jobs,
            overwrite=overwrite,
        )
    except (FileNotFoundError, ValueError) as error:
        fail(str(error), WRONG)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=quiet or not console.is_terminal, transient=True,
    )  # fmt: skip
    task = bar.add_task(model if server else f"loading {model}", total=len(run.photos))

    async def work() -> Summary:
        with bar:
            async with connect(server, api_key, model) as client:
                bar.update(task, description=model)
                return await segment_photos(client, run, on_photo=lambda: bar.advance(task))

    summary = start(work())
    for failure in summary.failed:
        typer.echo(f"petseg: {failure.photo}: {failure.detail} ({failure.problem})", err=True)
    typer.echo(summary.model_dump_json() if as_json else describe_summary(summary))
    if summary.failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def models(
    server: Server = None,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models and what each one takes."""

    async def ask() -> list[ModelSummary]:
        async with connect(server, api_key) as client:
            return await client.models()

    found = start(ask())
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found]))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "takes", "finds", "in one sentence"):
        table.add_column(heading, overflow="fold")
    for each in found:
        table.add_row(each.name, describe_prompt(each), ", ".join(each.class_names[1:]), each.summary)
    Console().print(table)


@asynccontextmanager
async def connect(server: str | None, api_key: str | None, model: str | None = None) -> AsyncIterator[AsyncClient]:
    """A client of `server`, or of `model` in this process where there is none."""
    if server is not None:
        async with AsyncClient(server, api_key=api_key) as client:
            yield client
    else:
        from service.in_process import in_process_client  # brings torch, which takes seconds

        async with in_process_client(model) as client:
            yield client


def start(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; what stops it ends the process with one line and its exit code."""
    try:
        return asyncio.run(work)
    except UnreachableError as error:
        fail(f"{error}; run the same command again to go on where it stopped", UNREACHABLE)
    except (ClientError, ValueError) as error:  # settings, checkpoints and journals that will not do are ValueErrors
        fail(str(error), WRONG)
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to go on where it stopped", INTERRUPTED)


def check_results(results: list[Result]) -> list[Result]:
    """`results`, each once. Raises ValueError for two that write the same file."""
    if {Result.COCO, Result.COCO_POLYGONS} <= set(results):
        raise ValueError("got --output coco and coco-polygons, which both write annotations.json; choose one")
    return sorted(set(results))


def read_asked(
    text: str | None, points: list[str] | None, tolerance: float | None, results: list[Result]
) -> AskedOutlines:
    """The options that go with each photo. Raises ValueError for those that cannot be."""
    asked = AskedOutlines()
    if text is not None:
        asked["text"] = text
    if points:
        asked["points"] = [read_point(each) for each in points]
    if tolerance is not None:
        takers = {Result.COCO_POLYGONS, *(Result(output.value) for output in OUTLINES)}
        if not takers & set(results):
            raise ValueError(f"got --tolerance, which changes only {', '.join(sorted(takers))}; leave it out")
        asked["tolerance"] = tolerance
    return asked


def read_point(text: str) -> tuple[float, float, int]:
    """`x,y` or `x,y,label` -> a click. Raises ValueError."""
    try:
        x, y, *label = text.split(",")
        return float(x), float(y), int(*label) if label else 1
    except (ValueError, TypeError):
        raise ValueError(f"got --point {text}, wanted x,y on the animal or x,y,0 beside it, in pixels") from None


def describe_prompt(model: ModelSummary) -> str:
    """What a model takes beside the photo, in a word or two."""
    if model.prompt.kind == "none":
        return "-"
    kind = {"text": "text", "points": "clicks"}[model.prompt.kind]
    return kind if model.prompt.is_required else f"{kind} or nothing"


def describe_summary(summary: Summary) -> str:
    """A finished run in one line."""
    skipped = f", {summary.skipped} done before" if summary.skipped else ""
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    where = ", ".join([summary.out, *summary.files]) if summary.files else summary.out
    return f"{summary.model}: {summary.segmented} segmented{skipped}{failed} in {summary.seconds:.1f} s -> {where}"


def fail(message: str, code: int) -> NoReturn:
    """One line to stderr and an exit code."""
    typer.echo(f"petseg: {message}", err=True)
    raise typer.Exit(code)
