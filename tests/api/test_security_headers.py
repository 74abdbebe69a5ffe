"""What browsers are told, and the reference that loads from this host alone."""

import re

import httpx
import pytest

from service.security_headers import DATA_POLICY, PAGE_POLICY
from service.settings import Settings
from tests.fakes import encode, picture

pytestmark = pytest.mark.anyio

PAGE = {"Origin": "https://example.org"}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


async def test_every_kind_of_answer_carries_them(client: httpx.AsyncClient) -> None:
    answers = [
        await client.get("/healthz"),
        await client.get("/nope"),
        await client.post("/segment/colour", files={"image": encode(picture())}),
        await client.post("/segment/colour/batch", files={"image": encode(picture())}),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"] == DATA_POLICY
        assert answer.headers["cache-control"] == "no-store"


async def test_the_reference_loads_from_this_host_alone(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY and "http" not in PAGE_POLICY
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|//", page.text)
    loaded = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert loaded == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"]
    for address in loaded:
        file = await client.get(f"/{address}")
        assert (file.status_code, file.headers["cache-control"]) == (200, "no-cache")
        again = await client.get(f"/{address}", headers={"if-none-match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "content-security-policy" not in again.headers  # it would become the policy of the page
    assert '"openapi.json"' in file.text
    assert (await client.get("/redoc")).status_code == 404


@pytest.mark.parametrize("name", ["nope.js", "..%2f..%2fpyproject.toml", "%2e%2e", "favicon.png"])
async def test_no_other_file_is_sent(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/docs/{name}")
    assert answer.json()["type"] == "/problems/not-found"


async def test_cors_is_off(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.get("/models", headers=PAGE),
        await client.options("/segment/colour", headers=PAGE | PREFLIGHT),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


class TestCors:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings.model_validate({"image_threads": 1, "cors_origins": "https://example.org, https://b.example"})

    async def test_a_named_origin_may_call(self, client: httpx.AsyncClient) -> None:
        allowed = await client.options("/segment/colour", headers=PAGE | PREFLIGHT)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        answer = await client.post("/segment/colour", files={"image": encode(picture())}, headers=PAGE)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert "X-Image-Id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        refused = await client.post("/segment/nope", headers=PAGE)
        assert refused.headers["access-control-allow-origin"] == "https://example.org"

    async def test_another_may_not(self, client: httpx.AsyncClient) -> None:
        other = {"Origin": "https://evil.example"}
        assert (await client.options("/segment/colour", headers=other | PREFLIGHT)).status_code == 400
        assert "access-control-allow-origin" not in (await client.get("/models", headers=other)).headers
