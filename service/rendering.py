"""One prediction -> one answer in the wanted form. Runs on the image threads or their processes; the routes hand it to
the pipeline.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch

from models.letterbox import Array, Letterbox
from models.prompts import PointPrompt, Prompt, TextPrompt
from service import masks, outlines
from service.image_processes import ImageWork
from service.image_work import PhotoLimits, read_photo
from service.model_facts import ModelFacts
from service.predictor import Prediction, Prepared
from service.rle import compress_counts
from service.schemas import (
    OUTLINES,
    ImageInfo,
    Output,
    PointPromptInfo,
    Rle,
    Segmentation,
    SegmentInfo,
    TextPromptInfo,
)

MEDIA_TYPES = dict.fromkeys(Output, "image/png") | {
    Output.RLE: "application/json",
    Output.POLYGONS: "application/json",
    Output.GEOJSON: "application/geo+json",
    Output.YOLO: "text/plain; charset=utf-8",
}

Scores = npt.NDArray[np.float32]

PromptInfo = TextPromptInfo | PointPromptInfo | None


class Model(Protocol):
    """A model whose answers are drawn."""

    facts: ModelFacts
    limits: PhotoLimits
    work: ImageWork
    """Where they are drawn."""


@dataclass(frozen=True)
class Drawing:
    """What one photo came to: a body that is ready to send, or segments."""

    body: bytes = b""
    segments: tuple[SegmentInfo, ...] = ()


@dataclass(frozen=True)
class Drawer:
    """How answers are to be drawn: plain data, for any process."""

    output: Output
    rle: Rle
    class_names: tuple[str, ...]
    limits: PhotoLimits
    tolerance: float = 0.0
    """Outlines stay within so many pixels of the mask's edge."""

    @property
    def shows_photo(self) -> bool:
        """Whether the answer holds pixels of the photo."""
        return self.output in (Output.OVERLAY, Output.CUTOUT)

    def draw(self, scores: Scores, letterbox: Letterbox, upload: bytes | None) -> Drawing:
        """Draw one answer.

        scores: logits [K, s, s] float32, s <= S. upload: the photo, read where `shows_photo`.
        """
        logits, output = torch.from_numpy(scores), self.output
        if output is Output.PROBABILITY:
            return Drawing(masks.draw_probability(logits, letterbox))
        mask = letterbox.restore_mask(logits)
        if output is Output.PNG:
            return Drawing(masks.encode_png(mask))
        if output is Output.VOC:
            return Drawing(masks.encode_voc_png(mask))
        if output is Output.RLE or output in OUTLINES:
            found = [
                describe_segment(segment, self.class_names, self.rle)
                for segment in masks.find_segments(mask, logits, letterbox)
            ]
            if output is Output.RLE:
                return Drawing(segments=tuple(found))
            return draw_outlines(output, mask, found, self.tolerance)
        assert upload is not None
        photo, _ = read_photo(upload, self.limits)
        return Drawing(masks.draw_overlay(photo, mask) if output is Output.OVERLAY else masks.draw_cutout(photo, mask))


def drawer(output: Output, rle: Rle, model: Model, tolerance: float = 0.0) -> Callable[[Prepared, Prediction], Drawing]:
    """The function that draws `output` where `model` has its images worked on."""
    own = Drawer(output, rle, model.facts.class_names, model.limits, tolerance)

    def draw(prepared: Prepared, prediction: Prediction) -> Drawing:
        upload = prepared.upload if own.shows_photo else None
        return model.work.call(own.draw, prediction.logits.numpy(), prepared.letterbox, upload)

    return draw


def draw_outlines(output: Output, mask: Array, segments: list[SegmentInfo], tolerance: float) -> Drawing:
    """The `segments` of `mask` [H, W] as outlines: COCO polygons, YOLO labels or GeoJSON."""
    height, width = mask.shape
    traced = [(segment, outlines.trace(mask == segment.category_id, tolerance)) for segment in segments]
    if output is Output.POLYGONS:
        polygons = [
            segment.model_copy(update={"segmentation": outlines.coco_polygons(pieces)}) for segment, pieces in traced
        ]
        return Drawing(segments=tuple(polygons))
    if output is Output.YOLO:  # whose classes begin with the first animal: it has no background
        lines = [
            line
            for segment, pieces in traced
            for line in outlines.yolo_lines(pieces, segment.category_id - 1, (height, width))
        ]
        return Drawing("".join(f"{line}\n" for line in lines).encode())
    features = [
        {
            "type": "Feature",
            "geometry": outlines.geojson_geometry(pieces),
            "properties": segment.model_dump(mode="json", exclude={"segmentation"}),
        }
        for segment, pieces in traced
    ]
    return Drawing(json.dumps({"type": "FeatureCollection", "features": features}).encode())


def describe_segment(segment: masks.Segment, class_names: tuple[str, ...], rle: Rle) -> SegmentInfo:
    """`segment` as its public body."""
    counts = compress_counts(segment.counts) if rle is Rle.COMPRESSED else segment.counts
    return SegmentInfo(
        label=class_names[segment.category_id],
        category_id=segment.category_id,
        score=segment.score,
        area=segment.area,
        bbox=segment.bbox,
        segmentation=Segmentation(size=segment.size, counts=counts),
    )


def image_id(prepared: Prepared) -> str:
    """The photo's id as the API names it."""
    return f"sha256:{prepared.digest}"


def describe_image(prepared: Prepared) -> ImageInfo:
    """The photo's id and size."""
    height, width = prepared.letterbox.original_size
    return ImageInfo(id=image_id(prepared), width=width, height=height)


def describe_prompt(prompt: Prompt, chosen_prompt: str | None) -> PromptInfo:
    """The prompt that was used: the caller's, or the one that the model chose itself."""
    if isinstance(prompt, PointPrompt):
        clicks = [(x, y, label) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        return PointPromptInfo(points=clicks)
    if isinstance(prompt, TextPrompt):
        return TextPromptInfo(text=prompt.text, chosen_by="caller")
    return TextPromptInfo(text=chosen_prompt, chosen_by="model") if chosen_prompt is not None else None


def answer_headers(prepared: Prepared, prompt: PromptInfo, timing_ms: dict[str, float]) -> dict[str, str]:
    """What the JSON answer says, as far as a picture's headers can carry it; text is percent-encoded UTF-8."""
    headers = {
        "X-Image-Id": image_id(prepared),
        "Server-Timing": ", ".join(f"{name};dur={spent:.3f}" for name, spent in timing_ms.items()),
    }
    if isinstance(prompt, TextPromptInfo):
        headers |= {"X-Prompt": quote(prompt.text, safe=" ,.'"), "X-Prompt-Chosen-By": prompt.chosen_by}
    return headers
