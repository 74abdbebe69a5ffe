"""No answer and no log line tells of keys, photos, files of the server, or a defect's text (which only a trace may)."""

import base64
import logging
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.checkpoint import Checkpoint
from service.api_keys import new_key
from service.settings import Settings
from tests.fakes import BrokenModel, encode, picture

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PHOTO = encode(picture(), "PNG", pnginfo=None)
MARK = b"a-photo-nobody-else-may-see"


@pytest.fixture
def key(tmp_path: Path) -> str:
    return new_key(tmp_path / "keys.toml", "lab")[0]


@pytest.fixture
def settings(key: str, tmp_path: Path) -> Settings:
    return Settings(image_threads=1, keys=tmp_path / "keys.toml", max_body_bytes=20_000)


REQUESTS: dict[str, dict[str, Any]] = {
    "a photo": {"path": "/segment/colour", "content": PHOTO + MARK},
    "a photo in a form": {"path": "/segment/colour", "files": {"image": ("/home/me/secret.png", PHOTO + MARK)}},
    "no photo": {"path": "/segment/colour", "content": MARK},
    "half a photo": {"path": "/segment/colour", "content": PHOTO[:200] + MARK},
    "a photo as text": {"path": "/segment/colour", "data": {"image": MARK.decode()}},
    "a broken form": {
        "path": "/segment/colour",
        "content": b"--b\r\n" + MARK,
        "headers": {"content-type": "multipart/form-data; boundary=b"},
    },
    "a large body": {"path": "/segment/colour", "content": MARK * 1000},
    "a defect": {"path": "/segment/broken", "content": PHOTO + MARK},
    "a defect in a batch": {"path": "/segment/broken/batch", "files": {"image": PHOTO + MARK}},
    "a path upwards": {"path": "/segment/../../etc/passwd", "content": b""},
    "an encoded path upwards": {"path": "/segment/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "content": b""},
    "a file address": {"path": "/segment/colour", "data": {"image_id": "file:///etc/passwd"}},
    "an address to fetch": {"path": "/segment/colour", "data": {"image": "http://127.0.0.1:1/photo.png"}},
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_nothing_leaks(
    client: httpx.AsyncClient,
    checkpoints: list[Checkpoint],
    key: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    next(each.model for each in checkpoints if isinstance(each.model, BrokenModel)).is_broken = True
    request = dict(REQUESTS[name])
    headers = {**request.pop("headers", {}), "authorization": f"Bearer {key}"}
    with caplog.at_level(logging.DEBUG, logger="petseg"):
        answer = await client.post(request.pop("path"), headers=headers, **request)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("petseg")]
    assert lines
    told = answer.text + repr(answer.headers)
    for text in (told, *lines):
        for secret in (
            key,
            MARK.decode(),
            str(tmp_path),
            str(ROOT),
            "site-packages",
            "Traceback",
            "secret /etc/passwd",
        ):
            assert secret not in text
        assert base64.b64encode(MARK)[4:20].decode() not in text
    for record in caplog.records:  # a trace has the defect's own text, and still neither key nor photo
        assert key not in (record.exc_text or "") and MARK.decode() not in (record.exc_text or "")


async def test_no_address_is_fetched_and_no_file_is_read(
    client: httpx.AsyncClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "socket.connect", "socket.getaddrinfo") and is_watching:
            opened.append(f"{event} {arguments[0]!r}")

    is_watching = False
    sys.addaudithook(audit)
    headers = {"authorization": f"Bearer {key}"}
    await client.post(
        "/segment/colour", files={"image": ("x.png", PHOTO)}, headers=headers
    )  # what comes late comes now
    for form in ({"image": "file:///etc/passwd"}, {"image_id": "../../etc/passwd"}):
        is_watching = True
        answer = await client.post("/segment/colour", data=form, headers=headers)
        is_watching = False
        assert answer.status_code == 422
    big = PHOTO + bytes(18_000)
    is_watching = True
    answer = await client.post("/segment/colour", files={"image": ("../../x.png", big)}, headers=headers)
    is_watching = False
    assert answer.status_code == 200
    assert opened == []
