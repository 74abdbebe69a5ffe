"""Label Studio's ML backend contract: its own requests, its own answers, and no address asked but its own."""

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from models.checkpoint import Checkpoint
from service import label_studio_images
from service.errors import BodyTooLarge
from service.label_studio_images import LabelStudioImages
from service.label_studio_routes import count_values
from service.settings import Settings
from tests.fakes import encode, fill_polygons, picture, read
from tests.unit.test_brush_rle import decode_brush

pytestmark = pytest.mark.anyio

UPLOAD = encode(picture(200, 120))
DATA_URI = "data:image/png;base64," + base64.b64encode(UPLOAD).decode()

ANIMALS = """<View>
  <!-- the photo -->
  <Image name="photo" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="photo">
    <Label value="Cat"/><Label value="Hound" predicted_values="dog,puppy"/>
  </BrushLabels>
</View>"""

CLICKS = """<View>
  <Image name="photo" value="$image"/>
  <BrushLabels name="brush" toName="photo"><Label value="Left ear"/><Label value="Nose"/></BrushLabels>
  <KeyPointLabels name="click" toName="photo" smart="true">
    <Label value="Left ear"/><Label value="Nose"/>
  </KeyPointLabels>
</View>"""

POLYGONS = ANIMALS.replace("BrushLabels", "PolygonLabels").replace("brush", "outline")


def request(config: str, *references: str, context: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What Label Studio sends to /predict."""
    return {
        "tasks": [
            {"id": place, "data": {"image": reference}, "meta": {}} for place, reference in enumerate(references)
        ],
        "project": "1.1699999999",
        "label_config": config,
        "params": {"login": None, "password": None, "context": {"result": context} if context else None},
    }


def click(x: float, y: float, label: str, **more: Any) -> dict[str, Any]:
    """A click at pixel (x, y) of the 200 x 120 photo, as Label Studio writes it."""
    return {
        "id": "fBWv1t0S2L", "from_name": "click", "to_name": "photo", "type": "keypointlabels", "origin": "manual",
        "original_width": 200, "original_height": 120, "image_rotation": 0,
        "value": {"x": 100 * (x + 0.5) / 200, "y": 100 * (y + 0.5) / 120, "width": 0.3, "keypointlabels": [label]},
        **more,
    }  # fmt: skip


async def predict(client: httpx.AsyncClient, model: str, body: dict[str, Any]) -> Any:
    response = await client.post(f"/label-studio/{model}/predict", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_health_and_setup(client: httpx.AsyncClient) -> None:
    health = await client.get("/label-studio/colour/health")
    assert health.json() == {"status": "UP", "model_class": "colour"}
    sent = {"project": "1.17", "schema": ANIMALS, "hostname": "http://evil.example", "access_token": "x"}
    setup = await client.post("/label-studio/colour/setup", json={**sent, "extra_params": None})
    assert setup.json() == {"model_version": f"colour-{b'colour'.hex()}"}


async def test_brush_strokes_are_the_mask(client: httpx.AsyncClient) -> None:
    mask = np.asarray(read((await client.post("/segment/colour", files={"image": UPLOAD})).content))
    answer = await predict(client, "colour", request(ANIMALS, DATA_URI, DATA_URI))
    assert answer["model_version"] == f"colour-{b'colour'.hex()}"
    first, second = answer["results"]
    assert [region["value"]["rle"] for region in first["result"]] == [r["value"]["rle"] for r in second["result"]]
    assert first["model_version"] == answer["model_version"]
    assert 0.5 < first["score"] <= 1
    for region, label, index in zip(first["result"], ("Cat", "Hound"), (1, 2), strict=True):
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "photo", "brushlabels")
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (200, 120, 0)
        assert region["value"]["format"] == "rle"
        assert region["value"]["brushlabels"] == [label]
        stroke = decode_brush(region["value"]["rle"]).reshape(120, 200, 4)[..., 3]
        assert (stroke == 255 * (mask == index)).all()


async def test_polygon_labels_get_polygons(client: httpx.AsyncClient) -> None:
    mask = np.asarray(read((await client.post("/segment/colour", files={"image": UPLOAD})).content))
    (prediction,) = (await predict(client, "colour", request(POLYGONS, DATA_URI)))["results"]
    cat = next(region for region in prediction["result"] if region["value"]["polygonlabels"] == ["Cat"])
    assert (cat["type"], cat["from_name"], cat["value"]["closed"]) == ("polygonlabels", "outline", True)
    points = np.array(cat["value"]["points"]) / 100 * (200, 120)
    filled = fill_polygons([points.ravel().tolist()], mask.shape)
    assert (filled & (mask == 1)).sum() / (filled | (mask == 1)).sum() > 0.95


async def test_clicks_lead_the_click_model(client: httpx.AsyncClient) -> None:
    context = [click(150, 30, "Nose"), click(170, 30, "Nose", is_positive=False)]
    answer = await predict(client, "click", request(CLICKS, DATA_URI, context=context))
    (region,) = answer["results"][0]["result"]
    stroke = decode_brush(region["value"]["rle"]).reshape(120, 200, 4)[..., 3] > 0
    fields = {"points": "[[150, 30, 1], [170, 30, 0]]"}
    mask = np.asarray(read((await client.post("/segment/click", files={"image": UPLOAD}, data=fields)).content))
    assert (stroke == (mask == 1)).all()
    assert region["value"]["brushlabels"] == ["Nose"]


async def test_a_box_is_a_click_at_its_middle(client: httpx.AsyncClient) -> None:
    box = click(0, 0, "Nose")
    box |= {
        "type": "rectanglelabels",
        "value": {"x": 70, "y": 20, "width": 10, "height": 20, "rectanglelabels": ["Nose"]},
    }
    answer = await predict(client, "click", request(CLICKS, DATA_URI, context=[box]))
    (region,) = answer["results"][0]["result"]
    rows, columns = np.nonzero(decode_brush(region["value"]["rle"]).reshape(120, 200, 4)[..., 3])
    assert abs(columns.mean() - 149.5) < 3
    assert abs(rows.mean() - 35.5) < 3


class TestLimits:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=1, max_points=1, max_batch_images=1)

    async def test_clicks_and_tasks_have_the_limits_of_any_request(self, client: httpx.AsyncClient) -> None:
        context = [click(150, 30, "Nose")]
        assert (await predict(client, "click", request(CLICKS, DATA_URI, context=context)))["results"][0]["result"]
        two = {
            "got 2 clicks, wanted at most 1": request(CLICKS, DATA_URI, context=context * 2),
            "got 2 tasks, wanted at most 1": request(CLICKS, DATA_URI, DATA_URI, context=context),
        }
        for said, body in two.items():
            response = await client.post("/label-studio/click/predict", json=body)
            assert (response.status_code, response.json()["detail"]) == (422, said)


async def test_without_clicks_the_click_model_has_nothing_to_say(client: httpx.AsyncClient) -> None:
    answer = await predict(client, "click", request(CLICKS, DATA_URI))
    assert answer["results"] == [{"result": [], "score": 0, "model_version": answer["model_version"]}]


async def test_one_bad_task_spoils_no_other(client: httpx.AsyncClient) -> None:
    answer = await predict(client, "colour", request(ANIMALS, "data:image/png;base64,AAAA", DATA_URI))
    bad, good = answer["results"]
    assert bad["error"].startswith("got 3 bytes that do not decode as ")
    assert "result" not in bad
    assert len(good["result"]) == 2
    alone = await client.post("/label-studio/colour/predict", json=request(ANIMALS, "data:image/png;base64,AAAA"))
    assert (alone.status_code, alone.json()["type"]) == (415, "/problems/unsupported-image")


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><View>&b;</View>'


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("<View>", "got a labelling configuration that is no XML"),
        (BOMB, "got a labelling configuration with a document type"),
        ("<View/>", "got no BrushLabels nor PolygonLabels toName an <Image"),
        (ANIMALS.replace('toName="photo"', 'toName="text"'), "got no BrushLabels nor PolygonLabels"),
        (
            ANIMALS.replace("Cat", "Sofa").replace("dog,", ""),
            "got BrushLabels for sofa, hound, puppy, wanted a Label for cat",
        ),
    ],
)
async def test_configurations_that_cannot_work_are_refused_at_setup(
    client: httpx.AsyncClient, config: str, said: str
) -> None:
    response = await client.post("/label-studio/colour/setup", json={"project": "1.1", "schema": config})
    assert response.status_code == 422
    assert said in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "got a body that Label Studio would not send"),
        ('{"tasks": [], "label_config": ""}', "#/tasks: List should have at least 1 item"),
        ('{"tasks": [{"data": {}}], "label_config": %s}', "got a task without 'image' in its data"),
        ("[" * 60_000, "got a body that Label Studio would not send"),
    ],
)
async def test_bodies_that_are_none(client: httpx.AsyncClient, body: str, said: str) -> None:
    content = body.replace("%s", '"' + ANIMALS.replace('"', '\\"').replace("\n", " ") + '"')
    response = await client.post("/label-studio/colour/predict", content=content)
    assert response.status_code == 422, response.text
    assert said in response.json()["detail"]


Answer = Callable[[httpx.Request], httpx.Response]


class TestImages:
    """Which references are followed, and how."""

    @pytest.fixture
    def seen(self) -> list[httpx.Request]:
        return []

    @pytest.fixture
    def answer(self) -> Answer:
        return lambda request: httpx.Response(200, content=UPLOAD)

    def images(self, seen: list[httpx.Request], answer: Answer, **settings: Any) -> LabelStudioImages:
        def handle(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return answer(request)

        given = {"label_studio_url": "http://studio:8080/ls", "label_studio_token": "abc"} | settings
        return LabelStudioImages(Settings(**given), httpx.MockTransport(handle))

    @pytest.mark.parametrize(
        ("reference", "asked"),
        [
            ("/data/upload/1/cat.jpg", "http://studio:8080/data/upload/1/cat.jpg"),
            ("/ls/data/upload/1/a%20cat.jpg", "http://studio:8080/ls/data/upload/1/a%20cat.jpg"),
            ("/data/local-files/?d=pets/cat.jpg", "http://studio:8080/data/local-files/?d=pets/cat.jpg"),
            ("http://studio:8080/data/upload/1/cat.jpg", "http://studio:8080/data/upload/1/cat.jpg"),
            ("s3://pets/cat.jpg", "http://studio:8080/ls/tasks/7/resolve/?fileuri=czM6Ly9wZXRzL2NhdC5qcGc%3D"),
        ],
    )
    async def test_its_own_media_are_fetched_with_the_token(
        self, seen: list[httpx.Request], answer: Answer, reference: str, asked: str
    ) -> None:
        assert await self.images(seen, answer).read(reference, 7) == UPLOAD
        assert [str(request.url) for request in seen] == [asked]
        assert seen[0].headers["authorization"] == "Token abc"

    @pytest.mark.parametrize(
        "reference",
        [
            "http://169.254.169.254/latest/meta-data",
            "https://studio:8080/data/upload/1/cat.jpg",
            "http://studio:8081/data/upload/1/cat.jpg",
            "http://studio:8080@evil.example/data/cat.jpg",
            "http://user@studio:8080/data/cat.jpg",
            "//evil.example/data/cat.jpg",
            "/api/users/",
            "/data/../api/users/",
            "/data/%2e%2e/api/users/",
            "/data/..%5c../api/users/",
            "file:///etc/passwd",
            "/etc/passwd",
            "cat.jpg",
            "http://[",
            "",
        ],
    )
    async def test_all_else_is_not_asked_for(
        self, client: httpx.AsyncClient, app: FastAPI, seen: list[httpx.Request], answer: Answer, reference: str
    ) -> None:
        app.state.label_studio_images = self.images(seen, answer)
        response = await client.post("/label-studio/colour/predict", json=request(ANIMALS, reference))
        assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid-request")
        assert seen == []

    async def test_nothing_is_fetched_unless_the_operator_says_from_where(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/label-studio/colour/predict", json=request(ANIMALS, "/data/upload/1/cat.jpg"))
        assert response.status_code == 422
        assert "fetches nothing until its operator sets PETSEG_LABEL_STUDIO_URL" in response.json()["detail"]

    async def test_the_app_fetches_and_segments(
        self, client: httpx.AsyncClient, app: FastAPI, seen: list[httpx.Request], answer: Answer
    ) -> None:
        app.state.label_studio_images = self.images(seen, answer)
        (prediction,) = (await predict(client, "colour", request(ANIMALS, "/data/upload/1/cat.jpg")))["results"]
        assert len(prediction["result"]) == 2

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (
                httpx.Response(302, headers={"location": "http://evil.example/"}),
                "got HTTP 302 from Label Studio, a redirect",
            ),
            (httpx.Response(404), "got HTTP 404 from Label Studio for /data/upload/1/cat.jpg"),
            (httpx.ConnectError("refused"), "got no image from Label Studio (ConnectError)"),
        ],
    )
    async def test_what_it_gives_instead_is_told(
        self, client: httpx.AsyncClient, app: FastAPI, seen: list[httpx.Request], given: Any, said: str
    ) -> None:
        def answer(_: httpx.Request) -> httpx.Response:
            if isinstance(given, Exception):
                raise given
            response: httpx.Response = given
            return response

        app.state.label_studio_images = self.images(seen, answer)
        response = await client.post("/label-studio/colour/predict", json=request(ANIMALS, "/data/upload/1/cat.jpg"))
        assert (response.status_code, response.json()["type"]) == (502, "/problems/image-not-fetched")
        assert said in response.json()["detail"]
        assert len(seen) == 1

    async def test_more_bytes_than_allowed_are_not_read(
        self, client: httpx.AsyncClient, app: FastAPI, seen: list[httpx.Request], answer: Answer
    ) -> None:
        app.state.label_studio_images = self.images(seen, answer, max_body_bytes=len(UPLOAD) - 1)
        response = await client.post("/label-studio/colour/predict", json=request(ANIMALS, "/data/upload/1/cat.jpg"))
        assert response.status_code == 413

    async def test_nor_decoded_from_a_data_uri(self, seen: list[httpx.Request], answer: Answer) -> None:
        assert await self.images(seen, answer, max_body_bytes=len(UPLOAD)).read(DATA_URI, 1) == UPLOAD
        with pytest.raises(BodyTooLarge, match=f"got a data URI of more than {len(UPLOAD) - 1} bytes"):
            await self.images(seen, answer, max_body_bytes=len(UPLOAD) - 1).read(DATA_URI, 1)

    async def test_a_personal_token_is_traded_and_traded_again_once_it_ends(self, seen: list[httpx.Request]) -> None:
        access = ["first", "second"]

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/ls/api/token/refresh/":
                assert request.read() == b'{"refresh":"a.b.c"}'
                return httpx.Response(200, json={"access": access[0]})
            is_fresh = request.headers["authorization"] == f"Bearer {access[0]}"
            return httpx.Response(200, content=UPLOAD) if is_fresh else httpx.Response(401)

        images = self.images(seen, answer, label_studio_token="a.b.c")
        assert await images.read("/data/upload/1/cat.jpg", 1) == UPLOAD
        assert await images.read("/data/upload/1/cat.jpg", 1) == UPLOAD
        assert len(seen) == 3
        del access[0]
        assert await images.read("/data/upload/1/cat.jpg", 1) == UPLOAD
        assert len(seen) == 6


class TestJsonLimits:
    """Lists and objects within each other take a hundred times the memory of their text."""

    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=1, max_json_values=400, max_batch_images=2)

    async def test_values_at_the_limit_and_one_past(self, client: httpx.AsyncClient) -> None:
        body = {"schema": ANIMALS, "extra_params": [0] * 366}  # two lists or objects, 367 commas
        at_limit = json.dumps(body).encode()
        assert count_values(at_limit) == 400
        assert (await client.post("/label-studio/colour/setup", content=at_limit)).status_code == 200
        for path in ("setup", "predict"):
            past = await client.post(f"/label-studio/colour/{path}", content=at_limit.replace(b"[0,", b"[0,0,"))
            assert (past.status_code, past.json()["type"]) == (422, "/problems/invalid-request")
            assert past.json()["detail"] == "got a body of about 401 JSON values, wanted at most 400"

    async def test_tasks_at_the_limit_and_one_past(self, client: httpx.AsyncClient) -> None:
        assert len((await predict(client, "colour", request(ANIMALS, *[DATA_URI] * 2)))["results"]) == 2
        past = await client.post("/label-studio/colour/predict", json=request(ANIMALS, *[DATA_URI] * 3))
        assert past.json()["detail"] == "got 3 tasks, wanted at most 2"

    async def test_a_configuration_that_is_too_long(self, client: httpx.AsyncClient) -> None:
        body = {"schema": ANIMALS + " " * ((1 << 17) - len(ANIMALS))}
        assert (await client.post("/label-studio/colour/setup", json=body)).status_code == 200
        past = await client.post("/label-studio/colour/setup", json={"schema": body["schema"] + " "})
        assert "String should have at most 131072 characters" in past.json()["detail"]


@pytest.mark.parametrize("url", ["studio", "ftp://studio", "http://user:secret@studio", "http://studio/?x=1"])
def test_settings_want_a_plain_address(url: str) -> None:
    with pytest.raises(ValueError, match="label_studio_url"):
        Settings(label_studio_url=url)


def test_the_token_is_not_shown(unet: Checkpoint) -> None:
    assert "hush" not in repr(Settings.model_validate({"label_studio_token": "hush"}))


async def test_a_data_uri_is_decoded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded_on = []

    def decode(*_: object) -> bytes:
        decoded_on.append(threading.current_thread())
        return b"photo"

    monkeypatch.setattr(label_studio_images, "decode_data_uri", decode)
    assert await LabelStudioImages(Settings()).read("data:image/png;base64,eA==", None) == b"photo"
    assert decoded_on != [threading.current_thread()]
