"""Many photos in one request: each through the pipeline, each told as soon as it is finished, as NDJSON or ZIP."""

import asyncio
import io
import logging
import re
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.errors import InternalError, Problem, forget_frames
from service.forms import Upload
from service.pipeline import Segmented
from service.rendering import Drawing

T = TypeVar("T")

logger = logging.getLogger("petseg.batches")


@dataclass(frozen=True)
class Finished:
    """One photo of a batch: segmented, or the problem that kept it from being."""

    index: int
    filename: str
    outcome: Segmented[Drawing] | Problem


async def segment_all(
    uploads: Sequence[Upload], segment: Callable[[bytes], Awaitable[Segmented[Drawing]]], max_at_once: int
) -> AsyncGenerator[Finished, None]:
    """Each upload's outcome, in the order in which they are finished; at most `max_at_once` are in work.

    A caller that stops reading cancels the rest.
    """
    gate = asyncio.Semaphore(max_at_once)
    # From tasks that keep nothing: each photo's tensors go with its answer, not with the last one.
    finished: asyncio.Queue[Finished | BaseException] = asyncio.Queue()

    async def finish(index: int, upload: Upload) -> None:
        try:
            async with gate:
                finished.put_nowait(Finished(index, upload.filename, await outcome_of(segment(upload.data))))
        except BaseException as error:
            finished.put_nowait(error)
            raise

    tasks = [asyncio.ensure_future(finish(index, upload)) for index, upload in enumerate(uploads)]
    try:
        for _ in tasks:
            each = await finished.get()
            if isinstance(
                each, BaseException
            ):  # cancelled with the threads that it waited for, at the end of the process
                raise each
            yield each
            del each
    finally:
        for task in tasks:
            task.cancel()


async def outcome_of(work: Awaitable[T]) -> T | Problem:
    """What `work` gives, or the problem it raises; a defect is logged and becomes an InternalError."""
    try:
        return await work
    except Problem as problem:
        forget_frames(problem)
        return problem
    except Exception:
        logger.exception("one photo of a batch failed")
        return InternalError("the service failed on this photo; its log has the trace")


async def zip_archive(entries: AsyncIterator[tuple[str, bytes]]) -> AsyncIterator[bytes]:
    """A ZIP of (name, content) `entries`, its bytes as they come; pictures are stored, not compressed again."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        async for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
            yield sink.take()
    yield sink.take()


def entry_names(uploads: Sequence[Upload]) -> list[str]:
    """A distinct plain name for each upload: its file name without folders and ending, numbered where taken."""
    names: list[str] = []
    for index, upload in enumerate(uploads):
        base = re.split(r"[/\\]", upload.filename)[-1]
        stem = re.sub(r"[^\w .()-]", "_", base.rpartition(".")[0] or base).strip(" .") or f"image-{index}"
        names.append(next(name for name in _numbered(stem) if name not in names))
    return names


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


class _Sink(io.RawIOBase):
    """A file that cannot seek: zipfile then writes sizes behind each entry, and bytes can go out at once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Everything written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
