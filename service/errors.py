"""Every failure the service answers with, as RFC 9457 problem JSON, and the handlers that render them.

Problem
  Unauthorized 401        NotFound 404            UnknownModel 404        MethodNotAllowed 405
  BodyTooSlow 408         ImageGone 410           BodyTooLarge 413        ImageTooLarge 413
  UnsupportedBody 415     UnsupportedImage 415    InvalidRequest 422      PromptMismatch 422
  ImageIdNotKept 422      QuotaExceeded 429       TooManyAtOnce 429       HeadersTooLarge 431
  InternalError 500       ImageNotFetched 502     Overloaded 503          NotReady 503
  DeadlineExceeded 504
"""

import http
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

CLIENT_CLOSED_REQUEST = 499
"""For the log alone, by nginx's custom: the client has left and reads no answer."""


class Problem(Exception):  # noqa: N818 - the RFC's own word
    """One kind of failure; `detail` tells this case: got, wanted, fix."""

    slug: ClassVar[str]
    title: ClassVar[str]
    status: ClassVar[int]
    about: ClassVar[str]
    """What the type means and what to do, for people who open its URL."""

    def __init__(
        self, detail: str, *, errors: Sequence[Mapping[str, str]] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def body(self, instance: str, request_id: str) -> dict[str, Any]:
        """The problem document; `errors` only where there are any."""
        document: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
        }
        return document | ({"errors": self.errors} if self.errors else {})


class Unauthorized(Problem):
    """No API key, or one that is not known."""

    slug, title, status = "unauthorized", "API key needed", 401
    about = "The server takes API keys. Send yours as Authorization: Bearer KEY or as X-API-Key: KEY."


class NotFound(Problem):
    """No such address."""

    slug, title, status = "not-found", "Not found", 404
    about = "Nothing lives at this address. /docs lists every address of the service."


class UnknownModel(Problem):
    """No model of that name is loaded."""

    slug, title, status = "unknown-model", "Unknown model", 404
    about = "No model of this name is loaded. GET /models lists the names that are."


class MethodNotAllowed(Problem):
    """The address exists, the method does not."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405
    about = "The address does not take this HTTP method. The Allow header names the ones it takes."


class BodyTooSlow(Problem):
    """The body did not come in time."""

    slug, title, status = "body-too-slow", "Body too slow", 408
    about = "The request body did not arrive in time. Send it again over a faster connection, or send a smaller photo."


class ImageGone(Problem):
    """The image id is no longer (or was never) held."""

    slug, title, status = "image-gone", "Image no longer held", 410
    about = "The server no longer holds the photo of this image id, or never did. Send the image itself again."


class BodyTooLarge(Problem):
    """More body bytes than allowed."""

    slug, title, status = "body-too-large", "Body too large", 413
    about = "The request body has more bytes than the server takes. Send a smaller or more strongly compressed photo."


class ImageTooLarge(Problem):
    """More pixels than allowed."""

    slug, title, status = "image-too-large", "Image too large", 413
    about = "The image has more pixels than the server decodes. Scale it down and send it again."


class UnsupportedBody(Problem):
    """A content type that is not read."""

    slug, title, status = "unsupported-body", "Unsupported body", 415
    about = (
        "Send multipart/form-data with a file part named image, or the photo's bytes as the body with "
        "Content-Type image/* or application/octet-stream and the other fields in the query."
    )


class UnsupportedImage(Problem):
    """Bytes that do not decode as an image."""

    slug, title, status = "unsupported-image", "Unsupported image", 415
    about = "The bytes are not a whole JPEG, PNG, WebP, GIF, BMP or TIFF. Formats are told from the content."


class InvalidRequest(Problem):
    """A field that is missing, unknown, or of a wrong value."""

    slug, title, status = "invalid-request", "Invalid request", 422
    about = "A field is missing, unknown, doubled or has a wrong value. `errors` points at each one."


class PromptMismatch(Problem):
    """A prompt the model does not take, or a missing one that it needs."""

    slug, title, status = "prompt-mismatch", "Prompt does not fit the model", 422
    about = "The model takes another kind of prompt, or needs one. GET /models says what each model takes."


class ImageIdNotKept(Problem):
    """An image id sent to a model that keeps nothing between requests."""

    slug, title, status = "image-id-not-kept", "Model keeps no images", 422
    about = "This model keeps nothing between requests, so an image id cannot stand in for the image. Send the image."


class QuotaExceeded(Problem):
    """More requests than the client's quota."""

    slug, title, status = "quota-exceeded", "Request quota exceeded", 429
    about = (
        "The caller has used up its requests for now. Try again after the seconds in the Retry-After header; "
        "RateLimit-Policy and RateLimit say what the quota is and what is left of it."
    )


class TooManyAtOnce(Problem):
    """More requests in flight than one client may have."""

    slug, title, status = "too-many-at-once", "Too many requests at once", 429
    about = "The caller has too many requests in flight. Wait for an answer before sending the next."


class HeadersTooLarge(Problem):
    """More bytes of request line and headers than allowed."""

    slug, title, status = "headers-too-large", "Request headers too large", 431
    about = "The request line and headers have more bytes than the server takes. Put long fields into a form."


class InternalError(Problem):
    """A defect of the service; the log has the trace."""

    slug, title, status = "internal-error", "Internal error", 500
    about = "A defect of the service. Its log has the details under the request_id of the answer."


class ImageNotFetched(Problem):
    """The Label Studio that the operator named did not give an image."""

    slug, title, status = "image-not-fetched", "Image not fetched", 502
    about = "The server could not get a task's image from Label Studio. `detail` says what it got instead."


class Overloaded(Problem):
    """More work than the server or a model's queue holds."""

    slug, title, status = "overloaded", "Overloaded", 503
    about = "The server holds all the work that it may. Try again after the seconds in the Retry-After header."


class NotReady(Problem):
    """Starting or stopping."""

    slug, title, status = "not-ready", "Not ready", 503
    about = "The server is starting or stopping. Try again after the seconds in the Retry-After header."


class DeadlineExceeded(Problem):
    """No answer within the deadline."""

    slug, title, status = "deadline-exceeded", "Deadline exceeded", 504
    about = "The answer was not finished within the server's deadline. Try again, with less load or a smaller photo."


PROBLEMS: dict[str, type[Problem]] = {problem.slug: problem for problem in Problem.__subclasses__()}


def problem_response(request: Request, problem: Problem) -> Response:
    """`problem` as a response; instance is the address that was asked."""
    request_id = getattr(request.state, "request_id", "")
    request.state.problem = problem.slug
    body = problem.body(request.url.path, request_id)
    return JSONResponse(body, problem.status, problem.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Render our problems, FastAPI's validation errors and the router's own refusals alike."""
    app.add_exception_handler(Problem, _handle_problem)
    app.add_exception_handler(RequestValidationError, _handle_validation)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)


def forget_frames(problem: Problem) -> None:
    """Let go of the calls that a problem and its causes came through, once it is the answer.

    Their names hold the upload and what was decoded of it, in circles with the exception. Nobody but the garbage
    collector would find these, some seconds later: half photos held gigabytes by then.
    """
    errors: list[BaseException | None] = [problem]
    while errors:
        error = errors.pop()
        if error is not None and error.__traceback__ is not None:
            error.__traceback__ = None
            errors += (error.__cause__, error.__context__)


async def _handle_problem(request: Request, error: Exception) -> Response:
    problem = cast(Problem, error)
    forget_frames(problem)
    return problem_response(request, problem)


async def _handle_validation(request: Request, error: Exception) -> Response:
    found = cast(RequestValidationError, error).errors()
    errors = [{"pointer": pointer(*each["loc"]), "detail": each["msg"]} for each in found]
    return problem_response(request, InvalidRequest(f"got {len(errors)} wrong values; see errors", errors=errors))


async def _handle_http(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    path, method = request.url.path, request.method
    problem: Problem
    if refusal.status_code == 404:
        problem = NotFound(f"got {path}, wanted an address of this service; see /docs")
    elif refusal.status_code == 405:
        allowed = (refusal.headers or {}).get("Allow", "another method")
        problem = MethodNotAllowed(f"got {method} {path}, wanted {allowed}; see /docs", headers=refusal.headers)
    else:
        phrase = http.HTTPStatus(refusal.status_code).phrase
        problem = InvalidRequest(f"got a request that reads as {phrase.lower()}; see /docs")
    return problem_response(request, problem)


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def pointer(*steps: object) -> str:
    """JSON pointer into the request's fields, as a URI fragment: `#/points/1`."""
    return "#/" + "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in steps)
