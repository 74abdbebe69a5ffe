"""The app, and its OpenAPI document: what the routes' signatures cannot say about bodies, pictures and problems."""

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from service.direct_routes import DirectRouting
from service.errors import MEDIA_TYPE, Overloaded, Problem, QuotaExceeded, TooManyAtOnce, Unauthorized
from service.label_studio import PredictRequest, SetupRequest
from service.schemas import BatchAnswer, BatchFields, BatchProblem, GeoJson, ProblemBody, SegmentAnswer, SegmentFields

Json = dict[str, Any]

_BODIES: tuple[type[BaseModel], ...] = (SegmentAnswer, GeoJson, BatchAnswer, BatchProblem, ProblemBody)
_JSON_REQUESTS: tuple[type[BaseModel], ...] = (SetupRequest, PredictRequest)
_BINARY: Json = {"type": "string", "format": "binary"}
_ADMISSION: tuple[type[Problem], ...] = (Unauthorized, QuotaExceeded, TooManyAtOnce, Overloaded)


def _text_header(description: str) -> Json:
    return {"description": description, "schema": {"type": "string"}}


_RETRY_AFTER = {"Retry-After": _text_header("seconds to wait")}
_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": _text_header("the Bearer scheme")},
    429: _RETRY_AFTER
    | {
        "RateLimit-Policy": _text_header("the quota: q requests in each window of w seconds"),
        "RateLimit": _text_header("what is left of it: r requests; t seconds until it is whole again"),
    },
    503: _RETRY_AFTER,
}
"""Headers of problems by status."""

_SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_SECURITY: list[Json] = [{}, {"bearer": []}, {"header": []}]
"""A key in one of two places, or none where the server has no keys set."""

NO_KEY: Json = {"security": []}
"""`openapi_extra` of a route that is answered without a key."""

_FASTAPI_ONLY = ("HTTPValidationError", "ValidationError")


class PetsegApp(FastAPI):
    """FastAPI with our document, and of its layers only those that do something here.

    Spans, limits of bodies and the 500 for a defect are our own (tracing, admission, forms, middleware); what fails
    outside of these is the server's to answer.
    """

    def __init__(self, **options: Any) -> None:
        """options: FastAPI's."""
        super().__init__(telemetry={"tracing": False, "metrics": False, "logs": False}, **options)

    def build_middleware_stack(self) -> ASGIApp:
        """What was added to the app, then its handlers of exceptions, then the direct routes, then FastAPI's router."""
        app: ASGIApp = DirectRouting(AsyncExitStackMiddleware(self.router), self.routes)
        app = ExceptionMiddleware(app, self.exception_handlers)
        for layer, arguments, options in reversed(self.user_middleware):
            app = layer(app, *arguments, **options)
        return app

    def openapi(self) -> Json:
        """The document, built once."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in _FASTAPI_ONLY:
                schemas.pop(name, None)
            pairs: Any = [(body, "serialization") for body in _BODIES]
            pairs += [(body, "validation") for body in _JSON_REQUESTS]
            schemas |= models_json_schema(pairs, ref_template="#/components/schemas/{model}")[1]["$defs"]
            document["components"]["schemas"] = dict(sorted(schemas.items()))
            document["components"]["securitySchemes"] = _SECURITY_SCHEMES
            document["security"] = _SECURITY
            self.openapi_schema = document
        return self.openapi_schema


def problem_responses(*problems: type[Problem], is_open: bool = False) -> dict[int | str, Json]:
    """`responses` of a route that may answer with `problems`, by status, and `default` for all others.

    is_open: the route passes no admission, as probes do not.
    """
    content = {MEDIA_TYPE: {"schema": reference(ProblemBody)}}
    responses: dict[int | str, Json] = {}
    told: set[type[Problem]] = set()
    for problem in (*problems, *(() if is_open else _ADMISSION)):
        if problem in told:
            continue
        told.add(problem)
        said = responses.get(problem.status, {}).get("description")
        title = f"{problem.title} (`/problems/{problem.slug}`)"
        responses[problem.status] = {"description": f"{said}; {title}" if said else title, "content": content}
        if headers := _HEADERS.get(problem.status):
            responses[problem.status]["headers"] = headers
    responses["default"] = {"description": "Any other problem", "content": content}
    return responses


def segment_extra() -> Json:
    """Body and query of POST /segment/{model}."""
    properties = _properties(SegmentFields)
    form = {"type": "object", "properties": {"image": _BINARY, **properties}, "additionalProperties": False}
    fields_alone = {"type": "object", "properties": properties, "additionalProperties": False}
    return {
        "parameters": _query(properties),
        "requestBody": {
            "description": "The photo: as the form part `image`, or as the whole body. JPEG, PNG, WebP, GIF (first "
            "frame), BMP or TIFF, told from the content. The other fields stand in the form or in the query.",
            "content": {
                "multipart/form-data": {"schema": form},
                "application/x-www-form-urlencoded": {"schema": fields_alone},
                "application/octet-stream": {"schema": _BINARY},
                "image/*": {"schema": _BINARY},
            },
        },
    }


def batch_extra() -> Json:
    """Body and query of POST /segment/{model}/batch."""
    properties = _properties(BatchFields)
    images = {"type": "array", "items": _BINARY, "minItems": 1}
    form = {
        "type": "object",
        "properties": {"image": images, **properties},
        "required": ["image"],
        "additionalProperties": False,
    }
    return {
        "parameters": _query(properties),
        "requestBody": {
            "description": "The photos, each a form part named `image`. Other fields stand in the form or the query.",
            "required": True,
            "content": {"multipart/form-data": {"schema": form}},
        },
    }


def json_body(body: type[BaseModel]) -> Json:
    """`openapi_extra` of a route that reads a JSON body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference(body)}}}}


def segment_success() -> Json:
    """200 of POST /segment/{model}."""
    text = {"schema": {"type": "string"}}
    return {
        "description": "The mask: a picture, segments, or outlines",
        "headers": {
            "X-Image-Id": text | {"description": "may stand in for the image in later requests, as image_id"},
            "X-Prompt": text | {"description": "the text prompt that was used, percent-encoded UTF-8"},
            "X-Prompt-Chosen-By": text | {"description": "caller or model"},
            "Server-Timing": text,
        },
        "content": {
            "image/png": {"schema": _BINARY},
            "application/json": {"schema": reference(SegmentAnswer)},
            "application/geo+json": {"schema": reference(GeoJson)},
            "text/plain": text,
        },
    }


def batch_success() -> Json:
    """200 of POST /segment/{model}/batch."""
    line = {"anyOf": [reference(BatchAnswer), reference(BatchProblem)]}
    return {
        "description": "One line, or one file, for each photo, in the order in which they are finished. "
        "The schema of the NDJSON is that of one line.",
        "content": {"application/x-ndjson": {"schema": line}, "application/zip": {"schema": _BINARY}},
    }


def metrics_success() -> Json:
    """200 of GET /metrics."""
    text = {"schema": {"type": "string"}}
    return {
        "description": "One line for each figure",
        "content": {"text/plain": text, "application/openmetrics-text": text},
    }


def reference(body: type[BaseModel]) -> Json:
    """A reference to `body` in the document's components."""
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _properties(fields: type[BaseModel]) -> Json:
    """JSON schema of each optional field: without null, which a form cannot send, and with enumerations in place."""
    schema = fields.model_json_schema()
    properties = {}
    for name, each in schema["properties"].items():
        kept = {key: value for key, value in each.items() if key not in ("anyOf", "default", "title")}
        (kind,) = [option for option in each["anyOf"] if option != {"type": "null"}]
        if "$ref" in kind:
            kind = {key: schema["$defs"][kind["$ref"].rpartition("/")[2]][key] for key in ("type", "enum")}
        properties[name] = kind | kept
    return properties


def _query(properties: Json) -> list[Json]:
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in properties.items()
    ]
