"""`petseg-train`: prepare, train, evaluate. Also `python -m training`."""

from pathlib import Path
from typing import Annotated

import typer
from lightning_fabric import Fabric

from training.config import list_configs, load_config
from training.train import Run
from training.train import train as run_training

app = typer.Typer(no_args_is_help=True, help="Builds and measures the checkpoints that petseg serves.")

DEFAULT_DATA = Path("data/oxford-iiit-pet")
DEFAULT_PREPARED = Path("data/prepared")

Data = Annotated[Path, typer.Option(help="Folder in the official Oxford-IIIT Pet layout.")]
Prepared = Annotated[Path, typer.Option(help="Parent folder of the prepared sets.")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A recipe's name or a TOML file; see `petseg-train configs`.")],
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an unfinished run there goes on.")] = None,
    smoke: Annotated[bool, typer.Option(help="The recipe's tiny variant, to see that everything runs.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that load and augment.")] = 0,
    accelerator: Annotated[str, typer.Option(help="Lightning Fabric's: auto, cpu, cuda.")] = "auto",
    devices: Annotated[str, typer.Option(help="How many devices, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="How many machines; start each with torchrun.")] = 1,
) -> None:
    """Train a recipe and write its checkpoint; started again after a kill, it goes on."""
    name = Path(config).stem
    loaded = load_config(config, smoke=smoke)
    if accelerator in ("auto", "cpu") and devices == "auto":
        devices = "1" if _is_cpu(accelerator) else devices
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=loaded.precision)
    fabric.launch()
    run = Run(name, loaded, data, prepared, out or Path("runs") / name, workers)
    checkpoint = run_training(run, fabric)
    if fabric.is_global_zero:
        typer.echo(f"wrote {checkpoint}")


@app.command()
def configs() -> None:
    """List the recipes that ship with the package."""
    for name in list_configs():
        typer.echo(f"{name:24} {load_config(name).summary}")


def _is_cpu(accelerator: str) -> bool:
    import torch

    return accelerator == "cpu" or not torch.cuda.is_available()
