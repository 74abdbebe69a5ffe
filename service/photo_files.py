"""Photos on disk: which ones a command means, where each one's results go, and how results are written."""

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Endings by which photos are found in folders and globs; a file that is named itself may have any."""


@dataclass(frozen=True)
class PhotoFile:
    """One photo to segment."""

    path: Path
    name: PurePosixPath
    """Relative to the folder that holds all photos of the run; names the photo in results."""
    stem: PurePosixPath
    """`name` without its ending, or with it where two photos differ in nothing else; results add their own."""


def find_photos(given: Sequence[str], out: Path) -> list[PhotoFile]:
    """The photos that files, folders (searched to the bottom) and globs name, each once, sorted by name.

    What lies under `out`, a folder, is a result of an earlier run and no photo. Raises FileNotFoundError for what
    names nothing.
    """
    found: dict[Path, Path] = {}  # a photo's target -> the photo as it was found first
    roots: list[Path] = []
    results = out.resolve()
    for each in given:
        path = _absolute(Path(each))
        if path.is_dir():
            photos = _photos_among(path.rglob("*"))
            roots.append(path)
        elif path.exists():
            photos = [path]
            roots.append(path.parent)
        else:
            photos = _photos_among(_absolute(Path(match)) for match in glob.glob(each, recursive=True))  # noqa: PTH207 - also absolute ones
            roots += [photo.parent for photo in photos]
        photos = [photo for photo in photos if not photo.resolve().is_relative_to(results)]
        if not photos:
            raise FileNotFoundError(
                f"{each}: got no photo there, wanted a file, a folder or a glob with {', '.join(sorted(SUFFIXES))}"
            )
        for photo in sorted(photos):
            found.setdefault(photo.resolve(), photo)
    # As they were found: a link may lead out of the folder, and its target's name says nothing to who gave the folder.
    root = Path(os.path.commonpath(roots))
    names = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in found.values())
    taken = Counter(name.with_suffix("") for name in names)
    return [
        PhotoFile(root / name, name, name if taken[name.with_suffix("")] > 1 else name.with_suffix(""))
        for name in names
    ]


def _absolute(path: Path) -> Path:
    """`path` from the root, its links as they are; but for what stands before a `..`, which leads up from a target."""
    up = max((place + 1 for place, part in enumerate(path.parts) if part == ".."), default=0)
    return Path(*path.parts[:up]).resolve().joinpath(*path.parts[up:])


def _photos_among(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` so that `path` never holds a part of it, whenever the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
