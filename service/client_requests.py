"""Requests as the client sends them and answers as it reads them, the same for the blocking and the async one."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ValidationError

from service.schemas import BatchAnswer, BatchProblem, Output, ProblemBody, Rle

SERVER_VARIABLE = "PETSEG_SERVER"
"""Environment variable of the command line: where the server is."""
API_KEY_VARIABLE = "PETSEG_API_KEY"
"""Environment variable of the command line: the key that the server asks for."""

Photo = bytes | Path
"""An image file's content, or where it lies."""
Click = tuple[float, float] | tuple[float, float, int]
"""(x, y) on the animal, or (x, y, 1) on it and (x, y, 0) beside it; pixels of the upright photo, origin top left."""


class ClientError(Exception):
    """A request that gave no mask."""


class RefusedError(ClientError):
    """The service's own refusal; `problem` tells got, wanted and fix."""

    def __init__(self, problem: ProblemBody) -> None:
        super().__init__(f"{problem.title} ({problem.status}): {problem.detail}")
        self.problem = problem


class UnreachableError(ClientError):
    """No answer came, after all tries."""


class Asked(TypedDict, total=False):
    """What may be asked of a model beside the photo; a model takes a text, or points, or neither."""

    image_id: str
    """`answer.image.id` of an earlier answer, instead of the photo."""
    text: str
    points: Sequence[Click]


class AskedOutlines(Asked, total=False):
    """The same for answers that may hold outlines."""

    tolerance: float
    """How far they may lie from the mask's edge, in pixels; 0 unless said."""


class AskedSegments(AskedOutlines, total=False):
    """The same for answers in JSON."""

    rle: Rle


def segment_request(model: str, photo: Photo | None, output: Output, **asked: Unpack[AskedSegments]) -> dict[str, Any]:
    """Arguments of httpx's `build_request`: the photo as the body, all else in the query."""
    fields: dict[str, Any] = {"output": output.value, **asked}
    if "points" in asked:
        fields["points"] = json.dumps([list(point) for point in asked["points"]])
    arguments: dict[str, Any] = {"method": "POST", "url": f"/segment/{model}", "params": fields}
    if photo is not None:
        content = photo.read_bytes() if isinstance(photo, Path) else photo
        arguments |= {"content": content, "headers": {"Content-Type": "application/octet-stream"}}
    return arguments


def batch_request(model: str, photos: Iterable[Photo], text: str | None) -> dict[str, Any]:
    """Arguments of httpx's `build_request` for many photos, each under its file's name or its place."""
    files = [
        ("image", (photo.name, photo.read_bytes()) if isinstance(photo, Path) else (str(index), photo))
        for index, photo in enumerate(photos)
    ]
    fields = {"text": text} if text is not None else {}
    return {"method": "POST", "url": f"/segment/{model}/batch", "files": files, "data": fields}


def read_problem(response: httpx.Response) -> ProblemBody:
    """The problem of a refusal; one made up from the status where something before the service answered."""
    try:
        return ProblemBody.model_validate_json(response.content)
    except ValidationError:
        said = " ".join(response.text.split())[:200]
        return ProblemBody(
            type="about:blank",
            title=response.reason_phrase or "No success",
            status=response.status_code,
            detail=f"got an answer that is not petseg's: {said!r}; check the server's address",
            instance=response.request.url.path,
            request_id=response.headers.get("x-request-id", ""),
        )


def read_line(line: str) -> BatchAnswer | BatchProblem:
    """One line of a batch's answer."""
    kind = BatchProblem if "problem" in json.loads(line) else BatchAnswer
    return kind.model_validate_json(line)


def read_mask(png: bytes) -> npt.NDArray[np.uint8]:
    """Indexed PNG -> mask [H, W] uint8 of class indices."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image, dtype=np.uint8)
