"""Every recipe's network, at its [smoke] sizes, saved, loaded and served: no model is a special case."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from httpx import ASGITransport
from torch.utils.data import default_collate

from models.architectures import get_architecture
from models.checkpoint import ModelCard, backbone_digest, save_checkpoint
from models.letterbox import Letterbox, decode_image, image_tensor
from models.prompts import PointPrompt, Prompt, PromptKind, TextPrompt
from service.app import create_app
from service.settings import Settings
from tests.fakes import encode, picture, read
from training.config import list_configs, load_config

pytestmark = pytest.mark.anyio

RECIPES = list_configs()
PROMPTED = [
    recipe
    for recipe in RECIPES
    if get_architecture(load_config(recipe).architecture).prompt_kind is not PromptKind.NONE
]

FIELDS: dict[PromptKind, dict[str, str]] = {
    PromptKind.NONE: {},
    PromptKind.TEXT: {"text": "a photo of a Siamese cat"},
    PromptKind.POINTS: {"points": "[[20, 20, 1], [50, 10, 0]]"},
}
PROMPTS: dict[PromptKind, Prompt] = {
    PromptKind.NONE: None,
    PromptKind.TEXT: TextPrompt("a photo of a Siamese cat"),
    PromptKind.POINTS: PointPrompt(((20.0, 20.0), (50.0, 10.0)), (1, 0)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every")
    for recipe in RECIPES:
        config = load_config(recipe, smoke=True)
        torch.manual_seed(0)
        model = get_architecture(config.architecture)(config.architecture_config())
        card = ModelCard(
            architecture=config.architecture,
            config=model.config.model_dump(mode="json"),
            backbone_digest=backbone_digest(model),
        )
        save_checkpoint(folder / f"{recipe}.safetensors", model, card)
    return folder


@pytest.fixture(scope="module")
def app(folder: Path) -> FastAPI:
    return create_app(Settings(checkpoints=folder, image_threads=2))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client,
    ):
        yield client


async def ask(client: httpx.AsyncClient, recipe: str, upload: bytes | None, **fields: Any) -> httpx.Response:
    files = {"image": upload} if upload is not None else None
    response = await client.post(f"/segment/{recipe}", files=files, data=fields)
    assert response.status_code == 200, response.text
    return response


def agreement(one: bytes, other: bytes) -> float:
    return float((np.asarray(read(one)) == np.asarray(read(other))).mean())


@pytest.mark.parametrize("recipe", RECIPES)
async def test_the_served_mask_is_the_plain_models(client: httpx.AsyncClient, app: FastAPI, recipe: str) -> None:
    model = app.state.service.pipelines[recipe].predictor.model
    upload = encode(picture(90, 50))
    mask = np.asarray(read((await ask(client, recipe, upload, **FIELDS[model.prompt_kind])).content))
    photo, size = decode_image(upload)
    letterbox = Letterbox(size, model.config.image_size)
    prompt = model.prompt_tensors(PROMPTS[model.prompt_kind], letterbox)
    with torch.inference_mode():
        logits = model(image_tensor(letterbox.apply_image(photo))[None], default_collate([prompt]))[0]
    assert mask.shape == (50, 90)
    assert (mask == letterbox.restore_mask(logits)).mean() > 0.99


@pytest.mark.parametrize("recipe", RECIPES)
async def test_company_does_not_change_a_mask(client: httpx.AsyncClient, app: FastAPI, recipe: str) -> None:
    fields = FIELDS[app.state.service.pipelines[recipe].predictor.model.prompt_kind]
    uploads = [encode(picture(60 + 5 * seed, 40, seed)) for seed in range(5)]
    alone = [(await ask(client, recipe, upload, **fields)).content for upload in uploads]
    for pipeline in app.state.service.pipelines.values():
        pipeline.predictor.cache.clear()
    together = await asyncio.gather(*(ask(client, recipe, upload, **fields) for upload in uploads))
    for one, response in zip(alone, together, strict=True):
        assert agreement(one, response.content) > 0.99


@pytest.mark.parametrize("recipe", PROMPTED)
async def test_a_cached_photo_gives_the_same_mask(client: httpx.AsyncClient, app: FastAPI, recipe: str) -> None:
    predictor = app.state.service.pipelines[recipe].predictor
    fields = FIELDS[predictor.model.prompt_kind]
    predictor.cache.clear()
    fresh = await ask(client, recipe, encode(picture(80, 60)), **fields)
    cached = await ask(client, recipe, None, image_id=fresh.headers["x-image-id"], **fields)
    assert agreement(fresh.content, cached.content) > 0.999
    assert "encode;dur=0.000" in cached.headers["server-timing"]


async def test_a_text_model_names_its_own_prompt(client: httpx.AsyncClient, app: FastAPI) -> None:
    for recipe, pipeline in app.state.service.pipelines.items():
        model = pipeline.predictor.model
        if model.prompt_kind is PromptKind.TEXT and not model.prompt_required:
            prompt = (await ask(client, recipe, encode(picture()), output="rle")).json()["prompt"]
            assert prompt["chosen_by"] == "model"
            assert prompt["text"]
