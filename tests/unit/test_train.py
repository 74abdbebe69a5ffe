"""The loop on drawn photos: stages, early stopping, resume after a kill, accumulation, two processes."""

import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from models.checkpoint import load_checkpoint
from models.prompts import PromptKind
from training.config import StageConfig, TrainConfig, load_config
from training.train import (
    Run,
    ShuffledOrder,
    build_model,
    build_optimizer,
    set_learning_rate,
    set_modes,
    train,
    trainable_parts,
)

TINY_MODEL = {"image_size": 32, "widths": [4, 8]}
TINY = {
    "architecture": "unet",
    "model": TINY_MODEL,
    "data": {"validation_fraction": 0.25},
    "stages": [{"epochs": 3, "batch_size": 4, "ema_decay": 0.9}],
}


def tiny(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({**TINY, **changes})


def stage(**changes: object) -> list[dict[str, object]]:
    return [{"epochs": 3, "batch_size": 4, **changes}]


@pytest.fixture
def run(raw_pets: Path, tmp_path: Path) -> Run:
    return Run("tiny", tiny(), raw_pets, tmp_path / "prepared", tmp_path / "out")


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def log_of(run: Run) -> list[dict[str, str]]:
    with (run.out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_a_checkpoint_with_its_card(run: Run) -> None:
    checkpoint = load_checkpoint(train(run, fabric()))
    card = checkpoint.card
    assert card.architecture == "unet"
    assert card.training == run.config.model_dump(mode="json")
    assert card.data["train"] == 18
    assert card.data["validation"] == 6
    assert card.seed == 0
    best = max(float(row["mean_iou"]) for row in log_of(run))
    assert card.metrics["validation"]["mean_iou"] == pytest.approx(best, abs=1e-4)
    assert [row["epoch"] for row in log_of(run)] == ["1", "2", "3"]
    assert list(run.out.glob("events.out.tfevents.*"))


class KilledError(Exception):
    """Stands for a SIGKILL between two epochs."""


def test_a_killed_run_resumes_to_the_same_curve_and_weights(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = replace(run, out=run.out / "unbroken")
    whole = load_checkpoint(train(unbroken, fabric()))

    broken = replace(run, out=run.out / "broken")
    from training.run_state import RunState

    save = RunState.save

    def save_and_die(self: RunState, *args: object, **kwargs: object) -> None:
        save(self, *args, **kwargs)  # type: ignore[arg-type]
        if self.progress.epoch == 1:
            raise KilledError

    monkeypatch.setattr(RunState, "save", save_and_die)
    with pytest.raises(KilledError):
        train(broken, fabric())
    monkeypatch.setattr(RunState, "save", save)
    resumed = load_checkpoint(train(broken, fabric()))

    assert log_of(broken) == log_of(unbroken)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_finished_run_is_not_trained_again(run: Run) -> None:
    first = train(run, fabric()).read_bytes()
    assert train(run, fabric()).read_bytes() == first
    assert len(log_of(run)) == 3


def test_another_config_does_not_resume(run: Run) -> None:
    train(run, fabric())
    with pytest.raises(ValueError, match="another config"):
        train(replace(run, config=tiny(seed=1)), fabric())


def test_stages_may_be_added_to_a_finished_run(run: Run) -> None:
    short = replace(run, config=tiny(stages=stage(name="first")))
    train(short, fabric())
    added = [*stage(name="first"), *stage(name="second", epochs=1, augmentation={"flip_probability": 1.0})]
    train(replace(run, config=tiny(stages=added)), fabric())
    assert [row["stage"] for row in log_of(run)] == ["first", "first", "first", "second"]
    with pytest.raises(ValueError, match="another config"):
        train(replace(run, config=tiny(stages=stage(name="first", learning_rate=0.5))), fabric())


def test_a_run_begins_after_the_stages_of_a_checkpoint(run: Run) -> None:
    first = stage(name="first", epochs=1, image_size=32)
    earlier = train(replace(run, config=tiny(stages=stage(name="first", epochs=1))), fabric())
    # The network may have grown by a whole part, and a size that was the network's own may be spelled out.
    grown = tiny(
        model={**TINY_MODEL, "vote": True}, stages=[*first, *stage(name="second", epochs=1, learning_rate=1e-30)]
    )
    later = replace(run, config=grown, out=run.out / "later", begin_after=earlier)
    weights = load_checkpoint(train(later, fabric())).model.state_dict()
    assert [row["stage"] for row in log_of(later)] == ["second"]
    for name, tensor in load_checkpoint(earlier).model.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            assert torch.equal(weights[name], tensor), name
    assert not weights["vote.weight"].any()
    train(later, fabric())  # what is finished stays so
    assert len(log_of(later)) == 1


FIRST, SECOND = stage(name="first", epochs=1), stage(name="second", epochs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [*stage(name="first", epochs=1, learning_rate=0.5), *SECOND]}, "wanted an unet after some of the"),
        ({"stages": [*stage(name="other", epochs=1), *SECOND]}, "after the stages first; wanted"),
        ({"stages": FIRST}, "after some of the first stages"),  # nothing would be left to train
        ({"seed": 1}, "under its seed"),
        ({"data": {"validation_fraction": 0.5}}, "under its seed and validation_fraction"),
        ({"architecture": "autoencoder", "model": {"image_size": 32}}, "wanted an autoencoder"),
        ({"model": {"image_size": 32, "widths": [4, 8, 8]}}, "do not fit this recipe's network in down.2"),
    ],
)
def test_a_run_does_not_begin_after_another_recipe(run: Run, changes: dict[str, object], message: str) -> None:
    earlier = train(replace(run, config=tiny(stages=FIRST)), fabric())
    config = tiny(**{"stages": [*FIRST, *SECOND], **changes})
    with pytest.raises(ValueError, match=message):
        train(replace(run, config=config, out=run.out / "other", begin_after=earlier), fabric())


def test_each_stage_leaves_its_checkpoint(run: Run) -> None:
    two = replace(run, config=tiny(stages=[*stage(name="first", epochs=1), *stage(name="second", epochs=1)]))
    last = train(two, fabric())
    first = load_checkpoint(run.out / "tiny-first.safetensors")
    assert first.digest != load_checkpoint(last).digest
    assert first.card.metrics["validation"]["mean_iou"] == round(float(log_of(two)[0]["mean_iou"]), 4)
    # It says which stages it has seen, so that a run can begin after it.
    assert [each["name"] for each in first.card.training["stages"]] == ["first"]
    again = replace(two, out=run.out / "again", begin_after=run.out / "tiny-first.safetensors")
    train(again, fabric())
    assert [row["stage"] for row in log_of(again)] == ["second"]


def test_a_stage_may_be_of_another_size_than_the_network(run: Run) -> None:
    two = [*stage(name="small", epochs=1, image_size=16), *stage(name="whole", epochs=1)]
    train(replace(run, config=tiny(stages=two)), fabric())
    assert load_checkpoint(run.out / "tiny-small.safetensors").card.data["train"] == 18


def test_a_stage_augments_in_its_own_way(run: Run) -> None:
    def first_loss(name: str, **changes: object) -> str:
        config = tiny(stages=stage(epochs=1, **changes))
        this = replace(run, config=config, out=run.out / name)
        train(this, fabric())
        return log_of(this)[0]["loss"]

    assert first_loss("default", augmentation={}) == first_loss("none")
    assert first_loss("dark", augmentation={"jitter_brightness": 1.0}) != first_loss("plain")
    assert first_loss("alone", collage_probability=0.0) == first_loss("plain")
    assert first_loss("scenes", collage_probability=1.0) != first_loss("plain")


def test_patience_ends_a_stage(run: Run) -> None:
    # At a vanishing rate no epoch is better than the first.
    stages = stage(epochs=9, patience=2, learning_rate=1e-30)
    still = replace(run, config=tiny(stages=stages))
    train(still, fabric())
    assert len(log_of(still)) == 3


@pytest.mark.parametrize(
    "recipe",
    [
        "autoencoder",
        "autoencoder-compact",
        "autoencoder-compact-frozen",
        "clip",
        "clip-compact",
        "clip-vitl14",
        "prompt",
        "prompt-compact",
        "prompt-vitl14",
        "timm_unet-compact",
    ],
)
def test_every_recipe_trains_in_its_smoke_variant(recipe: str, raw_pets: Path, tmp_path: Path) -> None:
    config = load_config(recipe, smoke=True)
    run = Run(recipe, config, raw_pets, tmp_path / "prepared", tmp_path / "out")
    checkpoint = load_checkpoint(train(run, fabric()))
    assert checkpoint.card.architecture == config.architecture
    assert [row["stage"] for row in log_of(run)] == [stage.name for stage in config.stages]


def test_distillation_takes_a_teacher(run: Run) -> None:
    teacher = train(run, fabric())
    stages = stage(objective="distillation", teacher=str(teacher), image_size=16, epochs=1)
    taught = replace(run, config=tiny(stages=stages), out=run.out / "taught")
    assert load_checkpoint(train(taught, fabric())).card.metrics["validation"]["mean_iou"] > 0


def test_breeds_are_learned_and_their_names_not_kept(run: Run) -> None:
    # At a vanishing rate for all but the head that names them, only it can have lowered the loss.
    resting = {"down": 1e-30, "up": 1e-30, "head": 1e-30}
    plan = {"epochs": 4, "learning_rate": 0.1, "learning_rate_factors": resting, "augmentation": {}}
    named = replace(run, config=tiny(stages=stage(breed_weight=1.0, **plan)))
    checkpoint = load_checkpoint(train(named, fabric()))
    assert not any("breed" in key for key in checkpoint.model.state_dict())
    losses = [float(row["loss"]) for row in log_of(named)]
    assert losses[-1] < losses[0] - 0.3
    # A later stage that names none leaves it alone, and one that goes on takes it up again from the state.
    more = [*stage(breed_weight=1.0, **plan), *stage(name="second", epochs=1)]
    train(replace(named, config=tiny(stages=more)), fabric())
    assert [row["stage"] for row in log_of(named)][-1] == "second"


def test_accumulated_batches_equal_one_large_batch(run: Run) -> None:
    # Without batch statistics the two are the same sum, so use a loss that is a mean over examples of equal size.
    common = {"epochs": 1, "optimizer": "adam", "loss": "mse", "trainable": ["head"]}
    plain = tiny(augmentation={"elastic_probability": 0.0}, stages=stage(**{**common, "batch_size": 8}))
    split = tiny(
        augmentation={"elastic_probability": 0.0}, stages=stage(**{**common, "batch_size": 4, "accumulate": 2})
    )
    one = load_checkpoint(train(replace(run, config=plain, out=run.out / "one"), fabric()))
    two = load_checkpoint(train(replace(run, config=split, out=run.out / "two"), fabric()))
    torch.testing.assert_close(
        one.model.get_submodule("head").weight, two.model.get_submodule("head").weight, rtol=1e-3, atol=1e-3
    )


def test_resting_parts_stay_as_they_are() -> None:
    model = build_model(load_config("autoencoder", smoke=True))
    second = StageConfig(trainable=("segmentation",))
    assert trainable_parts(model, second) == {"segmentation"}
    optimizer = build_optimizer(second, model)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learning == {id(p) for p in model.get_submodule("segmentation").parameters()}
    set_modes(model, second)
    assert model.get_submodule("segmentation").training
    assert not model.get_submodule("encoder").training
    with pytest.raises(ValueError, match=r"got submodules \['decoder'\]"):
        trainable_parts(model, StageConfig(trainable=("decoder",)))


def test_frozen_parts_are_never_trained() -> None:
    model = build_model(load_config("clip-compact", smoke=True))
    assert model.prompt_kind is PromptKind.TEXT
    build_optimizer(StageConfig(), model)
    assert not any(p.requires_grad for p in model.get_submodule("backbone").parameters())
    set_modes(model, StageConfig())
    assert not any(m.training for m in model.get_submodule("backbone").modules())


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    plan = StageConfig(learning_rate=1.0, schedule="cosine", warmup_steps=4)
    optimizer = torch.optim.SGD([{"params": [parameter], "factor": 0.5}], lr=1.0)
    rates = []
    for step in range(104):
        set_learning_rate(optimizer, plan, step, 104)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[4] == pytest.approx(0.5)
    assert rates[54] == pytest.approx(0.25)
    assert rates[-1] < 1e-3


def test_processes_share_an_epoch_without_overlap() -> None:
    orders = [ShuffledOrder(21, 2, rank, 4) for rank in range(2)]
    for order in orders:
        order.seed = 5
    first, second = (list(order) for order in orders)
    assert len(first) == len(second) == len(orders[0]) == 8  # whole batches of each process
    assert not set(first) & set(second)
    orders[0].seed = 6
    assert list(orders[0]) != first


def test_two_processes_train_as_one(run: Run, tmp_path: Path) -> None:
    """Two processes of batch 2 against one of batch 4: the same examples a step, so nearly the same weights."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from lightning_fabric import Fabric\n"
        "from training.config import load_config\n"
        "from training.train import Run, train\n"
        "recipe, data, prepared, out, processes = sys.argv[1:]\n"
        "fabric = Fabric(accelerator='cpu', devices=int(processes), strategy='ddp' if int(processes) > 1 else 'auto')\n"
        "fabric.launch()\n"
        "train(Run('tiny', load_config(recipe), Path(data), Path(prepared), Path(out)), fabric)\n"
    )
    template = """
architecture = "unet"
model = {{ image_size = 32, widths = [4, 8], dropout = 0.0 }}
data = {{ validation_fraction = 0.25 }}
half_precision = false
[[stages]]
loss = "mse"
breed_weight = 1.0
trainable = ["head"]
epochs = 2
batch_size = {batch_size}
"""
    weights = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for processes in (1, 2):
        recipe = tmp_path / f"recipe{processes}.toml"
        recipe.write_text(template.format(batch_size=4 // processes))
        out = tmp_path / f"processes{processes}"
        arguments = [str(recipe), str(run.data), str(tmp_path / "prepared"), str(out), str(processes)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": str(port),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        subprocess.run([sys.executable, str(script), *arguments], check=True, timeout=240, env=environment)
        own = load_checkpoint(out / "tiny.safetensors").model.state_dict()
        head = {"breed_head.weight": torch.load(out / "state.ckpt", weights_only=True)["model"]["breed_head.weight"]}
        weights.append(own | head)
    for name in ("head.weight", "breed_head.weight"):
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)
