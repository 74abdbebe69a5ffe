"""POST /segment/{model}: every output, every way to send, every prompt."""

import asyncio
import io
import json
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import Request

from models.checkpoint import Checkpoint
from models.letterbox import Letterbox, decode_image, image_tensor
from service.forms import read_batch, read_body
from tests.fakes import TextModel, decode_rle, encode, picture, read

pytestmark = pytest.mark.anyio

JSON = {"accept": "application/json"}


async def post(client: httpx.AsyncClient, model: str, upload: bytes | None, **fields: Any) -> httpx.Response:
    files = {"image": ("photo", upload)} if upload is not None else None
    return await client.post(f"/segment/{model}", files=files, data=fields)


def values(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return np.asarray(read(response.content))


async def test_png_is_the_mask_of_the_plain_model(client: httpx.AsyncClient, unet: Checkpoint) -> None:
    upload = encode(picture(90, 50), "JPEG")
    mask = values(await post(client, "unet", upload))
    photo, size = decode_image(upload)
    letterbox = Letterbox(size, 32)
    with torch.inference_mode():
        logits = unet.model(image_tensor(letterbox.apply_image(photo))[None], {})[0]
    assert mask.shape == (50, 90)
    assert set(np.unique(mask)) == {0, 1, 2}
    assert (mask == letterbox.restore_mask(logits)).mean() > 0.999


async def test_rle_says_what_the_png_shows(client: httpx.AsyncClient) -> None:
    upload = encode(picture(60, 40))
    mask = values(await post(client, "colour", upload))
    response = await post(client, "colour", upload, output="rle")
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert list(answer) == ["model", "checkpoint", "image", "prompt", "segments", "timing_ms"]
    assert answer["model"] == "colour"
    assert answer["checkpoint"].startswith("sha256:")
    assert answer["image"] == {"id": response.headers["x-image-id"], "width": 60, "height": 40}
    assert answer["prompt"] is None
    assert set(answer["timing_ms"]) == {"decode", "queue", "encode", "inference", "draw"}
    assert [(each["label"], each["category_id"]) for each in answer["segments"]] == [("cat", 1), ("dog", 2)]
    for each in answer["segments"]:
        found = decode_rle(**each["segmentation"])
        rows, columns = np.nonzero(found)
        assert (found == (mask == each["category_id"])).all()
        assert each["area"] == found.sum()
        x, y, width, height = each["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert 0.5 < each["score"] <= 1
        assert isinstance(each["segmentation"]["counts"], str)


async def test_uncompressed_rle(client: httpx.AsyncClient) -> None:
    upload = encode(picture(60, 40))
    compressed = (await post(client, "colour", upload, output="rle", rle="compressed")).json()
    plain = (await post(client, "colour", upload, rle="uncompressed")).json()
    for one, other in zip(plain["segments"], compressed["segments"], strict=True):
        counts = one["segmentation"]["counts"]
        assert sum(counts) == 60 * 40
        assert (decode_rle(**one["segmentation"]) == decode_rle(**other["segmentation"])).all()


async def test_overlay_cutout_and_probability(client: httpx.AsyncClient) -> None:
    photo = picture(60, 40)
    upload = encode(photo)
    mask = values(await post(client, "colour", upload))
    overlay = values(await post(client, "colour", upload, output="overlay"))
    cutout = values(await post(client, "colour", upload, output="cutout"))
    probability = values(await post(client, "colour", upload, output="probability"))
    pixels = np.asarray(photo)
    assert overlay.shape == (40, 60, 3)
    assert (overlay[mask == 0] == pixels[mask == 0]).all()
    assert (overlay[mask > 0] != pixels[mask > 0]).any(axis=1).all()
    assert ((cutout[..., 3] > 0) == (mask > 0)).all()
    assert (cutout[mask > 0][:, :3] == pixels[mask > 0]).all()
    assert probability.shape == (40, 60)
    assert probability[mask > 0].min() > probability[mask == 0].min()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("image/png, application/json", "image/png"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "image/png"),
    ],
)
async def test_accept_chooses_between_png_and_rle(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    response = await client.post(
        "/segment/colour", content=encode(picture()), headers={"content-type": "image/png", "accept": accept}
    )
    assert response.headers["content-type"] == kind


async def test_output_goes_before_accept(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/segment/colour?output=png", content=encode(picture()), headers={"content-type": "image/png"} | JSON
    )
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/whatever", "application/octet-stream", None])
async def test_a_raw_body_with_fields_in_the_query(client: httpx.AsyncClient, content_type: str | None) -> None:
    upload = encode(picture(60, 40))
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post("/segment/click?x=40&y=20&output=rle", content=upload, headers=headers)
    form = await post(client, "click", upload, x="40", y="20", output="rle")
    assert response.status_code == 200, response.text
    assert response.json()["segments"] == form.json()["segments"]
    assert response.json()["prompt"] == {"kind": "points", "points": [[40, 20, 1]], "chosen_by": "caller"}


async def test_a_form_with_fields_in_the_query(client: httpx.AsyncClient) -> None:
    response = await client.post("/segment/colour?output=rle", files={"image": encode(picture())})
    assert response.json()["model"] == "colour"


async def test_a_photo_above_one_megabyte_in_a_form(client: httpx.AsyncClient) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    upload = encode(Image.fromarray(noise))
    assert len(upload) > 1 << 20
    mask = values(await post(client, "colour", upload))
    assert mask.shape == (700, 700)


async def test_a_click_is_where_the_mask_is(client: httpx.AsyncClient) -> None:
    upload = encode(picture(200, 120))
    mask = values(await post(client, "click", upload, x="150", y="30"))
    rows, columns = np.nonzero(mask)
    assert set(np.unique(mask)) == {0, 1}
    assert abs(columns.mean() - 150) < 3
    assert abs(rows.mean() - 30) < 3


async def test_points_take_away_and_default_to_the_animal(client: httpx.AsyncClient) -> None:
    upload = encode(picture(200, 120))
    one = values(await post(client, "click", upload, points="[[150, 30]]"))
    both = values(await post(client, "click", upload, points="[[150, 30, 1], [170, 30, 0]]"))
    assert (one == values(await post(client, "click", upload, x="150", y="30"))).all()
    assert both.sum() < one.sum()
    assert both[30, 170] == 0


async def test_text_names_what_is_segmented(client: httpx.AsyncClient) -> None:
    upload = encode(picture(60, 40))
    for text, labels in (("a dog", ["dog"]), ("cat and dog", ["cat", "dog"]), ("a horse", [])):
        answer = (await post(client, "text", upload, text=text, output="rle")).json()
        assert [each["label"] for each in answer["segments"]] == labels
        assert answer["prompt"] == {"kind": "text", "text": text, "chosen_by": "caller"}


async def test_a_model_names_the_prompt_it_chose(client: httpx.AsyncClient) -> None:
    upload = encode(picture(60, 40))
    answer = (await post(client, "text", upload, output="rle")).json()
    assert answer["prompt"] == {"kind": "text", "text": TextModel.own_prompt, "chosen_by": "model"}
    assert [each["label"] for each in answer["segments"]] == ["cat"]
    headers = (await post(client, "text", upload)).headers
    assert unquote(headers["x-prompt"]) == TextModel.own_prompt
    assert headers["x-prompt-chosen-by"] == "model"


async def test_image_id_stands_in_for_the_image(client: httpx.AsyncClient) -> None:
    upload = encode(picture(200, 120))
    first = await post(client, "click", upload, x="150", y="30")
    image_id = first.headers["x-image-id"]
    for output in ("png", "overlay", "cutout", "probability"):
        with_image = await post(client, "click", upload, x="20", y="90", output=output)
        by_form = await post(client, "click", None, image_id=image_id, x="20", y="90", output=output)
        by_query = await client.post(f"/segment/click?image_id={image_id}&x=20&y=90&output={output}")
        assert values(by_form).shape[:2] == (120, 200)
        assert with_image.content == by_form.content == by_query.content
        assert by_form.headers["x-image-id"] == image_id
    answer = (await post(client, "click", None, image_id=image_id, x="20", y="90", output="rle")).json()
    assert answer["image"] == {"id": image_id, "width": 200, "height": 120}
    assert answer["timing_ms"]["encode"] == 0


async def test_models_on_one_tower_share_image_ids(client: httpx.AsyncClient) -> None:
    image_id = (await post(client, "click", encode(picture()), x="5", y="5")).headers["x-image-id"]
    response = await post(client, "text", None, image_id=image_id, text="a cat", output="rle")
    assert response.json()["timing_ms"]["encode"] == 0


async def test_answers_tell_their_timing(client: httpx.AsyncClient) -> None:
    timing = (await post(client, "colour", encode(picture()))).headers["server-timing"]
    names = [part.split(";dur=")[0] for part in timing.split(", ")]
    assert names == ["decode", "queue", "encode", "inference", "draw", "total"]
    assert all(float(part.split(";dur=")[1]) >= 0 for part in timing.split(", "))


async def test_request_ids_are_given_or_taken(client: httpx.AsyncClient) -> None:
    assert len((await client.get("/healthz")).headers["x-request-id"]) == 32
    assert (await client.get("/healthz", headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
    refused = await client.get("/healthz", headers={"x-request-id": "not a word"})
    assert refused.headers["x-request-id"] != "not a word"


SAVED: list[tuple[str, str, dict[str, Any]]] = [
    ("RGB", "JPEG", {"quality": 95}),
    ("L", "JPEG", {}),
    ("CMYK", "JPEG", {"quality": 95}),
    ("RGBA", "PNG", {}),
    ("LA", "PNG", {}),
    ("P", "PNG", {}),
    ("1", "PNG", {}),
    ("P", "GIF", {}),
    ("RGB", "WEBP", {"lossless": True}),
    ("RGBA", "WEBP", {"lossless": True}),
    ("RGB", "BMP", {}),
    ("RGB", "TIFF", {}),
    ("CMYK", "TIFF", {}),
]


@pytest.mark.parametrize(("mode", "kind", "options"), SAVED, ids=[f"{mode}-{kind}" for mode, kind, _ in SAVED])
@pytest.mark.parametrize("size", [(60, 40), (1, 1)])
async def test_formats_and_modes(
    client: httpx.AsyncClient, mode: str, kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    upload = encode(picture(*size).convert(mode), kind, **options)
    for output in ("png", "overlay", "cutout"):
        drawn = values(await post(client, "colour", upload, output=output))
        assert drawn.shape[:2] == size[::-1]
    if mode in ("RGB", "RGBA", "P", "CMYK") and size == (60, 40):
        wanted = values(await post(client, "colour", encode(picture(*size))))
        assert (values(await post(client, "colour", upload)) == wanted).mean() > 0.97


async def test_sixteen_bit_grey(client: httpx.AsyncClient) -> None:
    ramp = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        assert values(await post(client, "unet", encode(Image.fromarray(ramp), kind))).shape == (40, 60)


async def test_the_first_frame_of_an_animation(client: httpx.AsyncClient) -> None:
    upload = encode(picture(60, 40), "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), "green")])
    answer = (await post(client, "colour", upload, output="rle")).json()
    assert [each["label"] for each in answer["segments"]] == ["cat", "dog"]


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_exif_orientation_is_applied_to_masks_and_clicks(client: httpx.AsyncClient, orientation: int) -> None:
    upright = picture(60, 40)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    upload = encode(stored, "PNG", exif=exif)
    assert read(upload).size == stored.size
    for fields in ({"model": "colour"}, {"model": "click", "x": "50", "y": "10"}):
        for output in ("png", "overlay"):
            turned = values(await post(client, upload=upload, output=output, **fields))
            assert (turned == values(await post(client, upload=encode(upright), output=output, **fields))).all()


async def test_transparency_lies_on_white(client: httpx.AsyncClient) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    overlay = values(await post(client, "colour", encode(clear), output="probability"))
    white = values(await post(client, "colour", encode(Image.new("RGB", (20, 20), "white")), output="probability"))
    assert (overlay == white).all()


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (2, 3)])
async def test_odd_shapes(client: httpx.AsyncClient, size: tuple[int, int]) -> None:
    upload = encode(picture(*size))
    for output in ("png", "overlay", "cutout", "probability"):
        assert values(await post(client, "unet", upload, output=output)).shape[:2] == size[::-1]


async def test_concurrent_requests_share_batches_and_get_their_own_answers(client: httpx.AsyncClient) -> None:
    uploads = [encode(picture(40 + 7 * seed, 90 - 8 * seed, seed)) for seed in range(8)]
    alone = [(await post(client, "colour", upload, output="rle")).json() for upload in uploads]
    together = await asyncio.gather(*(post(client, "colour", upload, output="rle") for upload in uploads))
    for one, response in zip(alone, together, strict=True):
        assert response.json()["segments"] == one["segments"]
        assert response.json()["image"] == one["image"]


async def test_json_of_the_answer_is_plain(client: httpx.AsyncClient) -> None:
    response = await post(client, "click", encode(picture()), points="[[1, 2, 1], [3.5, 4]]", output="rle")
    assert json.load(io.BytesIO(response.content))["prompt"]["points"] == [[1, 2, 1], [3.5, 4, 1]]


def request_of(body: bytes, content_type: str) -> Request:
    """A request whose body has come already, in chunks as a server hands them on."""
    chunks = [body[at : at + (1 << 16)] for at in range(0, len(body), 1 << 16)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    return Request({"type": "http", "method": "POST", "headers": headers, "query_string": b""}, receive)


class LoopTurns:
    """How often others had their turn on the event loop meanwhile."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> "LoopTurns":
        self._task = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _go_on(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def test_between_the_photos_of_a_batch_others_have_their_turn() -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\nxyz\r\n'
    async with LoopTurns() as turns:
        uploads, _ = await read_batch(request_of(40 * part + b"--b--", "multipart/form-data; boundary=b"), 1 << 20, 40)
    assert [upload.data for upload in uploads] == 40 * [b"xyz"]
    assert turns.count >= 40


async def test_a_large_body_is_joined_beside_the_event_loop() -> None:
    body = bytes(range(256)) * (1 << 14)
    async with LoopTurns() as turns:
        assert await read_body(request_of(body, "image/jpeg"), 1 << 23) == body
    assert turns.count > 0
