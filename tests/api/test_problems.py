"""Every failure is an RFC 9457 problem that says what was got, what was wanted and the fix."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from models.checkpoint import Checkpoint
from models.image_files import ImageError
from service import errors
from service.settings import Settings
from tests.fakes import BrokenModel, StuckModel, encode, picture, post_until, until

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}
GONE = "sha256:" + "0" * 64


@pytest.fixture
def settings() -> Settings:
    return Settings(
        streams=1,
        image_threads=2,
        queue_size=3,
        deadline_s=5,
        max_body_bytes=4000,
        max_batch_body_bytes=6000,
        max_pixels=2400,
    )


def problem(response: httpx.Response, slug: str) -> dict[str, Any]:
    """The body, checked to be a whole problem of type `slug`."""
    kind = errors.PROBLEMS[slug]
    body: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert response.status_code == body["status"] == kind.status, response.text
    assert (body["type"], body["title"]) == (f"/problems/{slug}", kind.title)
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers["x-request-id"]
    assert "server-timing" in response.headers
    assert set(body) <= {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    return body


async def post(client: httpx.AsyncClient, model: str = "colour", **fields: Any) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": encode(picture())}, data=fields)


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    for response in (await post(client, "nope"), await client.get("/models/nope")):
        body = problem(response, "unknown-model")
        assert body["detail"] == "got model 'nope', wanted one of: unet, colour, click, text, broken, stuck"


async def test_unknown_address_and_method(client: httpx.AsyncClient) -> None:
    assert "got /nope" in problem(await client.get("/nope"), "not-found")["detail"]
    response = await client.get("/segment/colour")
    assert "wanted POST" in problem(response, "method-not-allowed")["detail"]
    assert response.headers["allow"] == "POST"


async def test_image_gone(client: httpx.AsyncClient) -> None:
    response = await client.post(f"/segment/click?image_id={GONE}&x=1&y=1")
    assert "send the image itself again" in problem(response, "image-gone")["detail"]


async def test_image_id_where_nothing_is_kept(client: httpx.AsyncClient) -> None:
    response = await client.post("/segment/colour", data={"image_id": GONE})
    assert "colour keeps no features; send the image" in problem(response, "image-id-not-kept")["detail"]


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("is_form", [True, False])
async def test_body_too_large(client: httpx.AsyncClient, has_length: bool, is_form: bool) -> None:
    edge = b"\r\n".join([b"--b", b'Content-Disposition: form-data; name="image"; filename="a"', b"", b""])
    body = (edge if is_form else b"") + b"x" * 5000

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    headers = {"content-type": "multipart/form-data; boundary=b" if is_form else "image/png"}
    response = await client.post("/segment/colour", content=body if has_length else chunks(), headers=headers)
    got = f"{len(body)}" if has_length else "more than 4000"
    wanted = f"got {got} body bytes, wanted at most 4000; send a smaller or more strongly compressed image"
    assert problem(response, "body-too-large")["detail"] == wanted


async def test_a_body_at_the_limit_is_read(client: httpx.AsyncClient) -> None:
    data = encode(picture())
    response = await client.post("/segment/colour", content=data + b"\0" * (4000 - len(data)), headers=PNG)
    assert response.status_code == 200


async def test_image_too_large_by_its_header_alone(client: httpx.AsyncClient) -> None:
    assert (await post(client)).status_code == 200  # 60 x 40 is the limit
    bomb = encode(Image.new("1", (20000, 1000)))
    assert len(bomb) < 4000
    response = await client.post("/segment/colour", content=bomb, headers=PNG)
    assert "got 20000 x 1000 = 20000000 pixels, wanted at most 2400" in problem(response, "image-too-large")["detail"]


@pytest.mark.parametrize(
    ("content_type", "content", "said"),
    [
        ("application/json", b"{}", "got Content-Type 'application/json', wanted multipart/form-data or image/*"),
        ("text/plain", b"hello", "got Content-Type 'text/plain'"),
        ("application/x-www-form-urlencoded", b"\xff\xd8\xff\xe0", "add the header Content-Type: image/jpeg"),
        ("application/x-www-form-urlencoded", b"no form at all", "add the header Content-Type: image/jpeg"),
    ],
)
async def test_unsupported_body(client: httpx.AsyncClient, content_type: str, content: bytes, said: str) -> None:
    response = await client.post("/segment/colour", content=content, headers={"content-type": content_type})
    assert said in problem(response, "unsupported-body")["detail"]


@pytest.mark.parametrize(
    "content",
    [b"hello", encode(picture())[:-30], encode(picture(9, 9), "PPM"), encode(picture(), "ICO"), b"<svg/>"],
    ids=["text", "truncated", "ppm", "ico", "svg"],
)
async def test_unsupported_image(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/segment/colour", content=content, headers=PNG)
    detail = problem(response, "unsupported-image")["detail"]
    assert detail.startswith(f"got {len(content)} bytes that do not decode as JPEG, PNG")


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        ("colour", {"text": "a cat"}, "got a text prompt, this model takes no prompt; send colour no prompt"),
        ("colour", {"x": "1", "y": "1"}, "got a points prompt, this model takes no prompt"),
        ("click", {"text": "a cat"}, "got a text prompt, this model takes clicks"),
        ("click", {}, "got no prompt, this model needs clicks"),
        ("text", {"points": "[[1, 1]]"}, "got a points prompt, this model takes a text prompt"),
    ],
)
async def test_prompt_mismatch(client: httpx.AsyncClient, model: str, fields: dict[str, str], said: str) -> None:
    assert said in problem(await post(client, model, **fields), "prompt-mismatch")["detail"]


INVALID: list[tuple[dict[str, str], str, str]] = [
    ({"foo": "1"}, "#/foo", "got the unknown field 'foo', wanted image, image_id, text, points, x, y, output, rle"),
    ({"a/b~c": "1"}, "#/a~1b~0c", "got the unknown field 'a/b~c'"),
    ({"output": "jpg"}, "#/output", "got 'jpg'; Input should be 'png', 'rle', 'polygons', 'geojson', 'yolo'"),
    ({"rle": "zip"}, "#/rle", "got 'zip'; Input should be 'compressed' or 'uncompressed'"),
    ({"rle": "compressed", "output": "png"}, "#/rle", "got rle=compressed with output=png, wanted output=rle"),
    ({"x": "1"}, "#/y", "got x without y; a click has both"),
    ({"y": "1"}, "#/x", "got y without x; a click has both"),
    ({"x": "left", "y": "1"}, "#/x", "got 'left'; Input should be a valid number"),
    ({"x": "nan", "y": "1"}, "#/x", "got 'nan'; Input should be a finite number"),
    ({"x": "1", "y": "1", "points": "[[1, 1]]"}, "#/points", "got points and x, y; put all clicks into points"),
    ({"text": "cat", "x": "1", "y": "1"}, "#/text", "got text and x and y; a model takes one kind of prompt"),
    ({"text": "  "}, "#/text", "got blank text"),
    ({"text": ""}, "#/text", "got ''; String should have at least 1 character"),
    ({"text": "x" * 501}, "#/text", "String should have at most 500 characters"),
    ({"points": "here"}, "#/points", "got 'here', which is no JSON; wanted JSON such as [[120, 80, 1]"),
    ({"points": "[" * 3000}, "#/points", "got brackets 3000 deep, wanted at most 4; wanted JSON such as"),
    ({"points": "[" * 5 + "1" + "]" * 5}, "#/points", "got brackets 5 deep, wanted at most 4"),
    ({"points": "[" * 4 + "1" + "]" * 4}, "#/points/0", "got '[[[1]]]'; wanted JSON such as"),
    ({"points": "{}"}, "#/points", "got '{}'; wanted JSON such as"),
    ({"points": "[]"}, "#/points", "got 0 points; give 1 to 64"),
    ({"points": str([[1, 1]] * 65)}, "#/points", "got 65 points; give 1 to 64"),
    ({"points": "[[1, 1], [2]]"}, "#/points/1", "got '[2]'; wanted JSON such as"),
    ({"points": '[["1", 1]]'}, "#/points/0", "wanted JSON such as"),
    ({"points": "[[true, 1]]"}, "#/points/0", "wanted JSON such as"),
    ({"points": f"[[1{'0' * 400}, 1]]"}, "#/points/0", "wanted JSON such as"),
    ({"points": "[[NaN, 1]]"}, "#/points/0", "wanted JSON such as"),
    ({"points": "[[1, 1, 2]]"}, "#/points", "got point labels [2]; a label is 1 (object) or 0 (background)"),
    ({"points": "[[1, 1], [60, 1]]"}, "#/points/1", "got (60, 1), wanted 0 <= x < 60, 0 <= y < 40"),
    ({"image": "text"}, "#/image", "got text in the part named image, wanted a file; with curl: -F image=@cat.jpg"),
    ({"image_id": GONE}, "#/image_id", "got an image and an image_id; send one of them"),
    (
        {"image_id": "sha256:x"},
        "#/image_id",
        "got 'sha256:x', wanted sha256: and 64 lowercase hexadecimal digits",
    ),
]


@pytest.mark.parametrize(("fields", "pointer", "said"), INVALID, ids=[f"{each[1]} {each[2][:30]}" for each in INVALID])
async def test_invalid_request(client: httpx.AsyncClient, fields: dict[str, str], pointer: str, said: str) -> None:
    body = problem(await post(client, "click", **fields), "invalid-request")
    assert [error["pointer"] for error in body["errors"]] == [pointer]
    assert said in body["errors"][0]["detail"]
    assert len(body["detail"]) < 400


async def test_several_faults_are_told_at_once(client: httpx.AsyncClient) -> None:
    body = problem(await post(client, foo="1", output="jpg"), "invalid-request")
    assert {error["pointer"] for error in body["errors"]} == {"#/foo", "#/output"}


async def test_fields_in_the_query_are_checked_alike(client: httpx.AsyncClient) -> None:
    for query, pointer in (("foo=1", "#/foo"), ("output=jpg", "#/output"), ("output=png&output=rle", "#/output")):
        response = await client.post(f"/segment/colour?{query}", content=encode(picture()), headers=PNG)
        assert problem(response, "invalid-request")["errors"][0]["pointer"] == pointer


async def test_a_field_in_form_and_query_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/segment/colour?output=png", files={"image": encode(picture())}, data={"output": "rle"}
    )
    assert "got 'output' more than once" in problem(response, "invalid-request")["detail"]


async def test_no_image(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post("/segment/colour"),
        await client.post("/segment/colour", content=b"", headers=PNG),
        await client.post("/segment/colour", data={"output": "png"}),
    ):
        body = problem(response, "invalid-request")
        assert body["detail"] == "got no image; send a file part named image, a raw image body, or an image_id"


async def test_other_or_more_files(client: httpx.AsyncClient) -> None:
    image = encode(picture())
    other = await client.post("/segment/colour", files={"photo": image})
    assert "got a file part named 'photo', wanted image" in problem(other, "invalid-request")["detail"]
    two = await client.post("/segment/colour", files=[("image", image), ("image", image)])
    detail = problem(two, "invalid-request")["detail"]
    assert "got more than 1 files, wanted at most 1; send many to /segment/{model}/batch" in detail


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=b"])
async def test_a_broken_form(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/segment/colour", content=b"--x\r\nnope", headers={"content-type": content_type})
    assert "got a multipart body that does not parse" in problem(response, "invalid-request")["detail"]


@pytest.mark.parametrize("charset", ["idna", "punycode", "undefined", "unicode_escape", "utf-16", '"utf-7"'])
async def test_a_form_in_a_strange_encoding(client: httpx.AsyncClient, charset: str) -> None:
    """Each of these is a codec of Python that raises, takes quadratic time, or makes half characters of names."""
    disposition = b'Content-Disposition: form-data; name="image"; filename="\\ud800.png"'
    body = b"--b\r\n" + disposition + b"\r\n\r\n" + encode(picture()) + b"\r\n--b--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    for path in ("/segment/colour", "/segment/colour/batch"):
        response = await client.post(path, content=body, headers=headers)
        detail = problem(response, "unsupported-body")["detail"]
        assert detail == f"got a form with charset {charset.strip(chr(34))!r}, wanted utf-8; leave charset out"
    plain = headers | {"content-type": "multipart/form-data; boundary=b; charset=UTF-8"}
    assert (await client.post("/segment/colour", content=body, headers=plain)).status_code == 200


async def test_no_address_redirects_to_what_the_host_header_says(client: httpx.AsyncClient) -> None:
    response = await client.get("/models/", headers={"host": "elsewhere.example"})
    assert problem(response, "not-found")["detail"] == "got /models/, wanted an address of this service; see /docs"


async def test_an_internal_error_tells_nothing(
    client: httpx.AsyncClient, checkpoints: list[Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    broken = next(each.model for each in checkpoints if isinstance(each.model, BrokenModel))
    broken.is_broken = True
    with caplog.at_level(logging.ERROR):
        response = await post(client, "broken")
    body = problem(response, "internal-error")
    assert "secret" not in response.text
    assert body["request_id"] in body["detail"]
    assert any(record.exc_text and "secret /etc/passwd" in record.exc_text for record in caplog.records)
    assert body["request_id"] in caplog.text
    broken.is_broken = False
    assert (await post(client, "broken")).status_code == 200


def stuck(checkpoints: list[Checkpoint]) -> StuckModel:
    return next(each.model for each in checkpoints if isinstance(each.model, StuckModel))


async def until_held(app: FastAPI, count: int) -> None:
    """Wait until the stuck model has `count` requests in flight."""
    await until(lambda: app.state.service.pipelines["stuck"].in_flight == count)


async def test_overloaded(client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]) -> None:
    stuck(checkpoints).is_free.clear()
    held = [asyncio.ensure_future(post(client, "stuck")) for _ in range(3)]
    await until_held(app, 3)
    response = await post(client, "stuck")
    assert "got one request more than the 3 that stuck holds" in problem(response, "overloaded")["detail"]
    assert int(response.headers["retry-after"]) >= 1
    assert (await post(client, "colour")).status_code == 200
    stuck(checkpoints).is_free.set()
    assert {(await task).status_code for task in held} == {200}


class TestDeadline:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=2, deadline_s=0.15)

    async def test_deadline_exceeded(self, client: httpx.AsyncClient, checkpoints: list[Checkpoint]) -> None:
        stuck(checkpoints).is_free.clear()
        responses = await asyncio.gather(*(post(client, "stuck") for _ in range(2)))
        stuck(checkpoints).is_free.set()
        for response in responses:
            assert "got no answer from stuck within 0.15 s" in problem(response, "deadline-exceeded")["detail"]


class TestTimeInQueue:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(streams=1, image_threads=2, max_queue_s=0.15)

    async def test_no_turn_in_time(
        self, client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
    ) -> None:
        model = stuck(checkpoints)
        model.decoded_rows.clear()
        model.is_free.clear()
        running = asyncio.ensure_future(post(client, "stuck"))
        await until(lambda: model.decoded_rows == [1])
        waiting = await post(client, "stuck")
        assert "got no turn with stuck within 0.15 s; try again in 1 s" in problem(waiting, "overloaded")["detail"]
        assert waiting.headers["retry-after"] == "1"
        model.is_free.set()
        assert (await running).status_code == 200  # what has begun is not cut short
        assert model.decoded_rows == [1]


class TestNarrowLimits:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(
            streams=1, image_threads=1, max_points=2, max_text_characters=10, max_json_depth=2, max_frames=2
        )

    @pytest.mark.parametrize(
        ("model", "fields", "past", "said"),
        [
            ("click", {"points": "[[1,1],[2,2]]"}, {"points": "[[1,1],[2,2],[3,3]]"}, "got 3 points; give 1 to 2"),
            ("click", {"points": "[[1,1]]"}, {"points": "[[[1]]]"}, "got brackets 3 deep, wanted at most 2"),
            ("click", {"points": "[[1,1]]"}, {"points": '["]",' * 1300}, "got brackets 1300 deep, wanted at most 2"),
            ("text", {"text": "a dog, sad"}, {"text": "a dog, sad?"}, "got a text of 11 characters, wanted at most 10"),
        ],
    )
    async def test_at_the_limit_and_one_past(
        self, client: httpx.AsyncClient, model: str, fields: dict[str, str], past: dict[str, str], said: str
    ) -> None:
        assert (await post(client, model, **fields)).status_code == 200
        refused = problem(await post(client, model, **past), "invalid-request")
        assert said in refused["detail"]
        (name,) = past
        assert refused["errors"][0]["pointer"] == f"#/{name}"

    async def test_the_text_of_a_batch_has_the_same_limit(self, client: httpx.AsyncClient) -> None:
        files = {"image": encode(picture())}
        for text, status in (("a dog, sad", 200), ("a dog, sad?", 422), ("  ", 422)):
            response = await client.post("/segment/text/batch", files=files, data={"text": text})
            assert response.status_code == status

    async def test_frames(self, client: httpx.AsyncClient) -> None:
        frames = [picture(seed=seed) for seed in (0, 300, 600)]
        for count, status in ((2, 200), (3, 413)):
            data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:count])
            response = await client.post("/segment/colour", content=data, headers=PNG)
            assert response.status_code == status
        assert "got a PNG of 3 frames or more, wanted at most 2" in problem(response, "image-too-large")["detail"]


async def test_not_ready_while_draining(client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]) -> None:
    stuck(checkpoints).is_free.clear()
    accepted = asyncio.ensure_future(post(client, "stuck"))
    await until_held(app, 1)
    app.state.service.drain()
    batch = await client.post("/segment/colour/batch", files={"image": encode(picture())})
    for response in (await client.get("/readyz"), await post(client), batch):
        problem(response, "not-ready")
        assert response.headers["retry-after"] == "1"
    assert (await client.get("/healthz")).status_code == 200
    stuck(checkpoints).is_free.set()
    assert (await accepted).status_code == 200


async def test_a_client_that_hangs_up_frees_its_place(
    client: httpx.AsyncClient, app: FastAPI, checkpoints: list[Checkpoint]
) -> None:
    model = stuck(checkpoints)
    model.decoded_rows.clear()
    model.is_free.clear()
    running = asyncio.ensure_future(post(client, "stuck"))
    await until(lambda: model.decoded_rows == [1])
    hang_up = asyncio.Event()
    leaving, sent = post_until(hang_up, app, "/segment/stuck", "image/png", encode(picture()))
    await until_held(app, 2)
    hang_up.set()
    await asyncio.wait_for(leaving, 5)
    assert sent[0]["status"] == errors.CLIENT_CLOSED_REQUEST
    assert app.state.service.pipelines["stuck"].in_flight == 1
    model.is_free.set()
    assert (await running).status_code == 200
    await post(client, "stuck")
    assert model.decoded_rows == [1, 1]  # the one that left never ran


async def test_every_problem_type_has_a_page(client: httpx.AsyncClient) -> None:
    told = " ".join((errors.__doc__ or "").split())
    for slug, kind in errors.PROBLEMS.items():
        assert f" {kind.__name__} {kind.status}" in told
        response = await client.get(f"/problems/{slug}")
        assert response.status_code == 200
        assert response.text == f"{kind.title} (HTTP {kind.status})\n\n{kind.about}\n"
    assert "got the problem type 'nope'" in problem(await client.get("/problems/nope"), "not-found")["detail"]


@pytest.mark.parametrize("path", ["/segment/colour", "/segment/colour/batch"])
async def test_a_refused_photo_is_let_go_at_once(client: httpx.AsyncClient, path: str) -> None:
    """Not when the garbage collector comes by: half photos came faster than that, and held gigabytes."""
    photo = encode(picture(60, 40), "JPEG")
    gc.collect()
    gc.disable()
    try:
        answer = await client.post(path, files={"image": photo[: len(photo) // 2]})
        assert "/problems/unsupported-image" in answer.text
        await asyncio.sleep(0)  # the event loop's turn that brought the exception holds it until it ends
        assert [each for each in gc.get_objects() if issubclass(type(each), (errors.Problem, ImageError))] == []
    finally:
        gc.enable()
