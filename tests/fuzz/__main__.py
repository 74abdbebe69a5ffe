"""`make fuzz`: the image corpus, then the generated requests, then a page of figures; exit code 1 for any fault."""

from pathlib import Path
from typing import Annotated

import typer

from tests.fuzz.api import run_requests
from tests.fuzz.images import run_corpus
from tests.fuzz.page import render


def main(
    images: Annotated[int, typer.Option(help="Mutated files to send.")] = 4000,
    image_seed: Annotated[int, typer.Option(help="Which corpus.")] = 1,
    requests: Annotated[int, typer.Option(help="Generated requests to send, at least.")] = 20_000,
    request_seed: Annotated[int, typer.Option(help="Which requests.")] = 1,
    page: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
    folder: Annotated[Path, typer.Option(help="For logs, reports, and files that found a fault.")] = Path("runs/fuzz"),
) -> None:
    """Fuzz the service."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = run_corpus(image_seed, images, folder)
    typer.echo(f"{images} files: {len(corpus.faults)} faults, {corpus.took_s:.0f} s")
    generated = run_requests(request_seed, requests, folder)
    typer.echo(f"{generated.requests} requests: {len(generated.faults)} faults, {generated.took_s:.0f} s")
    text = render(corpus, generated)
    if page is not None:
        page.write_text(text, encoding="utf-8")
    else:
        typer.echo(text)
    raise typer.Exit(0 if corpus.is_good and generated.is_good else 1)


typer.run(main)
