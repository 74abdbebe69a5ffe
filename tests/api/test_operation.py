"""Health on both ports, figures on the operation port alone, and before the models are warm."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from httpx import ASGITransport

from service.operation import create_operation_app
from service.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings() -> Settings:
    return Settings(operation_port=0)


@pytest.fixture
async def operation(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = ASGITransport(app=create_operation_app(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://operation") as client:
        yield client


async def test_health_is_on_both_ports(client: httpx.AsyncClient, operation: httpx.AsyncClient) -> None:
    for each in (client, operation):
        for path in ("/healthz", "/readyz"):
            assert (await each.get(path)).json() == {"status": "ok"}


async def test_the_operation_port_segments_nothing_and_documents_nothing(
    client: httpx.AsyncClient, operation: httpx.AsyncClient
) -> None:
    for path in ("/models", "/docs", "/openapi.json", "/segment/colour"):
        response = await operation.get(path)
        assert response.json()["type"] == "/problems/not-found"


async def test_before_the_start_it_is_alive_and_not_ready(operation: httpx.AsyncClient) -> None:
    assert (await operation.get("/healthz")).status_code == 200
    refused = await operation.get("/readyz")
    assert refused.json()["type"] == "/problems/not-ready"
    assert refused.headers["retry-after"] == "1"


async def test_draining_shows_on_both(client: httpx.AsyncClient, operation: httpx.AsyncClient, app: FastAPI) -> None:
    app.state.service.drain()
    for each in (client, operation):
        assert (await each.get("/readyz")).status_code == 503
