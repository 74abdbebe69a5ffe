"""Everything but segmenting: the list of models, cards, health, documentation."""

import httpx
import pytest
from fastapi import FastAPI

from models.checkpoint import Checkpoint
from service.app import create_app
from service.settings import Settings

pytestmark = pytest.mark.anyio


async def test_models_say_what_they_take(client: httpx.AsyncClient, unet: Checkpoint) -> None:
    models = {model["name"]: model for model in (await client.get("/models")).json()["models"]}
    assert list(models) == ["unet", "colour", "click", "text", "broken", "stuck"]
    assert models["unet"] == {
        "name": "unet",
        "architecture": "unet",
        "summary": "A tiny UNet.",
        "prompt": {"kind": "none", "is_required": False},
        "class_names": ["background", "cat", "dog"],
        "image_size": 32,
        "checkpoint": f"sha256:{unet.digest}",
        "engine": "torch fp32",
        "keeps_images": False,
        "url": "/segment/unet",
    }
    assert models["click"]["prompt"] == {"kind": "points", "is_required": True}
    assert models["text"]["prompt"] == {"kind": "text", "is_required": False}
    assert models["click"]["keeps_images"] and models["text"]["keeps_images"]


async def test_one_model_with_its_card(client: httpx.AsyncClient, unet: Checkpoint) -> None:
    listed = (await client.get("/models")).json()["models"][0]
    model = (await client.get("/models/unet")).json()
    assert model.pop("card") == unet.card.model_dump(mode="json")
    assert model == listed


async def test_health_and_readiness(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_only_when_warm(unet: Checkpoint) -> None:
    app = create_app(Settings(), [unet])
    async with app.router.lifespan_context(app):
        assert app.state.service.is_ready
    assert not app.state.service.is_ready


async def test_documentation(client: httpx.AsyncClient, app: FastAPI) -> None:
    assert "swagger" in (await client.get("/docs")).text
    assert (await client.get("/openapi.json")).json() == app.openapi()


class TestNoCache:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(cache_bytes=0)

    async def test_without_a_cache_no_model_keeps_images(self, client: httpx.AsyncClient) -> None:
        models = (await client.get("/models")).json()["models"]
        assert not any(model["keeps_images"] for model in models)
