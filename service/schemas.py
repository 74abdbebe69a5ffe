"""Public JSON bodies and fields, nothing else. Values are those of a request's form or query, or of an answer."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]

IMAGE_ID_PATTERN = r"^sha256:[0-9a-f]{64}$"
MAX_TEXT_CHARACTERS = 500


class Output(StrEnum):
    """What comes back for one photo."""

    PNG = "png"
    RLE = "rle"
    POLYGONS = "polygons"
    GEOJSON = "geojson"
    YOLO = "yolo"
    VOC = "voc"
    OVERLAY = "overlay"
    CUTOUT = "cutout"
    PROBABILITY = "probability"


OUTLINES = frozenset({Output.POLYGONS, Output.GEOJSON, Output.YOLO})
"""The outputs that draw outlines, so that a tolerance changes them."""


class BatchOutput(StrEnum):
    """What comes back for many photos."""

    NDJSON = "ndjson"
    ZIP = "zip"


class Rle(StrEnum):
    """COCO run-length counts: one string, or a list of numbers."""

    COMPRESSED = "compressed"
    UNCOMPRESSED = "uncompressed"


class SegmentFields(BaseModel):
    """Fields of one request beside the photo, in the form or in the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: Annotated[
        str | None,
        Field(
            pattern=IMAGE_ID_PATTERN,
            description="`image.id` of an earlier answer instead of the image, while the server holds its features.",
        ),
    ] = None
    text: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_TEXT_CHARACTERS,
            description="Text prompt, for models that take one: a photo of a Siamese cat.",
        ),
    ] = None
    points: Annotated[
        str | None,
        Field(
            max_length=8192,
            description="Clicks as JSON, [[x, y, label], ...] in pixels of the upright photo, origin top left; label 1 "
            "is on the animal (also when left out), 0 is not.",
        ),
    ] = None
    x: Annotated[Finite | None, Field(description="With y: one click on the animal, in pixels.")] = None
    y: Annotated[Finite | None, Field(description="With x: one click on the animal, in pixels.")] = None
    output: Annotated[
        Output | None, Field(description="png unless the Accept header asks for application/json, which is rle.")
    ] = None
    rle: Annotated[Rle | None, Field(description="Form of the RLE counts, compressed unless said; implies rle.")] = None
    tolerance: Annotated[
        float | None,
        Field(
            ge=0,
            le=100,
            allow_inf_nan=False,
            description="For polygons, geojson and yolo: how far outlines may lie from the mask's edge, in pixels; "
            "the more, the fewer points. 0 unless said: the outlines fill to exactly the mask.",
        ),
    ] = None


class BatchFields(BaseModel):
    """Fields of one batch beside its photos, in the form or in the query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_TEXT_CHARACTERS, description="Text prompt for all photos."),
    ] = None
    output: Annotated[
        BatchOutput | None, Field(description="ndjson unless the Accept header asks for application/zip.")
    ] = None
    rle: Annotated[Rle | None, Field(description="Form of the RLE counts in ndjson, compressed unless said.")] = None


class ImageInfo(BaseModel):
    """The photo that was segmented."""

    id: str = Field(pattern=IMAGE_ID_PATTERN, description="sha256 of the upload's bytes")
    width: int
    height: int


class TextPromptInfo(BaseModel):
    """The words that the photo was segmented by."""

    kind: Literal["text"] = "text"
    text: str
    chosen_by: Literal["caller", "model"]


class PointPromptInfo(BaseModel):
    """The clicks that the photo was segmented by."""

    kind: Literal["points"] = "points"
    points: list[tuple[float, float, int]] = Field(description="[x, y, label] in pixels of the upright photo")
    chosen_by: Literal["caller"] = "caller"


class Segmentation(BaseModel):
    """COCO RLE, as pycocotools reads it."""

    size: tuple[int, int] = Field(description="[height, width]")
    counts: str | list[int]


class SegmentInfo(BaseModel):
    """One class's pixels."""

    label: str
    category_id: int = Field(description="value of these pixels in the PNG")
    score: float = Field(ge=0, le=1, description="mean probability over the segment")
    area: int
    bbox: tuple[int, int, int, int] = Field(description="[x, y, width, height] in pixels")
    segmentation: Segmentation | list[list[float]] = Field(
        description="RLE, or COCO polygons: [x, y, x, y, ...] in pixels for each connected piece, a hole joined to "
        "it by a cut of no width"
    )


class GeoJsonProperties(BaseModel):
    """What GeoJSON says of one class's pixels."""

    label: str
    category_id: int
    score: float = Field(ge=0, le=1)
    area: int
    bbox: tuple[int, int, int, int] = Field(description="[x, y, width, height] in pixels")


class MultiPolygon(BaseModel):
    """The pieces of one class, each an exterior ring and its holes, positions in pixels."""

    type: Literal["MultiPolygon"] = "MultiPolygon"
    coordinates: list[list[list[tuple[float, float]]]]


class GeoJsonFeature(BaseModel):
    """One class's pixels."""

    type: Literal["Feature"] = "Feature"
    geometry: MultiPolygon
    properties: GeoJsonProperties


class GeoJson(BaseModel):
    """A photo's segments as GeoJSON, but in pixels of the upright photo, y down, instead of degrees."""

    type: Literal["FeatureCollection"] = "FeatureCollection"
    features: list[GeoJsonFeature]


class SegmentAnswer(BaseModel):
    """One photo's segments."""

    model: str
    checkpoint: str = Field(description="sha256 of the checkpoint file")
    image: ImageInfo
    prompt: TextPromptInfo | PointPromptInfo | None
    segments: list[SegmentInfo]
    timing_ms: dict[str, float]


class PromptTaken(BaseModel):
    """What a model takes beside the image."""

    kind: Literal["none", "text", "points"]
    is_required: bool


class ModelSummary(BaseModel):
    """One line of the list of models."""

    name: str
    architecture: str
    summary: str
    prompt: PromptTaken
    class_names: list[str] = Field(description="class_names[k] is the class of pixel value k")
    image_size: int = Field(description="side of the square that the model sees, in pixels")
    checkpoint: str
    engine: str = Field(description="what runs the network, in which precision")
    keeps_images: bool = Field(description="whether image_id may stand in for an image sent before")
    url: str


class ModelList(BaseModel):
    """All loaded models, by name."""

    models: list[ModelSummary]


class ModelDetails(ModelSummary):
    """One model with the card of its checkpoint."""

    card: dict[str, Any]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ProblemError(BaseModel):
    """One wrong field."""

    pointer: str
    detail: str


class ProblemBody(BaseModel):
    """RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what was got, what was wanted, the fix")
    instance: str
    request_id: str
    errors: list[ProblemError] | None = None


class BatchPlace(BaseModel):
    """Which photo of a batch a line is about."""

    index: int = Field(description="place of the photo in the request, from 0")
    filename: str


class BatchAnswer(SegmentAnswer, BatchPlace):
    """One line of a batch's NDJSON: a photo's segments."""


class BatchProblem(BatchPlace):
    """One line of a batch's NDJSON: a photo that could not be segmented."""

    problem: ProblemBody
