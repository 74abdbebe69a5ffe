"""The endpoints: parse, call, render; no logic."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Send

from service import errors, openapi, rendering
from service.batches import Finished, entry_names, segment_all, zip_archive
from service.direct_routes import DirectRoute
from service.forms import read_batch, read_prompt, read_segment, read_text
from service.operation import ServiceDep, get_service
from service.pipeline import Photo, Pipeline, Segmented, Service, not_ready
from service.rendering import Drawing, drawer
from service.request_record import record_of
from service.schemas import (
    OUTLINES,
    BatchAnswer,
    BatchOutput,
    BatchProblem,
    ModelDetails,
    ModelList,
    ModelSummary,
    Output,
    ProblemBody,
    PromptTaken,
    Rle,
    SegmentAnswer,
)

T = TypeVar("T")


async def get_pipeline(request: Request, model: str) -> Pipeline:
    """The pipeline of the model in the path."""
    return find_pipeline(request, await get_service(request), model)


def find_pipeline(request: Request, service: Service[Any], model: str) -> Pipeline:
    """The pipeline of `model`, noted in the request's record. Raises UnknownModel."""
    pipelines = service.pipelines
    if model not in pipelines:
        known = ", ".join(pipelines) or "none is loaded"
        raise errors.UnknownModel(f"got model {model[:60]!r}, wanted one of: {known}")
    record_of(request).model = model
    pipeline: Pipeline = pipelines[model]
    return pipeline


PipelineDep = Annotated[Pipeline, Depends(get_pipeline)]


async def open_pipeline(request: Request, model: str) -> Pipeline:
    """The same, while the server takes new work."""
    service = await get_service(request)
    pipeline = find_pipeline(request, service, model)
    if service.refuses_work:
        raise not_ready()
    return pipeline


async def hold_pipeline(request: Request, model: str) -> AsyncIterator[Pipeline]:
    """The same, held until the answer is sent."""
    pipeline = await open_pipeline(request, model)
    with pipeline.in_use():
        yield pipeline


OpenPipelineDep = Annotated[Pipeline, Depends(hold_pipeline)]


class PipelineRoute(DirectRoute):
    """Calls its endpoint with the request and the pipeline that OpenPipelineDep would give."""

    async def answer(self, request: Request, send: Send) -> None:
        """Hold the pipeline until the answer is sent."""
        pipeline = await open_pipeline(request, request.path_params["model"])
        with pipeline.in_use():
            response: Response = await self.endpoint(request, pipeline)
            await response(request.scope, request.receive, send)


router = APIRouter()
pipeline_router = APIRouter(route_class=PipelineRoute)

_SEGMENT_PROBLEMS = openapi.problem_responses(
    errors.UnknownModel,
    errors.BodyTooSlow,
    errors.ImageGone,
    errors.BodyTooLarge,
    errors.ImageTooLarge,
    errors.UnsupportedBody,
    errors.UnsupportedImage,
    errors.InvalidRequest,
    errors.PromptMismatch,
    errors.ImageIdNotKept,
    errors.InternalError,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
)
_BATCH_PROBLEMS = openapi.problem_responses(
    errors.UnknownModel,
    errors.BodyTooSlow,
    errors.BodyTooLarge,
    errors.UnsupportedBody,
    errors.InvalidRequest,
    errors.PromptMismatch,
    errors.InternalError,
    errors.NotReady,
)


@pipeline_router.post(
    "/segment/{model}",
    response_class=Response,
    responses={200: openapi.segment_success(), **_SEGMENT_PROBLEMS},
    openapi_extra=openapi.segment_extra(),
    tags=["segment"],
)
async def segment(request: Request, pipeline: OpenPipelineDep) -> Response:
    """Cut the animals out of one photo."""
    record = record_of(request)
    pipeline.check_room()
    upload, fields = await read_segment(request, pipeline.settings.max_body_bytes)
    record.note_received()
    prompt = read_prompt(fields, pipeline.settings)
    record.output = output = choose_output(request, fields.output, fields.rle)
    refuse_idle_tolerance(fields.tolerance, output)
    record.photos = 1
    image_id = fields.image_id.removeprefix("sha256:") if fields.image_id else None
    photo = Photo(upload.data if upload else None, image_id, prompt)
    draw = drawer(output, fields.rle or Rle.COMPRESSED, pipeline, fields.tolerance or 0.0)
    segmented = await unless_gone(request, pipeline.segment(photo, draw, record.stages))
    taken = rendering.describe_prompt(prompt, segmented.prediction.chosen_prompt)
    headers = rendering.answer_headers(segmented.prepared, taken, segmented.timing_ms)
    is_json = output in (Output.RLE, Output.POLYGONS)
    body = describe_answer(pipeline, photo, segmented).model_dump_json() if is_json else segmented.drawn.body
    return Response(body, headers=headers, media_type=rendering.MEDIA_TYPES[output])


@pipeline_router.post(
    "/segment/{model}/batch",
    response_class=Response,
    responses={200: openapi.batch_success(), **_BATCH_PROBLEMS},
    openapi_extra=openapi.batch_extra(),
    tags=["segment"],
)
async def segment_batch(request: Request, pipeline: OpenPipelineDep) -> Response:
    """Cut the animals out of many photos; one that cannot be read is one problem among the answers."""
    settings, record = pipeline.settings, record_of(request)
    uploads, fields = await read_batch(request, settings.max_batch_body_bytes, settings.max_batch_images)
    record.note_received()
    request.state.visit.charge(len(uploads) - 1)
    prompt = read_text(fields.text, settings.max_text_characters) if fields.text is not None else None
    pipeline.facts.check_prompt(prompt)
    record.output = output = choose_batch_output(request, fields.output, fields.rle)
    record.photos = len(uploads)
    form = Output.PNG if output is BatchOutput.ZIP else Output.RLE
    draw = drawer(form, fields.rle or Rle.COMPRESSED, pipeline)

    async def segment_one(data: bytes) -> Segmented[Drawing]:
        async with pipeline.batch_room:
            return await pipeline.segment(Photo(data, None, prompt), draw, waits=True)

    finished = segment_all(uploads, segment_one, max_at_once=4 * pipeline.photos_together * settings.streams)

    def problem_body(problem: errors.Problem) -> ProblemBody:
        return ProblemBody.model_validate(problem.body(request.url.path, request.state.request_id))

    async def lines() -> AsyncIterator[str]:
        async with aclosing(finished):
            async for each in finished:
                yield line_of(each) + "\n"

    def line_of(each: Finished) -> str:
        place = {"index": each.index, "filename": each.filename}
        if isinstance(each.outcome, errors.Problem):
            return BatchProblem(**place, problem=problem_body(each.outcome)).model_dump_json(exclude_none=True)
        answer = describe_answer(pipeline, Photo(None, None, prompt), each.outcome)
        return BatchAnswer(**place, **dict(answer)).model_dump_json()

    async def entries() -> AsyncIterator[tuple[str, bytes]]:
        names = entry_names(uploads)
        async with aclosing(finished):
            async for each in finished:
                yield zip_entry(names[each.index], each)

    def zip_entry(name: str, each: Finished) -> tuple[str, bytes]:
        if isinstance(each.outcome, errors.Problem):
            return f"{name}.problem.json", problem_body(each.outcome).model_dump_json(exclude_none=True).encode()
        return f"{name}.png", each.outcome.drawn.body

    if output is BatchOutput.ZIP:
        return StreamingResponse(zip_archive(entries()), media_type="application/zip")
    return StreamingResponse(lines(), media_type="application/x-ndjson")


router.include_router(pipeline_router)


@router.get("/models", tags=["models"], responses=openapi.problem_responses())
async def list_models(service: ServiceDep) -> ModelList:
    """All loaded models."""
    return ModelList(models=[describe_model(pipeline) for pipeline in service.pipelines.values()])


@router.get("/models/{model}", tags=["models"], responses=openapi.problem_responses(errors.UnknownModel))
async def get_model(pipeline: PipelineDep) -> ModelDetails:
    """One model with its card: configuration, measured figures, training data."""
    card = pipeline.facts.card.model_dump(mode="json")
    return ModelDetails(**dict(describe_model(pipeline)), card=card)


@router.get(
    "/problems/{slug}",
    tags=["operation"],
    response_class=PlainTextResponse,
    responses=openapi.problem_responses(errors.NotFound),
    openapi_extra=openapi.NO_KEY,
)
async def explain_problem(slug: str) -> PlainTextResponse:
    """What a problem type means and what to do about it."""
    if slug not in errors.PROBLEMS:
        known = ", ".join(errors.PROBLEMS)
        raise errors.NotFound(f"got the problem type {slug[:60]!r}, wanted one of: {known}")
    problem = errors.PROBLEMS[slug]
    return PlainTextResponse(f"{problem.title} (HTTP {problem.status})\n\n{problem.about}\n")


def describe_answer(pipeline: Pipeline, photo: Photo, segmented: Segmented[Drawing]) -> SegmentAnswer:
    """A finished photo as its public body."""
    return SegmentAnswer(
        model=pipeline.name,
        checkpoint=checkpoint_id(pipeline),
        image=rendering.describe_image(segmented.prepared),
        prompt=rendering.describe_prompt(photo.prompt, segmented.prediction.chosen_prompt),
        segments=list(segmented.drawn.segments),
        timing_ms=segmented.timing_ms,
    )


def describe_model(pipeline: Pipeline) -> ModelSummary:
    """A model as one entry of the list."""
    facts = pipeline.facts
    return ModelSummary(
        name=pipeline.name,
        architecture=facts.card.architecture,
        summary=facts.card.summary,
        prompt=PromptTaken(kind=facts.prompt_kind.value, is_required=facts.prompt_required),
        class_names=list(facts.class_names),
        image_size=facts.image_size,
        checkpoint=checkpoint_id(pipeline),
        engine=facts.engine,
        keeps_images=facts.keeps_images,
        url=f"/segment/{pipeline.name}",
    )


def checkpoint_id(pipeline: Pipeline) -> str:
    """The checkpoint's digest as the API names it."""
    return f"sha256:{pipeline.facts.checkpoint}"


def choose_output(request: Request, output: Output | None, rle: Rle | None) -> Output:
    """The wanted output of one photo, else the one that the Accept header asks for; png without either."""
    refuse_idle_rle(rle, output, Output.RLE)
    if output is None:
        return Output.RLE if rle is not None or wants(request, "application/json") else Output.PNG
    return output


def choose_batch_output(request: Request, output: BatchOutput | None, rle: Rle | None) -> BatchOutput:
    """The wanted output of a batch, else the one that the Accept header asks for; ndjson without either."""
    refuse_idle_rle(rle, output, BatchOutput.NDJSON)
    if output is None:
        return BatchOutput.ZIP if rle is None and wants(request, "application/zip") else BatchOutput.NDJSON
    return output


def refuse_idle_rle(rle: Rle | None, output: StrEnum | None, wanted: StrEnum) -> None:
    """Raise InvalidRequest where `rle` would change nothing."""
    if rle is not None and output not in (None, wanted):
        detail = f"got rle={rle} with output={output}, wanted output={wanted}; leave one of them out"
        raise errors.InvalidRequest(detail, errors=[{"pointer": errors.pointer("rle"), "detail": detail}])


def refuse_idle_tolerance(tolerance: float | None, output: Output) -> None:
    """Raise InvalidRequest where `tolerance` would change nothing."""
    if tolerance is not None and output not in OUTLINES:
        wanted = " or ".join(f"output={each}" for each in Output if each in OUTLINES)
        detail = f"got tolerance={tolerance:g} with output={output}, wanted {wanted}; leave tolerance out"
        raise errors.InvalidRequest(detail, errors=[{"pointer": errors.pointer("tolerance"), "detail": detail}])


def wants(request: Request, media_type: str) -> bool:
    """Whether the Accept header names `media_type` itself, and no picture before it."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    pictures = [accepted.index(part) for part in accepted if part.startswith("image/")]
    return media_type in accepted and all(accepted.index(media_type) < place for place in pictures)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; once the client hangs up it is cancelled, and out of every queue, and raises ClientDisconnect.

    The body must have been read: what comes next can only be the end of the connection.
    """
    try:
        async with asyncio.timeout(None) as patience:  # runs out when the client leaves; a task for `work` costs more

            def lose_patience(_: object) -> None:
                patience.reschedule(0)

            gone = asyncio.ensure_future(request.receive())
            gone.add_done_callback(lose_patience)
            try:
                return await work
            finally:
                gone.remove_done_callback(lose_patience)
                gone.cancel()
    except TimeoutError:
        if patience.expired():
            raise ClientDisconnect from None
        raise
