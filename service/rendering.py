"""One prediction -> one answer in the wanted form. Runs in the thread pool; the routes hand it to the pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from models.letterbox import decode_image
from models.prompts import PointPrompt, Prompt, TextPrompt
from service import masks
from service.predictor import Prediction, Predictor, Prepared
from service.schemas import ImageInfo, Output, PointPromptInfo, Rle, Segmentation, SegmentInfo, TextPromptInfo

PNG = "image/png"

PromptInfo = TextPromptInfo | PointPromptInfo | None


@dataclass(frozen=True)
class Drawing:
    """What one photo came to: a picture, or segments."""

    picture: bytes = b""
    segments: tuple[SegmentInfo, ...] = ()


def drawer(output: Output, rle: Rle, predictor: Predictor) -> Callable[[Prepared, Prediction], Drawing]:
    """The function that draws `output`."""

    def draw(prepared: Prepared, prediction: Prediction) -> Drawing:
        logits, letterbox = prediction.logits, prepared.letterbox
        if output is Output.PROBABILITY:
            return Drawing(masks.draw_probability(logits, letterbox))
        mask = letterbox.restore_mask(logits)
        if output is Output.PNG:
            return Drawing(masks.encode_png(mask))
        if output is Output.RLE:
            found = masks.find_segments(mask, logits, letterbox)
            return Drawing(segments=tuple(describe_segment(segment, predictor.class_names, rle) for segment in found))
        photo, _ = decode_image(prepared.upload, max_pixels=predictor.max_pixels)
        picture = masks.draw_overlay(photo, mask) if output is Output.OVERLAY else masks.draw_cutout(photo, mask)
        return Drawing(picture)

    return draw


def describe_segment(segment: masks.Segment, class_names: tuple[str, ...], rle: Rle) -> SegmentInfo:
    """`segment` as its public body."""
    counts = masks.compress_counts(segment.counts) if rle is Rle.COMPRESSED else segment.counts
    return SegmentInfo(
        label=class_names[segment.category_id],
        category_id=segment.category_id,
        score=segment.score,
        area=segment.area,
        bbox=segment.bbox,
        segmentation=Segmentation(size=segment.size, counts=counts),
    )


def describe_image(prepared: Prepared) -> ImageInfo:
    """The photo's id and size."""
    height, width = prepared.letterbox.original_size
    return ImageInfo(id=f"sha256:{prepared.digest}", width=width, height=height)


def describe_prompt(prompt: Prompt, chosen_prompt: str | None) -> PromptInfo:
    """The prompt that was used: the caller's, or the one that the model chose itself."""
    if isinstance(prompt, PointPrompt):
        clicks = [(x, y, label) for (x, y), label in zip(prompt.points, prompt.labels, strict=True)]
        return PointPromptInfo(points=clicks)
    if isinstance(prompt, TextPrompt):
        return TextPromptInfo(text=prompt.text, chosen_by="caller")
    return TextPromptInfo(text=chosen_prompt, chosen_by="model") if chosen_prompt is not None else None


def answer_headers(image: ImageInfo, prompt: PromptInfo, timing_ms: dict[str, float]) -> dict[str, str]:
    """What the JSON answer says, as far as a picture's headers can carry it; text is percent-encoded UTF-8."""
    headers = {
        "X-Image-Id": image.id,
        "Server-Timing": ", ".join(f"{name};dur={spent:.3f}" for name, spent in timing_ms.items()),
    }
    if isinstance(prompt, TextPromptInfo):
        headers |= {"X-Prompt": quote(prompt.text, safe=" ,.'"), "X-Prompt-Chosen-By": prompt.chosen_by}
    return headers
