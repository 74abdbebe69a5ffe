"""Many photos through one model, several at a time: what is done is skipped, a bad one stops no other."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, Field

from service.client import AsyncClient, ClientError, RefusedError
from service.client_requests import AskedOutlines
from service.folder_results import Answered, Result, files_of_all
from service.journal import Entry, Journal, Request, stamp
from service.photo_files import PhotoFile, write_whole
from service.schemas import OUTLINES, Output, SegmentAnswer

_FOR_ALL_ALIKE = frozenset({"/problems/prompt-mismatch", "/problems/unknown-model"})


class Failure(BaseModel):
    """A photo without a mask."""

    photo: str
    problem: str
    """The problem's type; or `file-error`, or `no-answer`."""
    detail: str


class Summary(BaseModel):
    """How a run went, for people and scripts."""

    model: str
    checkpoint: str
    out: str
    photos: int
    segmented: int = 0
    skipped: int = 0
    """Done by an earlier run."""
    failed: list[Failure] = Field(default_factory=list)
    files: list[str] = Field(default_factory=list)
    """Those that tell of all photos."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """What to do with which photos."""

    model: str
    photos: Sequence[PhotoFile]
    out: Path
    results: Sequence[Result]
    asked: AskedOutlines = field(default_factory=lambda: AskedOutlines())
    jobs: int = 8
    """Photos in work at the same time."""
    overwrite: bool = False
    """Begin anew, whatever an earlier run left."""


async def segment_photos(client: AsyncClient, run: Run, on_photo: Callable[[], None] = lambda: None) -> Summary:
    """Segment the photos that are not done yet; `on_photo` is called as each one is finished, skipped or failed.

    Raises ClientError for what no photo could mend (the server is gone, the model unknown, the prompt of the wrong
    kind), JournalError where `run.out` holds results of another run.
    """
    started_at = time.perf_counter()
    details = await client.model(run.model)
    summary = Summary(model=run.model, checkpoint=details.checkpoint, out=str(run.out), photos=len(run.photos))
    request = Request(
        model=run.model,
        checkpoint=details.checkpoint,
        asked=json.loads(json.dumps(run.asked)),
        results=tuple(sorted(set(run.results))),
    )
    with Journal(run.out, request, starts_over=run.overwrite) as journal:
        waiting = iter(run.photos)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(max(1, run.jobs)):
                    workers.create_task(_work(client, run, waiting, journal, summary, on_photo))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        entries = [journal.entries[name] for photo in run.photos if (name := str(photo.name)) in journal.entries]
        answered = [Answered(entry.photo, entry.answer) for entry in entries if entry.answer is not None]
        for result in run.results:
            for name, content in files_of_all(result, answered, details.class_names).items():
                write_whole(run.out / name, content)
                summary.files.append(name)
    summary.failed.sort(key=lambda failure: failure.photo)
    summary.seconds = round(time.perf_counter() - started_at, 3)
    return summary


async def _work(
    client: AsyncClient,
    run: Run,
    waiting: Iterator[PhotoFile],
    journal: Journal,
    summary: Summary,
    on_photo: Callable[[], None],
) -> None:
    """Take one photo after the other until none waits."""
    for photo in waiting:
        name = str(photo.name)
        try:
            if journal.is_done(photo):
                summary.skipped += 1
            else:
                journal.add(await _segment(client, run, photo))
                summary.segmented += 1
        except (ClientError, OSError) as error:
            summary.failed.append(await _failure(client, run, name, error))
            journal.entries.pop(name, None)
        on_photo()


async def _failure(client: AsyncClient, run: Run, name: str, error: ClientError | OSError) -> Failure:
    """What kept one photo from being done. Raises ClientError for what keeps all of them."""
    if isinstance(error, OSError):
        return Failure(photo=name, problem="file-error", detail=f"{error.filename}: {error.strerror or error}")
    if isinstance(error, RefusedError):
        if error.problem.status in (401, 403) or error.problem.type in _FOR_ALL_ALIKE:
            raise error
        return Failure(photo=name, problem=error.problem.type, detail=error.problem.detail)
    await client.model(run.model)  # is the server still there at all?
    return Failure(photo=name, problem="no-answer", detail=str(error))


async def _segment(client: AsyncClient, run: Run, photo: PhotoFile) -> Entry:
    """Ask for each result of one photo and write its files."""
    size, modified_ns = stamp(photo.path)
    data = await asyncio.to_thread(photo.path.read_bytes)
    contents = {output: await _ask(client, run, data, output) for output in outputs_of(run.results)}
    answer_output = output_of_all(run.results)
    answer = SegmentAnswer.model_validate_json(contents[answer_output]) if answer_output is not None else None
    files = []
    for result in run.results:
        if result.suffix is not None:
            name = file_name(photo, result, run.results)
            await asyncio.to_thread(write_whole, run.out / name, contents[result.output])
            files.append(name)
    return Entry(photo=str(photo.name), bytes=size, modified_ns=modified_ns, files=tuple(files), answer=answer)


async def _ask(client: AsyncClient, run: Run, data: bytes, output: Output) -> bytes:
    asked = run.asked.copy()
    if output not in OUTLINES:
        asked.pop("tolerance", None)
    return await client.draw(run.model, data, output, **asked)


def outputs_of(results: Sequence[Result]) -> list[Output]:
    """What to ask of the service for `results`, each once."""
    outputs = {result.output for result in results if result.suffix is not None}
    of_all = output_of_all(results)
    return sorted(outputs if of_all is None else outputs | {of_all})


def output_of_all(results: Sequence[Result]) -> Output | None:
    """What the files that tell of all photos are made from: the areas stand in RLE and polygons alike."""
    if Result.COCO_POLYGONS in results:
        return Output.POLYGONS
    return Output.RLE if {Result.COCO, Result.CSV} & set(results) else None


def file_name(photo: PhotoFile, result: Result, results: Sequence[Result]) -> str:
    """Where a photo's `result` lies under the folder of results; several kinds have a folder each."""
    kinds = {each for each in results if each.suffix is not None}
    folder = "" if len(kinds) == 1 else f"{result}/"
    return f"{folder}{photo.stem}{result.suffix}"
