"""What a run over many photos writes: a file for each photo, and files that tell of all of them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from service.schemas import Output, SegmentAnswer, Segmentation


class Result(StrEnum):
    """What `petseg segment` can write: each output of the service for each photo, and files for all photos."""

    PNG = "png"
    OVERLAY = "overlay"
    CUTOUT = "cutout"
    PROBABILITY = "probability"
    VOC = "voc"
    YOLO = "yolo"
    POLYGONS = "polygons"
    RLE = "rle"
    GEOJSON = "geojson"
    COCO = "coco"
    COCO_POLYGONS = "coco-polygons"
    CSV = "csv"

    @property
    def output(self) -> Output:
        """What to ask of the service for each photo's file."""
        return Output(self.value)

    @property
    def suffix(self) -> str | None:
        """Ending of each photo's file; None for a file that tells of all photos."""
        if self in (Result.COCO, Result.COCO_POLYGONS, Result.CSV):
            return None
        others = {Result.YOLO: ".txt", Result.POLYGONS: ".json", Result.RLE: ".json", Result.GEOJSON: ".geojson"}
        return others.get(self, ".png")


@dataclass(frozen=True)
class Answered:
    """One photo and its segments."""

    photo: str
    answer: SegmentAnswer


_COLUMNS = ["photo", "width", "height", "label", "area", "share", "score", "x", "y", "box_width", "box_height"]
"""Of areas.csv; `share` is that of the photo, x to box_height the smallest box around the class, in pixels."""


def files_of_all(result: Result, answered: Sequence[Answered], class_names: Sequence[str]) -> dict[str, bytes]:
    """The files, by name, that tell of all photos or go along with those of each."""
    if result in (Result.COCO, Result.COCO_POLYGONS):
        return {"annotations.json": json.dumps(coco_document(answered, class_names)).encode()}
    if result is Result.CSV:
        return {"areas.csv": areas_table(answered, class_names).encode()}
    if result is Result.YOLO:  # the line of a name is its number, as in the labels
        return {"classes.txt": "".join(f"{name}\n" for name in class_names[1:]).encode()}
    return {}


def coco_document(answered: Sequence[Answered], class_names: Sequence[str]) -> dict[str, Any]:
    """COCO's instances format: one annotation for each class in each photo."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, each in enumerate(answered, start=1):
        image = each.answer.image
        images.append({"id": image_id, "file_name": each.photo, "width": image.width, "height": image.height})
        for segment in each.answer.segments:
            found = segment.segmentation
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": segment.category_id,
                    "segmentation": found.model_dump(mode="json") if isinstance(found, Segmentation) else found,
                    "area": segment.area,
                    "bbox": list(segment.bbox),
                    "iscrowd": 0,
                    "score": segment.score,
                }
            )
    categories = [
        {"id": index, "name": name, "supercategory": "animal"} for index, name in enumerate(class_names) if index
    ]
    info = {"description": "masks by petseg", "version": "1.0"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def areas_table(answered: Sequence[Answered], class_names: Sequence[str]) -> str:
    """CSV with one row for each photo and class, so that a class that is not there is a 0 and no gap."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for each in answered:
        image = each.answer.image
        found = {segment.category_id: segment for segment in each.answer.segments}
        for category_id, label in enumerate(class_names):
            if category_id == 0:
                continue
            place = [each.photo, image.width, image.height, label]
            if segment := found.get(category_id):
                share = round(segment.area / (image.width * image.height), 6)
                table.writerow([*place, segment.area, share, segment.score, *segment.bbox])
            else:
                table.writerow([*place, 0, 0, "", "", "", "", ""])
    return text.getvalue()
