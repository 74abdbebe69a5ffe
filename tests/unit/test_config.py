from pathlib import Path

import pytest

from models.architectures import get_architecture
from training.config import TrainConfig, list_configs, load_config

# SPEC of the study, section 3: architecture -> per stage (loss, optimiser, rate, schedule, batch, epochs, patience).
STUDY = {
    "unet": [("hybrid", "adam", 1e-3, "cosine", 16, 100, 30)],
    "autoencoder": [
        ("", "adam", 5e-4, "constant", 64, 100, 10),
        ("weighted_cross_entropy", "adam", 1e-3, "constant", 64, 200, 10),
    ],
    "clip": [("cross_entropy", "adam", 1e-4, "cosine", 16, 100, 20)],
    "prompt": [("bce", "adam", 2e-4, "cosine", 16, 2000, 10)],
}


@pytest.mark.parametrize("name", STUDY)
def test_recipe_is_the_study(name: str) -> None:
    config = load_config(name)
    assert config.architecture == name
    for stage, (loss, *rest) in zip(config.stages, STUDY[name], strict=True):
        assert stage.loss == loss or stage.objective == "reconstruction"
        assert [
            stage.optimizer,
            stage.learning_rate,
            stage.schedule,
            stage.batch_size,
            stage.epochs,
            stage.patience,
        ] == rest


def test_study_stages_of_the_autoencoder() -> None:
    first, second = load_config("autoencoder").stages
    assert first.objective == "reconstruction"
    assert second.trainable == ("segmentation",)  # the encoder rests


@pytest.mark.parametrize("name", list_configs())
def test_config_goes_there_and_back(name: str) -> None:
    config = load_config(name)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    architecture = config.architecture_config()
    assert type(architecture) is get_architecture(config.architecture).Config


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('architecture = "unet"\nstages = [{}]\nepoch = 3', "recipe.toml: epoch: got 3"),
        ('architecture = "vnet"\nstages = [{}]', "recipe.toml: architecture: got 'vnet'"),
        ('architecture = "unet"', "recipe.toml: stages"),
        (
            'architecture = "unet"\nstages = [{ learning_rate = -1.0 }]',
            r"recipe.toml: stages.0.learning_rate: got -1.0",
        ),
        ('architecture = "unet"\nstages = [{}]\nmodel = { width = 3 }', "recipe.toml: width: got 3"),
        ('architecture = "unet"\nstages = [{ objective = "distillation" }]', "distillation takes a teacher"),
        (
            'architecture = "unet"\nstages = [{ objective = "reconstruction", breed_weight = 1.0 }]',
            "got breed_weight under the objective reconstruction",
        ),
        (
            'architecture = "clip"\nstages = [{ breed_weight = 1.0 }]',
            "got breed_weight for clip, whose encoder is frozen",
        ),
        ("architecture = ", "recipe.toml: not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


def test_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="got config 'vnet', wanted a TOML file or one of autoencoder"):
        load_config("vnet")


def test_smoke_is_laid_over_every_stage(tmp_path: Path) -> None:
    text = """
architecture = "unet"
[[stages]]
name = "one"
teacher = "a.safetensors"
objective = "distillation"
[[stages]]
name = "two"
epochs = 7
[smoke]
model = { image_size = 32 }
stage = { epochs = 1 }
"""
    config = load_config(write(tmp_path, text), smoke=True)
    assert [stage.name for stage in config.stages] == ["one", "two"]
    assert [stage.epochs for stage in config.stages] == [1, 1]
    assert (config.stages[0].teacher, config.stages[0].objective) == (None, "segmentation")
    assert config.architecture_config().image_size == 32
