"""POST /segment/{model} in the formats of other tools: each says what the plain mask shows."""

from typing import Any

import httpx
import numpy as np
import pytest

from service.schemas import GeoJson, SegmentAnswer
from tests.fakes import encode, fill_polygons, picture, read

pytestmark = pytest.mark.anyio

UPLOAD = encode(picture(90, 60))


async def post(client: httpx.AsyncClient, model: str = "colour", **fields: Any) -> httpx.Response:
    return await client.post(f"/segment/{model}", files={"image": UPLOAD}, data=fields)


@pytest.fixture
async def mask(client: httpx.AsyncClient) -> Any:
    return np.asarray(read((await post(client)).content))


async def test_polygons_are_coco_s(client: httpx.AsyncClient, mask: Any) -> None:
    response = await post(client, output="polygons")
    assert response.headers["content-type"] == "application/json"
    answer = SegmentAnswer.model_validate_json(response.content)
    assert [segment.label for segment in answer.segments] == ["cat", "dog"]
    for segment in answer.segments:
        assert isinstance(segment.segmentation, list)
        assert (fill_polygons(segment.segmentation, mask.shape) == (mask == segment.category_id)).all()
    rle = (await post(client, output="rle")).json()["segments"]
    without = [{**each, "segmentation": None} for each in response.json()["segments"]]
    assert without == [{**each, "segmentation": None} for each in rle]


async def test_yolo_lines_number_the_animals_from_zero(client: httpx.AsyncClient, mask: Any) -> None:
    response = await post(client, output="yolo")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    found = np.zeros_like(mask)
    for line in response.text.splitlines():
        index, *shares = line.split()
        points = (np.array(shares, dtype=float).reshape(-1, 2) * (90, 60)).ravel().tolist()
        found[fill_polygons([points], mask.shape)] = int(index) + 1
    assert (found == mask).all()
    assert set(np.unique(found)) == {0, 1, 2}


async def test_a_photo_without_animals_is_an_empty_label_file(client: httpx.AsyncClient) -> None:
    response = await post(client, "text", text="a horse", output="yolo")
    assert (response.status_code, response.content) == (200, b"")


async def test_geojson_says_what_rle_says(client: httpx.AsyncClient, mask: Any) -> None:
    response = await post(client, output="geojson")
    assert response.headers["content-type"] == "application/geo+json"
    features = GeoJson.model_validate_json(response.content).features
    rle = (await post(client, output="rle")).json()["segments"]
    for feature, segment in zip(features, rle, strict=True):
        assert {**feature.properties.model_dump(mode="json"), "segmentation": segment["segmentation"]} == segment
        filled = np.zeros(mask.shape, dtype=bool)
        for rings in feature.geometry.coordinates:
            for ring in rings:
                filled ^= fill_polygons([[value for point in ring[:-1] for value in point]], mask.shape)
        assert (filled == (mask == segment["category_id"])).all()


async def test_voc_has_the_same_values_in_the_palette_of_pascal(client: httpx.AsyncClient, mask: Any) -> None:
    image = read((await post(client, output="voc")).content)
    assert image.mode == "P"
    assert (np.asarray(image) == mask).all()
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert palette[[0, 1, 2, 8, 12, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [64, 0, 128], [192, 128, 128], [0, 64, 128], [224, 224, 192]
    ]  # fmt: skip


async def test_a_tolerance_gives_fewer_points(client: httpx.AsyncClient) -> None:
    exact = (await post(client, "click", x="30", y="30", output="polygons")).json()["segments"][0]
    rough = (await post(client, "click", x="30", y="30", output="polygons", tolerance="2")).json()["segments"][0]
    assert 6 <= len(rough["segmentation"][0]) < len(exact["segmentation"][0]) / 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"tolerance": "1"},
            "got tolerance=1 with output=png, wanted output=polygons or output=geojson or output=yolo",
        ),
        ({"tolerance": "1", "output": "rle"}, "got tolerance=1 with output=rle"),
        ({"tolerance": "-1", "output": "yolo"}, "got '-1'; Input should be greater than or equal to 0"),
        ({"tolerance": "nan", "output": "yolo"}, "got 'nan'; Input should be a finite number"),
        ({"rle": "compressed", "output": "polygons"}, "got rle=compressed with output=polygons, wanted output=rle"),
    ],
)
async def test_a_field_that_would_change_nothing_is_refused(
    client: httpx.AsyncClient, fields: dict[str, str], said: str
) -> None:
    response = await post(client, **fields)
    assert response.status_code == 422
    assert said in response.json()["detail"]
