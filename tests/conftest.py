"""What several tests need: drawn data sets, a tiny real checkpoint, and the app with small models."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from fastapi import FastAPI
from httpx import ASGITransport

from models.architectures import get_architecture
from models.checkpoint import Checkpoint, ModelCard, load_checkpoint, save_checkpoint
from service.app import create_app
from service.settings import Settings
from tests.fakes import BrokenModel, ClickModel, ColourModel, StuckModel, TextModel, fake_checkpoint
from training.preparation import prepare
from training.synthetic import generate


@pytest.fixture(scope="session")
def raw_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 drawn photos of 64 px in the official layout: 24 in trainval.txt, 12 in test.txt. Not to be written to."""
    return generate(tmp_path_factory.mktemp("pets") / "raw", count=36, image_size=64)


@pytest.fixture(scope="session")
def prepared_pets(raw_pets: Path) -> Path:
    """The same prepared at 48 px with a quarter of trainval as validation. Not to be written to."""
    folder = raw_pets.parent / "prepared"
    prepare(raw_pets, folder, 48, validation_fraction=0.25)
    return folder


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no PETSEG_* variables but these: the plain networks, unless a test is about another engine."""
    for name in os.environ:
        if name.startswith("PETSEG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PETSEG_ENGINE", "torch")
    monkeypatch.setenv("PETSEG_PRECISION", "fp32")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The command line sets up logging for its whole process."""
    root, requests = logging.getLogger(), logging.getLogger("petseg.requests")
    before = root.handlers[:], root.level, requests.level
    yield
    root.handlers[:], root.level, requests.level = before


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with unet.safetensors: random weights whose masks hold all three classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    architecture = get_architecture("unet")
    config = architecture.Config.model_validate({"image_size": 32, "widths": [4, 8, 16]})
    torch.manual_seed(3)
    model = architecture(config)
    with torch.no_grad():
        model.head.weight.mul_(20)  # type: ignore[union-attr, operator]
    card = ModelCard(architecture="unet", config=config.model_dump(mode="json"), summary="A tiny UNet.")
    save_checkpoint(folder / "unet.safetensors", model, card)
    return folder


@pytest.fixture
def unet(checkpoint_folder: Path) -> Checkpoint:
    """Loaded anew for each test: an engine folds the network that it takes over."""
    return load_checkpoint(checkpoint_folder / "unet.safetensors")


@pytest.fixture
def settings() -> Settings:
    """Settings of the app under test; a module may override the fixture."""
    return Settings(streams=1, image_threads=2, max_batch_size=8)


@pytest.fixture
def checkpoints(unet: Checkpoint) -> list[Checkpoint]:
    fakes = [
        fake_checkpoint(ColourModel, "colour"),
        fake_checkpoint(ClickModel, "click"),
        fake_checkpoint(TextModel, "text"),
        fake_checkpoint(BrokenModel, "broken"),
        fake_checkpoint(StuckModel, "stuck"),
    ]
    return [unet, *fakes]


@pytest.fixture
def app(settings: Settings, checkpoints: list[Checkpoint]) -> FastAPI:
    return create_app(settings, checkpoints)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running app."""
    async with app.router.lifespan_context(app):
        transport = ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
