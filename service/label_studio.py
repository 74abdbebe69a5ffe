"""Label Studio's words: its labelling configuration, its clicks, and masks as its tools read them."""

import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.prompts import MAX_POINTS, PointPrompt
from service.brush_rle import encode_brush
from service.errors import InvalidRequest, pointer
from service.outlines import trace
from service.rle import BoolMask

_MAX_CONFIG_CHARACTERS = 1 << 17
_POLYGON_TOLERANCE = 1.0
"""Pixels: a polygon that a person will drag at its points must not have one for each pixel of the edge."""

Percent = Annotated[float, Field(allow_inf_nan=False)]


class LabelStudioTask(BaseModel):
    """One task: what it labels stands in `data`, under the name that the labelling configuration gives it."""

    model_config = ConfigDict(extra="ignore")

    id: int | None = None
    data: dict[str, Any]


class RegionValue(BaseModel):
    """Where a region lies, in percent of the image's sides."""

    model_config = ConfigDict(extra="allow")

    x: Percent = 0
    y: Percent = 0
    width: Percent = 0
    height: Percent = 0


class Region(BaseModel):
    """What a person just drew: a click (KeyPointLabels), or a box (RectangleLabels)."""

    model_config = ConfigDict(extra="ignore")

    type: str
    value: RegionValue
    original_width: int = Field(gt=0)
    original_height: int = Field(gt=0)
    is_positive: bool = True


class Context(BaseModel):
    """The regions of an interactive request."""

    model_config = ConfigDict(extra="ignore")

    result: list[Region] = Field(default_factory=list, max_length=MAX_POINTS)


class PredictParams(BaseModel):
    """What goes along with the tasks."""

    model_config = ConfigDict(extra="ignore")

    context: Context | None = None


class PredictRequest(BaseModel):
    """POST /predict of Label Studio's ML backend contract."""

    model_config = ConfigDict(extra="ignore")

    tasks: list[LabelStudioTask] = Field(min_length=1)
    label_config: str = Field(max_length=_MAX_CONFIG_CHARACTERS)
    params: PredictParams | None = None


class SetupRequest(BaseModel):
    """POST /setup: `schema_` is the labelling configuration. The host and token in it are not used."""

    model_config = ConfigDict(extra="ignore")

    schema_: str = Field(alias="schema", max_length=_MAX_CONFIG_CHARACTERS)


class BackendHealth(BaseModel):
    """GET /health."""

    status: Literal["UP"] = "UP"
    model_class: str


class ModelVersion(BaseModel):
    """Answer to POST /setup."""

    model_version: str


class LabelStudioPrediction(BaseModel):
    """One task's regions; a task that failed beside others has `error` and no `result`."""

    result: list[dict[str, Any]] | None = None
    score: float = 0.0
    model_version: str
    error: str | None = None


class LabelStudioPredictions(BaseModel):
    """Answer to POST /predict: one entry for each task, in order."""

    results: list[LabelStudioPrediction]
    model_version: str


@dataclass(frozen=True)
class Labelling:
    """What of a labelling configuration matters here."""

    image_tag: str
    image_key: str
    """Under which name a task's data holds the image."""
    control_tag: str
    kind: Literal["brushlabels", "polygonlabels"]
    labels: dict[str, str]
    """Label by each name that may stand for it, in lower case: its own, and those of its `predicted_values`."""

    def label_of(self, class_name: str, chosen: str | None) -> str | None:
        """The label for a class of the model; for one without a name of its own, the label that the person chose."""
        if class_name.lower() in self.labels:
            return self.labels[class_name.lower()]
        if class_name != "object":
            return None
        return self.labels.get((chosen or "").lower()) or next(iter(self.labels.values()))


def read_labelling(config: str, class_names: Sequence[str]) -> Labelling:
    """The first image of a labelling configuration, and its BrushLabels or PolygonLabels. Raises InvalidRequest.

    class_names: the model's, of which at least one must have a label.
    """
    if "<!" in config.replace("<!--", ""):
        raise _wrong("got a labelling configuration with a document type, wanted plain tags")
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise _wrong(f"got a labelling configuration that is no XML ({error})") from error
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
    for name in ("BrushLabels", "PolygonLabels"):
        for control in root.iter(name):
            image_tag = control.get("toName", "")
            if images.get(image_tag, "").startswith("$"):
                labels = _labels_of(control)
                animals = class_names[1:]
                if not labels or not ("object" in animals or any(animal in labels for animal in animals)):
                    got = ", ".join(list(labels)[:20]) or "none"
                    raise _wrong(
                        f"got {name} for {got}, wanted a Label for {' or '.join(animals)}; "
                        'name one so, or add predicted_values="cat" to it'
                    )
                kind: Literal["brushlabels", "polygonlabels"] = (
                    "brushlabels" if name == "BrushLabels" else "polygonlabels"
                )
                key = images[image_tag].removeprefix("$")
                return Labelling(image_tag, key, control.get("name", ""), kind, labels)
    raise _wrong('got no BrushLabels nor PolygonLabels toName an <Image value="$...">, wanted one of them')


def read_clicks(context: Context | None) -> tuple[PointPrompt | None, str | None]:
    """What a person drew as clicks in pixels, or None, and the label they chose.

    A box is a click at its middle. Percentages run over the image's edges; clicks name pixels by their middle.
    """
    points, labels, chosen = [], [], None
    for region in context.result if context is not None else []:
        value = region.value
        half = 0.5 if region.type.startswith("rectangle") else 0.0  # a click's width is that of its dot on the screen
        x = (value.x + half * value.width) / 100 * region.original_width - 0.5
        y = (value.y + half * value.height) / 100 * region.original_height - 0.5
        points.append((_clamp(x, region.original_width - 1), _clamp(y, region.original_height - 1)))
        labels.append(int(region.is_positive))
        names = (value.model_extra or {}).get(region.type)
        if isinstance(names, list) and names and isinstance(names[0], str):
            chosen = names[0]
    return (PointPrompt(tuple(points), tuple(labels)) if points else None), chosen


def draw_regions(mask: BoolMask, label: str, score: float, labelling: Labelling) -> list[dict[str, Any]]:
    """A class's pixels as regions of Label Studio: one brush stroke, or a polygon for each piece (holes are lost)."""
    height, width = mask.shape
    if labelling.kind == "brushlabels":
        values: list[dict[str, Any]] = [{"format": "rle", "rle": encode_brush(mask)}]
    else:
        values = [
            {"points": (100 * outline.exterior / (width, height)).round(4).tolist(), "closed": True}
            for outline in trace(mask, _POLYGON_TOLERANCE)
        ]
    return [
        {
            "id": uuid.uuid4().hex[:10],
            "from_name": labelling.control_tag,
            "to_name": labelling.image_tag,
            "type": labelling.kind,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, labelling.kind: [label]},
            "score": score,
            "readonly": False,
        }
        for value in values
    ]


def _labels_of(control: ElementTree.Element) -> dict[str, str]:
    labels: dict[str, str] = {}
    for tag in control.iter("Label"):
        value = tag.get("value", "")
        for name in [value, *tag.get("predicted_values", "").split(",")]:
            if name.strip():
                labels.setdefault(name.strip().lower(), value)
    return labels


def _clamp(value: float, highest: float) -> float:
    return min(max(value, 0.0), highest)


def _wrong(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[{"pointer": pointer("label_config"), "detail": detail}])
