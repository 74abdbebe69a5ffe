"""`petseg-train`: from photos to checkpoints and their scores. Also `python -m training`."""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.config import TrainConfig

app = typer.Typer(no_args_is_help=True, help="Builds and measures the checkpoints that petseg serves.")

DEFAULT_DATA = Path("data/oxford-iiit-pet")
DEFAULT_PREPARED = Path("data/prepared")

Data = Annotated[Path, typer.Option(help="Folder in the official Oxford-IIIT Pet layout.")]
Prepared = Annotated[Path, typer.Option(help="Parent folder of the prepared sets.")]
Split = Annotated[str, typer.Option(help="test, trainval, or trainval's train or validation part.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most N photos: every k-th of the list.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
ConfigName = Annotated[str, typer.Argument(help="A recipe's name or a TOML file; `configs` lists them.")]
Smoke = Annotated[bool, typer.Option(help="The recipe's tiny variant, to see that everything runs.")]
Views = Annotated[
    int | None,
    typer.Option(min=1, help="Fixed views of each photo whose features are kept; the recipe's own if not given."),
]
Workers = Annotated[int, typer.Option(help="Processes that load and augment.")]
Accelerator = Annotated[str, typer.Option(help="Lightning Fabric's: auto, cpu, cuda.")]


def load_recipe(name: str, *, smoke: bool, views: int | None) -> "TrainConfig":
    """A recipe, with the features of `views` views of each photo kept where a number is given."""
    from training.config import TrainConfig, load_config

    loaded = load_config(name, smoke=smoke)
    if views is None:
        return loaded
    data = {**loaded.data.model_dump(), "views": views, "cache_features": True}
    return TrainConfig.model_validate({**loaded.model_dump(), "data": data})


def main() -> None:
    """The command line; what the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"petseg-train: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("training", "models"):  # ours: a defect, which wants its trace
            raise
        typer.echo(f"petseg-train: got no {package} here, wanted it to train; pip install 'petseg[train]'", err=True)
        sys.exit(2)


@app.command()
def configs() -> None:
    """List the recipes that ship with the package."""
    from training.config import list_configs, load_config

    for name in list_configs():
        typer.echo(f"{name:24} {load_config(name).summary}")


@app.command()
def download(data: Data = DEFAULT_DATA) -> None:
    """Fetch Oxford-IIIT Pet (800 MB) with torchvision's downloader."""
    from training.official_layout import download as fetch

    typer.echo(f"photos and trimaps are under {fetch(data)}")


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="New folder for a drawn data set in the official layout.")],
    count: Annotated[int, typer.Option(help="Photos.")] = 64,
    image_size: Annotated[int, typer.Option(help="Longer side in pixels.")] = 128,
    seed: int = 0,
) -> None:
    """Draw a small data set, to try everything without a download."""
    from training.synthetic import generate

    typer.echo(f"drew {count} photos under {generate(out, count, image_size, seed)}")


@app.command()
def prepare(
    config: ConfigName,
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    copies: Annotated[int | None, typer.Option(help="Augmented copies beside each photo (the study: 10).")] = None,
) -> None:
    """Prepare the photos for a recipe on disk, once, and say what was skipped; `train` does it too where needed."""
    from training.config import load_config
    from training.train import Run

    loaded = load_config(config)
    if copies is not None:
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"copies": copies})})
    run = Run(Path(config).stem, loaded, data, prepared, out=Path())
    for side in sorted({stage.image_size or loaded.architecture_config().image_size for stage in loaded.stages}):
        folder = run.prepare(side)
        report = json.loads((folder / "report.json").read_text())
        typer.echo(f"{folder}: {report['counts']}, {len(report['skipped'])} skipped, {len(report['noted'])} noted")


@app.command("contact-sheet")
def contact_sheet(
    config: ConfigName,
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("contact-sheet.png"),
    count: Annotated[int, typer.Option(help="Examples.")] = 36,
) -> None:
    """Draw what the model will see: augmented images with their targets and prompts."""
    from training.config import load_config
    from training.contact_sheet import contact_sheet as draw
    from training.train import Run, build_model, open_training_set

    loaded = load_config(config)
    run = Run(Path(config).stem, loaded, data, prepared, out=Path())
    model = build_model(loaded)
    draw(open_training_set(loaded, model, run.prepare(model.config.image_size)), out, count)
    typer.echo(f"wrote {out}")


@app.command()
def backbone(
    config: ConfigName = "petclip",
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an unfinished run there goes on.")] = None,
    smoke: Smoke = False,
) -> None:
    """Train a compact CLIP contrastively on photos and breed prompts, and write it as a frozen backbone."""
    from training.config import find_config
    from training.contrastive import train_backbone
    from training.contrastive_config import read_contrastive_config
    from training.preparation import prepare as prepare_photos

    loaded = read_contrastive_config(find_config(config), smoke)
    run_folder = out or Path("runs") / loaded.name
    folder = prepared / f"pets-{loaded.image_size}-v0.1-s{loaded.seed}"
    prepare_photos(data, folder, loaded.image_size, seed=loaded.seed, splits=("trainval",))
    file = run_folder / f"{loaded.name}.safetensors"
    figures = train_backbone(loaded, folder, file, run_folder)
    typer.echo(f"wrote {file}: {figures}")


@app.command()
def features(
    config: ConfigName,
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    smoke: Smoke = False,
    views: Views = None,
    estimate: Annotated[bool, typer.Option(help="Only say what they take on disk; no weights are loaded.")] = False,
    workers: Workers = 0,
    accelerator: Accelerator = "auto",
) -> None:
    """Keep a frozen encoder's features of a recipe's photos on disk, once; `train` does it too where needed."""
    import torch
    from lightning_fabric import Fabric

    from training.encoding import feature_shapes
    from training.feature_cache import Need
    from training.run_log import RunLog
    from training.train import Run, build_model, cache_features, open_training_set, open_validation_set

    loaded = load_recipe(config, smoke=smoke, views=views)
    if not loaded.data.cache_features:
        raise ValueError(f"got recipe {config}, which keeps no features; give --views")
    fabric = Fabric(accelerator=accelerator, devices=1, precision=loaded.precision)
    run = Run(Path(config).stem, loaded, data, prepared, out=Path(), workers=workers)
    with torch.device("meta" if estimate else "cpu"):
        model = build_model(loaded)
    if not estimate:
        model.to(fabric.device)
    for stage in loaded.stages:
        folder = run.prepare(stage.image_size or model.config.image_size)
        for pets in (
            open_training_set(loaded, model, folder, stage),
            open_validation_set(loaded, model, folder),
        ):
            if estimate:
                row_bytes = feature_shapes(type(model), model.config, pets.image_size).row_bytes
                typer.echo(str(Need(len(pets), pets.views, row_bytes)))
            else:
                cache_features(run, stage, model, pets, fabric, RunLog(run.out))


@app.command()
def train(
    config: ConfigName,
    data: Data = DEFAULT_DATA,
    prepared: Prepared = DEFAULT_PREPARED,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; an unfinished run there goes on.")] = None,
    smoke: Smoke = False,
    views: Views = None,
    begin_after: Annotated[
        Path | None, typer.Option(help="A checkpoint of the recipe's first stages; a new run goes on with the next.")
    ] = None,
    workers: Workers = 0,
    accelerator: Accelerator = "auto",
    devices: Annotated[int, typer.Option(help="GPUs, or CPU processes, on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines; start each with torchrun.")] = 1,
    report: Annotated[bool, typer.Option(help="Write report/ with curves, scores and masks when trained.")] = True,
) -> None:
    """Train a recipe and write its checkpoint; started again after a kill, it goes on."""
    from lightning_fabric import Fabric

    from training.train import Run
    from training.train import train as run_training

    name, loaded = Path(config).stem, load_recipe(config, smoke=smoke, views=views)
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=loaded.precision)
    fabric.launch()
    run = Run(name, loaded, data, prepared, out or Path("runs") / name, workers, begin_after)
    checkpoint = run_training(run, fabric)
    if not fabric.is_global_zero:
        return
    typer.echo(f"wrote {checkpoint}")
    if report:
        from training.report import write_report

        try:
            typer.echo(f"wrote {write_report(checkpoint.parent, data, device=fabric.device)}")
        except FileNotFoundError as error:  # trained from a prepared set whose photos are elsewhere by now
            typer.echo(f"no report: {error}", err=True)


@app.command("report")
def make_report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Data = DEFAULT_DATA,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the run's report/ where left out.")] = None,
    limit: Limit = None,
    device: Device = "cpu",
) -> None:
    """Show what came of a run: curves, scores, confusion, best and worst masks on one page."""
    import torch

    from training.report import write_report

    typer.echo(f"wrote {write_report(run, data, out, limit=limit, device=torch.device(device))}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file.")],
    data: Data = DEFAULT_DATA,
    split: Split = "test",
    protocol: Annotated[str | None, typer.Option(help="One protocol of the model's kind; all where left out.")] = None,
    quick: Annotated[bool, typer.Option(help="The headline protocol alone, without confidence intervals.")] = False,
    limit: Limit = None,
    record: Annotated[bool, typer.Option(help="Write the scores into the checkpoint's card.")] = False,
    record_in: Annotated[
        Path | None, typer.Option(help="Write them into this other checkpoint's card, as those of a variant or stage.")
    ] = None,
    as_served: Annotated[bool, typer.Option(help="Through the engine that the service would choose here.")] = False,
    device: Device = "cpu",
) -> None:
    """Measure a checkpoint at each photo's own size; prints JSON.

    Under both boundary protocols, with 95 % confidence intervals. Text: four prompts and collages; clicks: up to 20.
    """
    import torch

    from models.checkpoint import load_checkpoint, read_card
    from training.evaluate import every_kth, select_records
    from training.measure import as_json, measure, protocol_names
    from training.official_layout import records_fingerprint
    from training.quantize import as_served as served

    if (record or record_in is not None) and limit is not None:
        raise ValueError("got --record with --limit; a card holds scores of whole lists, leave one of the two out")
    loaded = load_checkpoint(checkpoint)
    training = loaded.card.training
    validation_fraction = training.get("data", {}).get("validation_fraction", 0.1)
    records = select_records(data, split, validation_fraction, training.get("seed", 0))
    if limit is not None:
        records = every_kth(records, limit)
    if as_served or loaded.graphs:
        model = served(loaded, device=torch.device(device))
    else:
        model = loaded.model.to(torch.device(device)).to(memory_format=torch.channels_last)
    protocols = [protocol] if protocol else list(protocol_names(model.prompt_kind))[: 1 if quick else None]
    results = measure(model, data, records, protocols, intervals=not quick, device=torch.device(device))
    typer.echo(as_json({"checkpoint": checkpoint.name, "split": split, **results}))
    if record or record_in is not None:
        results = {
            "data": f"{data.resolve().name}, {split} list, fingerprint {records_fingerprint(data, records)[:12]}"
        } | results
    if record:
        # Beside what was measured of the same weights before, perhaps under another protocol.
        record_scores(checkpoint, {split: {**loaded.card.metrics.get(split, {}), **results}})
    if record_in is not None:
        stages = read_card(record_in).metrics.get("stages", {})
        record_scores(record_in, {"stages": {**stages, checkpoint.stem: {split: results}}})


def record_scores(checkpoint: Path, metrics: dict[str, Any]) -> None:
    """Lay `metrics` over those in the checkpoint's card."""
    from models.checkpoint import read_card, update_card

    card = read_card(checkpoint)
    update_card(checkpoint, card.model_copy(update={"metrics": {**card.metrics, **metrics}}))


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file.")],
    out: Annotated[Path, typer.Option(help="File to write, such as unet-int8.safetensors.")],
    data: Data = DEFAULT_DATA,
    photos: Annotated[int, typer.Option(min=16, help="Training photos that set the integers' ranges.")] = 128,
    split: Annotated[
        str, typer.Option(help="What the loss is measured on; test for the card to publish.")
    ] = "validation",
    limit: Limit = None,
    max_loss: Annotated[float, typer.Option(help="Points of mean IoU that may be lost; more writes no file.")] = 0.3,
) -> None:
    """Turn a checkpoint into 8-bit integers for OpenVINO: calibrated, measured, the score in its card."""
    from models.checkpoint import load_checkpoint, update_card
    from training.evaluate import every_kth, select_records
    from training.official_layout import records_fingerprint
    from training.quantize import measure_loss
    from training.quantize import quantize as make

    if out.exists() and out.samefile(checkpoint):
        raise ValueError(f"got --out {out}, the checkpoint itself; wanted another file, its source stays as it is")
    source = load_checkpoint(checkpoint)
    training = source.card.training
    fraction, seed = training.get("data", {}).get("validation_fraction", 0.1), training.get("seed", 0)
    calibration = every_kth(select_records(data, "train", fraction, seed), photos)
    records = select_records(data, split, fraction, seed)
    records = records if limit is None else every_kth(records, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Measured in a folder of its own: a server that watches the folder of `out` must not take up what may be refused,
    # and a refusal leaves an earlier file there as it was.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as unmeasured:
        candidate = Path(unmeasured) / out.name
        made = make(source, data, calibration, candidate)
        loss = measure_loss(load_checkpoint(checkpoint), made, data, records)
        said = f"mean IoU {loss.before:.4f} -> {loss.after:.4f} ({loss.protocol}, {len(records)} photos of {split})"
        if loss.points > max_loss:
            raise ValueError(f"{checkpoint}: got {said}, wanted a loss of at most {max_loss} points; try more --photos")
        measured = {
            "data": f"{data.resolve().name}, {split} list, fingerprint {records_fingerprint(data, records)[:12]}",
            "mean_iou_before": loss.before,
            **loss.results,
        }
        update_card(candidate, made.card.model_copy(update={"metrics": {split: measured}}))
        candidate.replace(out)
    typer.echo(f"wrote {out}: {said}, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def robustness(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint files.")],
    data: Data = DEFAULT_DATA,
    out: Annotated[Path, typer.Option(help="Folder for the tables, curves and strips.")] = Path("robustness"),
    split: Split = "test",
    limit: Limit = None,
    example: Annotated[str | None, typer.Option(help="Photo of the strips; the largest where left out.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="An earlier robustness.json: its other models are shown as they were.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Score checkpoints on photos distorted in eight ways at five strengths: table, curves, example strips."""
    import torch

    from models.checkpoint import load_checkpoint
    from training import robustness as rob

    loaded = [load_checkpoint(path) for path in checkpoints]
    if len({checkpoint.name for checkpoint in loaded}) < len(loaded):
        raise ValueError(f"got {', '.join(map(str, checkpoints))}, wanted each name once")
    records = rob.common_records(loaded, data, split, limit)
    # Found before the hours of measuring: a mistyped name is said at once.
    shown = rob.find_record(data, rob.common_records(loaded, data, split) if example else records, example)
    earlier = rob.read_tables(beside, split, len(records)) if beside is not None else []
    on = torch.device(device)
    kept = [each for each in earlier if each.model not in {checkpoint.name for checkpoint in loaded}]
    results = kept + [rob.measure(checkpoint, data, records, device=on) for checkpoint in loaded]
    rob.write_tables(results, split, out)
    rob.draw_curves(results, out)
    for checkpoint in loaded:
        rob.draw_strips(checkpoint, data, shown, out / f"{checkpoint.name}-strips.png", on)
    for result in results:
        summary = result.summary()
        typer.echo(f"{result.model}: clean {summary['clean']:.3f}, corrupted {summary['corrupted']:.3f}")
    typer.echo(f"wrote {out}")


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder of checkpoints.")],
    out: Annotated[Path, typer.Option(help="Markdown page to write.")] = Path("docs/comparison.md"),
    robustness: Annotated[Path | None, typer.Option(help="A robustness.json to show as well.")] = None,
    readme: Annotated[
        list[Path] | None, typer.Option(help="Documents whose table is replaced, between its markers.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the timed passes; torch's own choice.")] = None,
) -> None:
    """Write all models side by side: quality from their cards, robustness, sizes, latency, and the study's rows."""
    import torch

    from training.comparison import compare as measure
    from training.comparison import write_page

    if threads is not None:
        torch.set_num_threads(threads)
    write_page(measure(folder), out, robustness=robustness, readmes=readme or [])
    typer.echo(f"wrote {out}")
