"""An HTTP request -> the photos and fields it carries, checked. All refusals of what was sent begin here.

Fields may stand in a form or in the query; the photo in a form part or as the whole body. Nothing touches the disk.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from models.prompts import PointPrompt, Prompt, TextPrompt
from service.errors import BodyTooLarge, InvalidRequest, UnsupportedBody, pointer
from service.multipart import CharsetError, FormReader, MultipartError, TooManyFilesError
from service.schemas import BatchFields, SegmentFields
from service.settings import Settings

Fields = TypeVar("Fields", bound=BaseModel)

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
OCTETS = "application/octet-stream"

_MAX_FORM_BYTES = 64 << 10
"""A form without a photo holds a prompt and no more."""

_LARGE_BODY_BYTES = 1 << 20
"""From here on pieces are joined on a thread: a millisecond for each megabyte, in which nobody would be answered."""

_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
"""One that does not end goes on to the end: a parser meets nothing behind it."""


@dataclass(frozen=True)
class Upload:
    """One file as it was sent."""

    filename: str
    data: bytes


async def read_segment(request: Request, max_body_bytes: int) -> tuple[Upload | None, SegmentFields]:
    """The photo, or None where an image id stands in for it, and the fields of one request."""
    uploads, given = await _read(request, max_body_bytes, max_images=1, takes_raw=True)
    fields = _check(SegmentFields, given)
    if not uploads and fields.image_id is None:
        raise _invalid("image", "got no image; send a file part named image, a raw image body, or an image_id")
    if uploads and fields.image_id is not None:
        raise _invalid("image_id", "got an image and an image_id; send one of them")
    return (uploads[0] if uploads else None), fields


async def read_batch(request: Request, max_body_bytes: int, max_images: int) -> tuple[list[Upload], BatchFields]:
    """The photos and the shared fields of a batch."""
    uploads, given = await _read(request, max_body_bytes, max_images, takes_raw=False)
    for name, _ in given:
        if name in ("points", "x", "y"):
            advice = "clicks belong to one image; send each image with its own clicks to /segment/{model}"
            raise _invalid(name, f"got {name} in a batch; {advice}")
    fields = _check(BatchFields, given)
    if not uploads:
        raise _invalid("image", "got no image; send one file part named image for each photo")
    return uploads, fields


def read_prompt(fields: SegmentFields, settings: Settings) -> Prompt:
    """The prompt that the fields carry, within the limits of `settings`, or None."""
    clicks = [name for name in ("points", "x", "y") if getattr(fields, name) is not None]
    if fields.text is not None:
        if clicks:
            raise _invalid("text", f"got text and {' and '.join(clicks)}; a model takes one kind of prompt, send one")
        return read_text(fields.text, settings.max_text_characters)
    if fields.points is not None:
        if len(clicks) > 1:
            raise _invalid("points", "got points and x, y; put all clicks into points")
        return parse_points(fields.points, settings.max_points, settings.max_json_depth)
    if fields.x is not None and fields.y is not None:
        return PointPrompt(((fields.x, fields.y),), (1,))
    if clicks:
        missing = "y" if clicks == ["x"] else "x"
        raise _invalid(missing, f"got {clicks[0]} without {missing}; a click has both")
    return None


def read_text(text: str, max_characters: int) -> TextPrompt:
    """The text prompt, without the space around it."""
    if len(text) > max_characters:
        raise _invalid("text", f"got a text of {len(text)} characters, wanted at most {max_characters}; shorten it")
    if not text.strip():
        raise _invalid("text", "got blank text, wanted words such as a photo of a Siamese cat; or leave it out")
    return TextPrompt(text.strip())


def parse_points(text: str, max_points: int, max_depth: int) -> PointPrompt:
    """JSON [[x, y], ...] or [[x, y, label], ...] -> clicks; the label is 1 where it is left out."""
    wanted = "wanted JSON such as [[120, 80, 1], [30, 40, 0]]: x, y in pixels, then 1 on the animal or 0 not"
    if (depth := count_depth(text)) > max_depth:
        raise _invalid("points", f"got brackets {depth} deep, wanted at most {max_depth}; {wanted}")
    try:
        rows = json.loads(text)
    except ValueError:
        raise _invalid("points", f"got {_shorten(text)}, which is no JSON; {wanted}") from None
    if not isinstance(rows, list):
        raise _invalid("points", f"got {_shorten(text)}; {wanted}")
    if len(rows) > max_points:
        raise _invalid("points", f"got {len(rows)} points; give 1 to {max_points}")
    points, labels = [], []
    for index, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) in (2, 3) and all(_is_number(value) for value in row)):
            raise _invalid(pointer("points", index), f"got {_shorten(json.dumps(row))}; {wanted}")
        points.append((float(row[0]), float(row[1])))
        labels.append(row[2] if len(row) == 3 else 1)
    try:
        return PointPrompt(tuple(points), tuple(labels))
    except ValueError as error:
        raise _invalid("points", str(error)) from error


def count_depth(text: str) -> int:
    """How deep JSON's brackets stand within brackets, told without parsing it: a parser recurses that far."""
    depth = deepest = 0
    for character in _JSON_STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


async def _read(
    request: Request, max_body_bytes: int, max_images: int, takes_raw: bool
) -> tuple[list[Upload], list[tuple[str, str]]]:
    """(photos, fields as sent, those of the query included)."""
    given = request.query_params.multi_items() if request.scope["query_string"] else []
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == MULTIPART:
        uploads, fields = await _read_multipart(request, max_body_bytes, max_images)
        return uploads, given + fields
    if media_type == URLENCODED:
        return [], given + _parse_form(await read_body(request, max_body_bytes))
    if media_type in ("", OCTETS) or media_type.startswith("image/"):
        body = await read_body(request, max_body_bytes)
        if takes_raw:
            return ([Upload("", body)] if body else []), given
        if not body:
            return [], given
    wanted = [MULTIPART, *(["image/*", OCTETS] if takes_raw else [])]
    raise UnsupportedBody(
        f"got Content-Type {media_type or 'none'!r}, wanted {' or '.join(wanted)}; for example curl -F image=@cat.jpg"
    )


async def _read_multipart(
    request: Request, max_body_bytes: int, max_images: int
) -> tuple[list[Upload], list[tuple[str, str]]]:
    try:
        reader = FormReader(
            request.headers["content-type"], max_files=max_images, max_fields=64, max_field_bytes=_MAX_FORM_BYTES
        )
        async for chunk in limit_bytes(request, max_body_bytes):
            reader.feed(chunk)
        parts = reader.finish()
    except CharsetError as error:
        detail = f"got a form with charset {_shorten(str(error))}, wanted utf-8; leave charset out"
        raise UnsupportedBody(detail) from error
    except TooManyFilesError as error:
        advice = "; send many to /segment/{model}/batch" if max_images == 1 else ""
        raise _invalid("image", f"got more than {max_images} files, wanted at most {max_images}{advice}") from error
    except MultipartError as error:
        raise InvalidRequest(f"got a multipart body that does not parse ({error}); send it anew, whole") from error
    fields: list[tuple[str, str]] = []
    uploads: list[Upload] = []
    for part in parts:
        if part.filename is not None:
            if part.name != "image":
                detail = f"got a file part named {_shorten(part.name)}, wanted image; rename the part"
                raise _invalid(part.name, detail)
            uploads.append(Upload(part.filename, await _join(part.pieces)))
            part.pieces.clear()  # at once: a batch would otherwise be in memory twice
            if max_images > 1:
                await asyncio.sleep(0)  # each is copied here: all of a batch in one go would hold up everyone else
        elif part.name == "image":
            raise _invalid("image", "got text in the part named image, wanted a file; with curl: -F image=@cat.jpg")
        else:
            fields.append((part.name, part.text))
    return uploads, fields


async def limit_bytes(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, counted while they come: with or without Content-Length, no more than `max_bytes`."""
    refusal = f"wanted at most {max_bytes}; send a smaller or more strongly compressed image"
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"got {declared} body bytes, {refusal}", headers={"Connection": "close"})
    received = 0
    is_whole = False
    while not is_whole:  # not through request.stream(), a second generator around every chunk
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        is_whole = not message.get("more_body", False)
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > max_bytes:
            raise BodyTooLarge(f"got more than {max_bytes} body bytes, {refusal}", headers={"Connection": "close"})
        yield chunk


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body in memory."""
    return await _join([chunk async for chunk in limit_bytes(request, max_bytes)])


async def _join(pieces: Sequence[bytes | memoryview]) -> bytes:
    if sum(map(len, pieces)) < _LARGE_BODY_BYTES:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)


def _parse_form(body: bytes) -> list[tuple[str, str]]:
    """Fields of a URL-encoded form, which has no place for a photo."""
    try:
        if len(body) > _MAX_FORM_BYTES:
            raise ValueError
        text = body.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=64)
    except ValueError:
        raise UnsupportedBody(
            f"got {len(body)} bytes of {URLENCODED} that are no form; "
            "to send a photo as the body add the header Content-Type: image/jpeg, or use a form: curl -F image=@cat.jpg"
        ) from None


def _check(kind: type[Fields], given: Iterable[tuple[str, str]]) -> Fields:
    """Fields of `kind`, each given at most once and none unknown."""
    values: dict[str, str] = {}
    for name, value in given:
        if name in values:
            raise _invalid(name, f"got {_shorten(name)} more than once; send it once")
        values[name] = value
    if not values:  # as a rule
        fields: Fields = _without_fields(kind)
        return fields
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = ", ".join(["image", *kind.model_fields])
        errors = []
        for each in error.errors():
            name = str(each["loc"][0])
            if each["type"] == "extra_forbidden":
                detail = f"got the unknown field {_shorten(name)}, wanted {known}"
            elif name == "image_id":
                wanted = "wanted sha256: and 64 lowercase hexadecimal digits, as image.id or X-Image-Id gave it"
                detail = f"got {_shorten(str(each['input']))}, {wanted}"
            else:
                detail = f"got {_shorten(str(each['input']))}; {each['msg']}"
            errors.append({"pointer": pointer(name), "detail": detail})
        raise InvalidRequest("; ".join(each["detail"] for each in errors), errors=errors) from error


@cache
def _without_fields(kind: type[BaseModel]) -> Any:
    """The fields of a request that carries none; they are frozen, so that all such may share them."""
    return kind()


def _invalid(name: str, detail: str) -> InvalidRequest:
    where = name if name.startswith("#") else pointer(name)
    return InvalidRequest(detail, errors=[{"pointer": where, "detail": detail}])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
