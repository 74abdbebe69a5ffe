"""The service without a server: what would bound strangers does not bound the one who runs the command."""

from pathlib import Path

import pytest

from models.checkpoint import CheckpointError
from service.api_keys import new_key
from service.in_process import in_process_client
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio


async def test_one_model_answers_without_a_key_or_a_rate(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(tmp_path / "keys.toml", "lab")
    for name, value in {
        "PETSEG_CHECKPOINTS": checkpoint_folder,
        "PETSEG_KEYS": tmp_path / "keys.toml",
        "PETSEG_REQUESTS_PER_MINUTE": 1,
        "PETSEG_ENGINE": "torch",
    }.items():
        monkeypatch.setenv(name, str(value))
    async with in_process_client("unet") as client:
        assert [model.name for model in await client.models()] == ["unet"]
        for _ in range(3):
            assert (await client.mask("unet", encode(picture(90, 50)))).shape == (50, 90)


async def test_a_model_that_is_not_there_is_named(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETSEG_CHECKPOINTS", str(checkpoint_folder))
    with pytest.raises(CheckpointError, match="got model 'unte', wanted one of: unet"):
        async with in_process_client("unte"):
            pass
