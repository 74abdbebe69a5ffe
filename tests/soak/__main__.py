"""`python -m tests.soak`, also `make soak`: a long load of right and wrong requests on a real server, then restarts."""

import asyncio
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer

from models.folders import CHECKPOINT_FOLDER
from service.app import load_folder
from tests.e2e.server import start, stop, wait_until_ready
from tests.soak.balancer import Process, Rolling, Start, roll
from tests.soak.cases import Corpus, build_corpus
from tests.soak.load import TIMEOUT_S, Tally, run_load, send_and_check, sender
from tests.soak.page import Soak, write_page
from tests.soak.photos import draw_photos
from tests.soak.watch import Watch

MAX_GROWTH_BYTES = 64 << 20
"""A leak of 2 KiB a request would show after the last half of 50,000."""
MAX_GROWTH_THREADS = 0
MAX_GROWTH_FILES = 4

LINGER_S = 0.5
"""Ten times what passes between two of the balancer's questions: what an operator would set."""

_SAMPLES = 200


def main(
    requests: Annotated[int, typer.Option(help="Requests of the long load.")] = 50_000,
    clients: Annotated[int, typer.Option(help="Requests under way at any time.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed draws another order of cases.")] = 1,
    photos: Annotated[int, typer.Option(help="Photos that the cases are about.")] = 12,
    restarts: Annotated[int, typer.Option(help="Processes replaced with SIGTERM under load.")] = 6,
    kills: Annotated[int, typer.Option(help="Processes replaced with SIGKILL under load.")] = 6,
    checkpoints: Annotated[Path, typer.Option(help="Folder of *.safetensors to serve.")] = CHECKPOINT_FOLDER,
    engine: Annotated[str, typer.Option(help="PETSEG_ENGINE of the server.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="PETSEG_PRECISION of the server. bf16 moves more border pixels than the checks allow.")
    ] = "fp32",
    page: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("docs/soak.md"),
) -> None:
    """Soak a server; exit with 1 where anything was wrong."""
    typer.echo(f"computing references for {photos} photos")
    corpus = build_corpus(load_folder(checkpoints), draw_photos(photos), seed)
    settings: dict[str, object] = {"PETSEG_ENGINE": engine, "PETSEG_PRECISION": precision}
    with TemporaryDirectory() as folder:
        start_one = starter(checkpoints, Path(folder), settings)
        process, url = start_one()
        try:
            watch = Watch(process.pid, every=max(1, requests // _SAMPLES))
            began_at = time.monotonic()
            tally = asyncio.run(soak_one(url, corpus, requests, clients, watch))
            took_s = time.monotonic() - began_at
        finally:
            exit_code = stop(process)
        linger = settings | {"PETSEG_LINGER_S": LINGER_S}
        start_another = starter(checkpoints, Path(folder), linger)
        rolling = roll_two(start_another, corpus, restarts, kills, clients) if restarts or kills else None
    faults = find_faults(tally, watch, exit_code, rolling)
    command = (
        f"python -m tests.soak --requests {requests} --clients {clients} --seed {seed} --photos {photos} "
        f"--restarts {restarts} --kills {kills} --engine {engine} --precision {precision}"
    )
    soak = Soak(command, requests, clients, photos, seed, took_s, tally, watch, exit_code, rolling, faults)
    write_page(page, soak)
    for fault in faults:
        typer.echo(fault, err=True)
    typer.echo(f"{'failed' if faults else 'passed'}: {tally.total} requests in {took_s:.0f} s; figures in {page}")
    if faults:
        raise typer.Exit(1)


async def soak_one(url: str, corpus: Corpus, requests: int, clients: int, watch: Watch) -> Tally:
    """Send the primers, then `requests` cases."""
    tally = Tally()
    began_at = time.monotonic()

    def after_each() -> None:
        watch.count()
        if tally.total % max(1, requests // 20) == 0:
            pace = tally.total / (time.monotonic() - began_at)
            bad = len(tally.wrong) + len(tally.lost)
            typer.echo(f"{tally.total} requests, {pace:.0f} a second, {bad} not as they should be")

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        send = sender(client)
        for index, case in enumerate(corpus.primers):
            await send_and_check(send, case, f"primer {index}", tally)
        await run_load(send, corpus, range(requests), clients, tally, after_each)
    return tally


def starter(checkpoints: Path, folder: Path, settings: Mapping[str, object]) -> Start:
    """Starts servers that log into `folder`."""

    def start_one() -> tuple[Process, str]:
        log = folder / f"server-{uuid.uuid4().hex}.log"
        process, url = start(checkpoints, log, settings)
        try:
            wait_until_ready(process, url, log)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process, url

    return start_one


def roll_two(start_one: Start, corpus: Corpus, restarts: int, kills: int, clients: int) -> Rolling:
    """Restart and kill processes under load."""
    typer.echo(f"{restarts} restarts and {kills} kills under load")
    return asyncio.run(roll(start_one, corpus.for_any_process(), restarts=restarts, kills=kills, clients=clients))


def find_faults(tally: Tally, watch: Watch, exit_code: int, rolling: Rolling | None) -> list[str]:
    """All that was not as it should be, a line each."""
    faults = [*tally.wrong, *tally.lost]
    if exit_code != os.EX_OK:
        faults.append(f"the server ended with {exit_code} after SIGTERM, wanted 0")
    if watch.growth_bytes > MAX_GROWTH_BYTES:
        faults.append(f"memory grew by {watch.growth_bytes:.0f} bytes, wanted at most {MAX_GROWTH_BYTES}")
    if watch.growth_threads > MAX_GROWTH_THREADS:
        faults.append(f"threads grew by {watch.growth_threads:.0f}, wanted at most {MAX_GROWTH_THREADS}")
    if watch.growth_files > MAX_GROWTH_FILES:
        faults.append(f"open files grew by {watch.growth_files:.0f}, wanted at most {MAX_GROWTH_FILES}")
    if rolling is not None:
        faults += [*rolling.tally.wrong, *rolling.faults]
    return faults


if __name__ == "__main__":
    typer.run(main)
