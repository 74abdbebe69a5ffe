"""Who may call, how often, how many at once, how slowly and with how many bytes: each limit, and one past it."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from models.checkpoint import Checkpoint
from service.admission import Admission, address_of
from service.api_keys import new_key
from service.app import create_app
from service.logs import JsonFormatter
from service.settings import Settings, SettingsError
from tests.fakes import StuckModel, asgi_scope, encode, picture

pytestmark = pytest.mark.anyio

PHOTO = encode(picture())


async def post(client: httpx.AsyncClient, model: str = "colour", **headers: str) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": PHOTO}, headers=headers)


def slug(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]
    kind: str = response.json()["type"]
    return kind.removeprefix("/problems/")


def gate(app: FastAPI) -> Admission:
    """The admission in the running app's stack of middleware, which its first request builds."""
    layer: Any = app.middleware_stack or app.build_middleware_stack()
    while not isinstance(layer, Admission):
        layer = layer.app
    return layer


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_true():  # noqa: ASYNC110 - what runs in the app's threads has no event to wait for
            await asyncio.sleep(0.005)


class TestKeys:
    @pytest.fixture
    def secrets(self, tmp_path: Path) -> dict[str, str]:
        names: dict[str, int | None] = {"lab": None, "shop": 2}
        return {
            name: new_key(tmp_path / "keys.toml", name, requests_per_minute=rate)[0] for name, rate in names.items()
        }

    @pytest.fixture
    def settings(self, secrets: dict[str, str], tmp_path: Path) -> Settings:
        return Settings(streams=1, image_threads=1, keys=tmp_path / "keys.toml")

    async def test_a_key_opens_in_either_header(self, client: httpx.AsyncClient, secrets: dict[str, str]) -> None:
        password = base64.b64encode(f"anyone:{secrets['lab']}".encode()).decode()
        for headers in (
            {"authorization": f"Bearer {secrets['lab']}"},
            {"authorization": f"bearer  {secrets['lab']} "},
            {"x-api-key": secrets["lab"]},
            {"authorization": f"Basic {password}"},
        ):
            assert (await post(client, **headers)).status_code == 200

    @pytest.mark.parametrize(
        ("headers", "said"),
        [
            ({}, "got no API key, wanted a key as Authorization: Bearer KEY or X-API-Key: KEY"),
            ({"authorization": "Basic bGFiOmxhYg=="}, "got an API key that is not known"),
            ({"authorization": "Basic bGFi"}, "got no API key"),
            ({"authorization": "Basic /w=="}, "got no API key"),
            ({"authorization": "Basic !"}, "got no API key"),
            ({"authorization": "Bearer"}, "got no API key"),
            ({"authorization": "Bearer petseg_wrong"}, "got an API key that is not known (any more)"),
            ({"x-api-key": "petseg_wr\u00f6ng".encode("latin-1")}, "got an API key that is not known"),
        ],
    )
    async def test_without_one_nothing_opens(
        self, client: httpx.AsyncClient, headers: dict[str, Any], said: str
    ) -> None:
        for method, path in (
            ("POST", "/segment/colour"),
            ("POST", "/segment/colour/batch"),
            ("GET", "/models"),
            ("GET", "/models/colour"),
            ("GET", "/metrics"),
            ("GET", "/nope"),
        ):
            response = await client.request(method, path, headers=headers)
            assert slug(response) == "unauthorized"
            assert response.headers["www-authenticate"] == 'Bearer realm="petseg"'
            assert said in response.json()["detail"]

    async def test_health_and_the_reference_need_none(self, client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz", "/docs", "/docs/start.js", "/openapi.json", "/problems/unauthorized"):
            assert (await client.get(path)).status_code == 200

    async def test_no_body_is_read_before_the_key(self, app: FastAPI, client: httpx.AsyncClient) -> None:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            raise AssertionError("the body was read")

        async def send(message: Any) -> None:
            sent.append(message)

        await app(asgi_scope("/segment/colour", "image/png"), receive, send)
        assert sent[0]["status"] == 401

    async def test_a_key_has_its_own_quota(self, client: httpx.AsyncClient, secrets: dict[str, str]) -> None:
        for left in (1, 0):
            response = await post(client, **{"x-api-key": secrets["shop"]})
            assert response.status_code == 200
            assert response.headers["ratelimit-policy"] == '"default";q=2;w=60'
            assert response.headers["ratelimit"].startswith(f'"default";r={left};t=')
        refused = await post(client, **{"x-api-key": secrets["shop"]})
        assert slug(refused) == "quota-exceeded"
        assert "got more than 2 requests in 60 s; try again in " in refused.json()["detail"]
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        assert 28 <= int(refused.headers["retry-after"]) <= 30
        other = await post(client, **{"x-api-key": secrets["lab"]})
        assert other.status_code == 200 and "ratelimit" not in other.headers

    async def test_no_key_stands_in_an_answer_or_a_log(
        self, client: httpx.AsyncClient, secrets: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            for key in (secrets["lab"], "petseg_unknown"):
                for path in ("/models", "/nope", "/segment/nope"):
                    text = repr((answer := await client.get(path, headers={"x-api-key": key})).headers) + answer.text
                    assert key not in text and str(tmp_path) not in text
        assert caplog.records
        records = [record for record in caplog.records if record.name.startswith("petseg")]
        ours = [JsonFormatter().format(record) for record in records]
        assert {getattr(record, "fields", {}).get("caller") for record in records} == {None, "lab"}
        assert not [line for line in ours if "petseg_" in line or str(tmp_path) in line]

    def test_a_key_file_that_is_not_there_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"^PETSEG_KEYS: nope\.toml cannot be read"):
            create_app(Settings(keys=tmp_path / "nope.toml"), [])


class TestQuotaOfAddresses:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=1, requests_per_minute=4)

    async def test_each_photo_of_a_batch_counts(self, client: httpx.AsyncClient) -> None:
        photos = [("image", PHOTO)] * 3
        batch = await client.post("/segment/colour/batch", files=photos)
        assert batch.status_code == 200
        assert batch.headers["ratelimit"].startswith('"default";r=1;t=')
        assert (await client.post("/segment/colour/batch", files=photos)).status_code == 200
        refused = await client.get("/models")
        assert slug(refused) == "quota-exceeded"
        assert 40 <= int(refused.headers["retry-after"]) <= 45  # the last batch went two photos into debt

    async def test_probes_are_never_refused(self, client: httpx.AsyncClient) -> None:
        for _ in range(6):
            assert (await client.get("/readyz")).status_code == 200


class TestInFlight:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=1, max_requests=3, max_client_requests=2)

    async def test_one_more_than_a_client_may_have(
        self, client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
    ) -> None:
        model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
        model.is_free.clear()
        held = [asyncio.ensure_future(post(client, "stuck")) for _ in range(2)]
        await until(lambda: gate(app).in_flight.total() == 2)
        refused = await client.get("/models")
        assert slug(refused) == "too-many-at-once"
        assert "got one request more than the 2 that one client may have in flight" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/readyz")).status_code == 200
        other = httpx.ASGITransport(app=app, client=("192.0.2.1", 1))
        async with httpx.AsyncClient(transport=other, base_url="http://test") as second:
            assert (await second.get("/models")).status_code == 200
        model.is_free.set()
        assert {(await task).status_code for task in held} == {200}
        assert not gate(app).in_flight
        assert (await client.get("/models")).status_code == 200

    async def test_one_more_than_the_server_holds(
        self, client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
    ) -> None:
        model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
        model.is_free.clear()

        async def ask(address: str) -> httpx.Response:
            transport = httpx.ASGITransport(app=app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as one:
                return await post(one, "stuck")

        held = [asyncio.ensure_future(ask(f"192.0.2.{index}")) for index in range(3)]
        await until(lambda: gate(app).in_flight.total() == 3)
        refused = await client.get("/models")
        assert slug(refused) == "overloaded"
        assert "got one request more than the 3 that the server holds" in refused.json()["detail"]
        assert (await client.get("/healthz")).status_code == 200
        model.is_free.set()
        assert {(await task).status_code for task in held} == {200}


class TestBodies:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=1, body_timeout_s=0.3, min_body_bytes_per_s=1000, max_held_bytes=2000)

    @pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=b"])
    async def test_one_that_stops_coming(self, client: httpx.AsyncClient, app: FastAPI, content_type: str) -> None:
        async def stall() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            await asyncio.sleep(60)

        response = await client.post("/segment/colour", content=stall(), headers={"content-type": content_type})
        assert slug(response) == "body-too-slow"
        assert response.json()["detail"].startswith("got 5 body bytes in 0.305 s, wanted all within 0.3 s, or 1000")
        assert response.headers["connection"] == "close"
        assert gate(app).held_bytes == 0

    async def test_a_trickle_below_the_least_rate(self, client: httpx.AsyncClient) -> None:
        async def trickle() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.02)

        response = await client.post("/segment/colour", content=trickle(), headers={"content-type": "image/png"})
        assert slug(response) == "body-too-slow"

    async def test_steady_bytes_may_take_longer(self, client: httpx.AsyncClient) -> None:
        async def steady() -> AsyncIterator[bytes]:
            padded = PHOTO + bytes(1800 - len(PHOTO))
            for start in range(0, 1800, 300):
                yield padded[start : start + 300]
                await asyncio.sleep(0.1)

        response = await client.post("/segment/colour", content=steady(), headers={"content-type": "image/png"})
        assert response.status_code == 200

    async def test_one_byte_more_than_all_may_hold(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        whole = await client.post("/segment/colour", content=PHOTO + bytes(2000 - len(PHOTO)))
        assert whole.status_code == 200
        over = await client.post("/segment/colour", content=PHOTO + bytes(2001 - len(PHOTO)))
        assert slug(over) == "overloaded"
        assert "got more body bytes at once than the 2000 that the server holds" in over.json()["detail"]
        assert gate(app).held_bytes == 0

    async def test_bodies_are_held_together(
        self, client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
    ) -> None:
        model = next(each.model for each in checkpoints if isinstance(each.model, StuckModel))
        model.is_free.clear()
        body = PHOTO + bytes(1200 - len(PHOTO))
        first = asyncio.ensure_future(client.post("/segment/stuck", content=body))
        await until(lambda: gate(app).held_bytes == 1200)
        assert slug(await client.post("/segment/colour", content=body)) == "overloaded"
        model.is_free.set()
        assert (await first).status_code == 200
        assert (await client.post("/segment/colour", content=body)).status_code == 200


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a-socket", "a-socket"),
    ],
)
def test_addresses_are_counted_by_subscriber(host: str, counted: str) -> None:
    assert address_of({"client": (host, 1)}) == counted
    assert address_of({"client": None}) == "unknown"
