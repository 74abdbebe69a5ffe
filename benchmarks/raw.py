"""Without HTTP: the forward pass alone, and the whole pipeline from upload bytes to PNG, in one process.

What a server could reach at most. Streams are threads side by side, each with its share of the cores.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.data import default_collate

from benchmarks.contestants import float_precisions
from benchmarks.processes import ROOT, plain_environment
from benchmarks.requests import read_photos
from benchmarks.study import INT8, int8_path
from models.checkpoint import load_checkpoint
from models.engine import join_rows
from models.prompts import PointPrompt, Prompt, PromptKind, PromptTensors, TextPrompt
from service.app import create_app
from service.predictor import Predictor, Row
from service.rendering import drawer
from service.schemas import Output, Rle
from service.settings import Settings

FORWARD, PIPELINE, DEVICE = "forward", "pipeline", "device"
"""What is measured: squares in the host's memory to logits, uploads to PNG, squares on the device to logits."""


@dataclass(frozen=True)
class RawRun:
    """One measurement to make."""

    checkpoint: Path
    photos: Path
    task: str
    """FORWARD, PIPELINE or DEVICE."""
    precision: str
    streams: int
    batch_size: int
    seconds: float


@dataclass(frozen=True)
class RawResult:
    """Photos a second of one run."""

    model: str
    task: str
    precision: str
    streams: int
    batch_size: int
    rate: float
    cpu_ms: float
    """CPU milliseconds for each photo."""


def precisions(checkpoint: Path) -> list[str]:
    """Every precision of our settings that pays here, and integers where `checkpoint` lies beside its own in them."""
    return [*float_precisions(), INT8] if int8_path(checkpoint).is_file() else float_precisions()


def run_raw(runs: Sequence[RawRun]) -> Iterator[RawResult]:
    """Each run's result. Runs of one model, precision and number of streams share a process: engines keep theirs."""
    groups: dict[tuple[Path, str, int], list[RawRun]] = {}
    for run in runs:
        groups.setdefault((run.checkpoint, run.precision, run.streams), []).append(run)
    for group in groups.values():
        spec = json.dumps([asdict(run) for run in group], default=str)
        words = [sys.executable, "-m", "benchmarks.raw"]
        done = subprocess.run(words, input=spec, capture_output=True, text=True, cwd=ROOT, env=plain_environment())
        if done.returncode:
            raise RuntimeError(f"the raw run of {group[0]} ended with {done.returncode}:\n{done.stderr}")
        yield from (RawResult(**each) for each in json.loads(done.stdout.splitlines()[-1]))


def raw_grid(
    checkpoint: Path,
    photos: Path,
    *,
    seconds: float,
    tasks: Sequence[str] = (FORWARD, PIPELINE),
    batch_sizes: Sequence[int] = (1, 4, 8, 32),
    streams: Sequence[int] | None = None,
    chosen: Sequence[str] | None = None,
) -> list[RawRun]:
    """Every combination for one checkpoint, or for the one of integers beside it.

    By default one stream with all cores, and one for each core.
    """
    cores = os.cpu_count() or 1
    return [
        RawRun(
            int8_path(checkpoint) if precision == INT8 else checkpoint,
            photos,
            task,
            precision,
            side_by_side,
            batch_size,
            seconds,
        )
        for precision in (chosen or precisions(checkpoint))
        for side_by_side in (streams or sorted({1, cores}))
        for task in tasks
        for batch_size in batch_sizes
    ]


def measure(runs: Sequence[RawRun]) -> list[RawResult]:
    """The results of `runs`, which share model, precision and streams, in this process."""
    first = runs[0]
    uploads = make_distinct(read_photos(first.photos), max(run.batch_size for run in runs))
    precision = "auto" if first.precision == INT8 else first.precision
    asked = {"precision": precision, "streams": first.streams, "cache_bytes": 0, "image_processes": 0}
    settings = Settings.model_validate(asked)
    predictor: Predictor = create_app(settings, [load_checkpoint(first.checkpoint)]).state.predictors[0]
    return [_measure_one(run, predictor, uploads) for run in runs]


def make_distinct(photos: list[bytes], count: int) -> list[bytes]:
    """`photos`, and copies of them until there are `count`: one that came twice in a batch would be encoded once.

    Copies differ in bytes behind the image, which decoders do not read.
    """
    made = list(photos)
    while len(made) < count:
        made += [photo + b"%d" % len(made) for photo in photos]
    return made


def _measure_one(run: RawRun, predictor: Predictor, uploads: list[bytes]) -> RawResult:
    prompt = some_prompt(predictor.model.prompt_kind)
    draw = drawer(Output.PNG, Rle.COMPRESSED, predictor)

    def prepare(start: int) -> list[Row]:
        chosen = [uploads[(start + offset) % len(uploads)] for offset in range(run.batch_size)]
        return [predictor.prepare(upload, None, prompt) for upload in chosen]

    ready, engine = prepare(0), predictor.engine
    engine.example_run(run.batch_size)()
    squares = join_rows([row.image for row in ready if row.image is not None]).to(engine.device)
    prompts: PromptTensors = default_collate([row.prompt for row in ready])

    def forward(start: int) -> None:
        predictor.predict(ready)

    def device(start: int) -> None:
        engine.decode_native(engine.encode(squares), prompts)

    def pipeline(start: int) -> None:
        batch = prepare(start)
        for row, prediction in zip(batch, predictor.predict(batch), strict=True):
            draw(row, prediction)

    work = {FORWARD: forward, PIPELINE: pipeline, DEVICE: device}[run.task]
    work(0)
    rate, cpu_s = repeat(work, run.batch_size, run.streams, run.seconds)
    name = predictor.checkpoint.name
    return RawResult(name, run.task, run.precision, run.streams, run.batch_size, rate, 1000 * cpu_s)


def repeat(work: Callable[[int], None], batch_size: int, streams: int, seconds: float) -> tuple[float, float]:
    """(items a second, CPU seconds an item) of `work(start)`, which does `batch_size` items, in `streams` threads."""
    done = [0] * streams
    began_at, cpu_before = time.perf_counter(), time.process_time()
    ends_at = began_at + seconds

    def loop(stream: int) -> None:
        while time.perf_counter() < ends_at or not done[stream]:
            work(stream + done[stream])
            done[stream] += batch_size

    threads = [threading.Thread(target=loop, args=(stream,)) for stream in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - began_at
    return sum(done) / spent, (time.process_time() - cpu_before) / sum(done)


def some_prompt(kind: PromptKind) -> Prompt:
    """A prompt for a photo of at least 200 pixels."""
    examples: dict[PromptKind, Prompt] = {
        PromptKind.NONE: None,
        PromptKind.TEXT: TextPrompt("a photo of a cat"),
        PromptKind.POINTS: PointPrompt(((200.0, 150.0),), (1,)),
    }
    return examples[kind]


def best(results: Sequence[RawResult], task: str, precision: str | None = None) -> RawResult:
    """The fastest run of `task`."""
    fitting = [each for each in results if each.task == task and precision in (None, each.precision)]
    return max(fitting, key=lambda each: each.rate)


def main() -> None:
    """Read RawRuns from standard input, print RawResults."""
    given = json.load(sys.stdin)
    runs = [RawRun(**(each | {name: Path(each[name]) for name in ("checkpoint", "photos")})) for each in given]
    print(json.dumps([asdict(result) for result in measure(runs)]))


if __name__ == "__main__":
    main()
