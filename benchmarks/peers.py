"""The same weights and the same task behind ours and the peers' servers, alternating, with the raw pipeline beside."""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.contestants import Contestant
from benchmarks.processes import ServerFailedError, run_server
from benchmarks.raw import PIPELINE, RawResult, raw_grid, run_raw
from benchmarks.requests import read_photos
from benchmarks.serve import Case, Row, put
from models.checkpoint import load_checkpoint
from models.letterbox import Array, decode_image
from training.encoded_pictures import EncodedPictures

CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Turn:
    """One contestant's turn in one alternation."""

    contestant: str
    precision: str
    alternation: int
    start_s: float
    rows: tuple[Row, ...]
    same_pixels: float
    """Share of pixels equal to the reference masks', PyTorch fp32, over all photos; 0 where an answer is missing."""


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    photos: Path
    checkpoint: Path
    answers: Path
    seconds: float
    warm_up_s: float
    rounds: int
    """Answers that each client has in the mean while the clock runs, at least."""
    alternations: int
    clients: Sequence[int] = CLIENTS
    raw_batch_sizes: Sequence[int] = (1, 4, 8)
    raw_streams: Sequence[int] = tuple(count + (os.cpu_count() or 1) for count in (0, 1, 2))


def alternate(contestants: Sequence[Contestant], plan: Plan) -> Iterator[Turn | RawResult | str]:
    """Every contestant once in each alternation, then the raw pipeline; what could not start is told in words."""
    reference = reference_masks(plan.checkpoint, plan.photos)
    precisions = {each.precision: None for each in contestants if each.is_ours and each.precision != "default"}
    for alternation in range(plan.alternations):
        first = alternation * len(contestants) // plan.alternations  # nobody always comes first, or last
        for contestant in (*contestants[first:], *contestants[:first]):
            try:
                yield take_turn(contestant, alternation, plan, reference)
            except ServerFailedError as error:
                yield f"{contestant.name} did not take part: {error}"
        if not precisions:
            continue
        grid = raw_grid(
            plan.checkpoint,
            plan.photos,
            seconds=plan.seconds,
            tasks=(PIPELINE,),
            batch_sizes=plan.raw_batch_sizes,
            streams=plan.raw_streams,
            chosen=list(precisions),
        )
        yield from run_raw(grid)


def take_turn(contestant: Contestant, alternation: int, plan: Plan, reference: list[Array]) -> Turn:
    """Start the contestant, put every number of clients on it, compare its masks, end it."""
    case = Case(plan.checkpoint.stem, contestant.asked, plan.photos, 1)
    answers = plan.answers / contestant.name
    shutil.rmtree(answers, ignore_errors=True)  # of an earlier turn, perhaps with another model
    with run_server(contestant.command, contestant.environment, contestant.ready_path, root=contestant.root) as server:
        rows = tuple(
            put(
                server,
                contestant.name,
                replace(case, clients=clients),
                plan.seconds,
                plan.warm_up_s,
                plan.rounds,
                answers,
            )
            for clients in plan.clients
        )
        start_s = server.start_s
    same = compare_masks(answers, reference)
    return Turn(contestant.name, contestant.precision, alternation, start_s, rows, same)


def reference_masks(checkpoint: Path, photos: Path) -> list[Array]:
    """The mask [H, W] uint8 of each photo as it was measured: plain PyTorch in float32, one photo at a time."""
    model = load_checkpoint(checkpoint).model
    return [EncodedPictures(model, [decode_image(upload)[0]]).masks([None])[0] for upload in read_photos(photos)]


def compare_masks(answers: Path, reference: Sequence[Array]) -> float:
    """Share of equal pixels over all photos that were answered."""
    same = total = 0
    for place, wanted in enumerate(reference):
        path = answers / f"{place}.bin"
        if path.is_file():
            got = _read_mask(path.read_bytes())
            same += int((got == wanted).sum()) if got.shape == wanted.shape else 0
            total += wanted.size
    return same / total if total else 0.0


def _read_mask(png: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(png)))
