"""What a run over many photos has finished, line by line on disk: a run that was cut short goes on where it was."""

import json
import os
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from service.photo_files import PhotoFile
from service.schemas import SegmentAnswer

FILE_NAME = "petseg-run.ndjson"


class Request(BaseModel):
    """What a run asks of each photo: the journal's first line. Another request is another run."""

    model_config = ConfigDict(frozen=True)

    model: str
    checkpoint: str
    """sha256 of the checkpoint: results of two versions of a model do not mix."""
    asked: dict[str, Any]
    """Prompt and tolerance, as JSON."""
    results: tuple[str, ...]


class Entry(BaseModel):
    """A photo that is done: a line of the journal."""

    photo: str
    bytes: int
    modified_ns: int
    """With `bytes`, tells whether the photo has changed since."""
    files: tuple[str, ...]
    """Its results, relative to the folder of results."""
    answer: SegmentAnswer | None
    """Its segments, where a result of the whole folder needs them."""


class JournalError(ValueError):
    """The folder holds results of another run; one line for the user."""


class Journal:
    """The journal of one folder of results, open for appending."""

    def __init__(self, folder: Path, request: Request, *, starts_over: bool = False) -> None:
        """Take up the journal of `folder`, or begin one. Raises JournalError where it is of another request."""
        self.folder = folder
        self.path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, Entry] = {}
        if self.path.exists() and not starts_over:
            self.entries = self._read(request)
        self._file: IO[str] = self.path.open("a" if self.entries else "w", encoding="utf-8")
        if not self.entries:
            self._append(request)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_done(self, photo: PhotoFile) -> bool:
        """Whether `photo`, as it is now, was finished and its results are there."""
        entry = self.entries.get(str(photo.name))
        return (
            entry is not None
            and (entry.bytes, entry.modified_ns) == stamp(photo.path)
            and all((self.folder / file).is_file() for file in entry.files)
        )

    def add(self, entry: Entry) -> None:
        """Note a finished photo; its results must be on disk already."""
        self.entries[entry.photo] = entry
        self._append(entry)

    def _append(self, line: BaseModel) -> None:
        self._file.write(line.model_dump_json() + "\n")
        self._file.flush()

    def _read(self, request: Request) -> dict[str, Entry]:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            earlier = Request.model_validate_json(lines[0]) if lines else request
        except ValidationError as error:
            raise JournalError(f"{self.path}: got a file that is no journal of petseg; choose another --out") from error
        if earlier != request:
            raise JournalError(
                f"{self.folder}: got results of another run ({describe(earlier)}), wanted none or those of this one "
                f"({describe(request)}); choose another --out, or give --overwrite"
            )
        entries: dict[str, Entry] = {}
        end = sum(len(line.encode()) for line in lines[:1])
        for line in lines[1:]:
            try:
                entry = Entry.model_validate_json(line)
            except ValidationError:
                break  # the process ended within this line: what it says was not finished
            if not line.endswith("\n"):
                break
            entries[entry.photo] = entry
            end += len(line.encode())
        if entries:
            os.truncate(self.path, end)
        return entries


def stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def describe(request: Request) -> str:
    """A request in a few words."""
    asked = "".join(f", {name} {json.dumps(value)}" for name, value in request.asked.items())
    return f"{request.model} {request.checkpoint.removeprefix('sha256:')[:12]}{asked}, {' and '.join(request.results)}"
