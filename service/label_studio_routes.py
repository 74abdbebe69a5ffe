"""Label Studio's ML backend contract, for each model under /label-studio/{model}: health, setup, predict."""

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from models.prompts import Prompt, PromptKind
from service import errors, openapi
from service.batches import outcome_of
from service.forms import read_body
from service.label_studio import (
    BackendHealth,
    Labelling,
    LabelStudioPrediction,
    LabelStudioPredictions,
    LabelStudioTask,
    ModelVersion,
    PredictRequest,
    SetupRequest,
    draw_regions,
    read_clicks,
    read_labelling,
)
from service.label_studio_images import LabelStudioImages
from service.masks import find_segments
from service.pipeline import Photo, Pipeline
from service.predictor import Prediction, Prepared
from service.request_record import record_of
from service.routes import OpenPipelineDep, PipelineDep, unless_gone

Body = TypeVar("Body", bound=BaseModel)

router = APIRouter(prefix="/label-studio/{model}", tags=["label studio"])


async def get_images(request: Request) -> LabelStudioImages:
    """What create_app wired."""
    images: LabelStudioImages = request.app.state.label_studio_images
    return images


ImagesDep = Annotated[LabelStudioImages, Depends(get_images)]


@router.get("/health", responses=openapi.problem_responses(errors.UnknownModel))
async def check_backend(pipeline: PipelineDep) -> BackendHealth:
    """Whether Label Studio may connect."""
    return BackendHealth(model_class=pipeline.name)


@router.post(
    "/setup",
    responses=openapi.problem_responses(errors.UnknownModel, errors.BodyTooLarge, errors.InvalidRequest),
    openapi_extra=openapi.json_body(SetupRequest),
)
async def set_up(request: Request, pipeline: PipelineDep) -> ModelVersion:
    """Check the labelling configuration: which labels mean which class of the model."""
    settings = pipeline.settings
    body = await read_json(request, SetupRequest, settings.max_body_bytes, settings.max_json_values)
    read_labelling(body.schema_, pipeline.facts.class_names)
    return ModelVersion(model_version=model_version(pipeline))


@router.post(
    "/predict",
    responses=openapi.problem_responses(
        errors.UnknownModel,
        errors.BodyTooLarge,
        errors.ImageTooLarge,
        errors.UnsupportedImage,
        errors.InvalidRequest,
        errors.InternalError,
        errors.ImageNotFetched,
        errors.Overloaded,
        errors.NotReady,
        errors.DeadlineExceeded,
    ),
    openapi_extra=openapi.json_body(PredictRequest),
    response_model_exclude_none=True,
)
async def predict(request: Request, pipeline: OpenPipelineDep, images: ImagesDep) -> LabelStudioPredictions:
    """Regions for each task. With a person's clicks, a model that takes clicks follows them; without, it has none."""
    settings, record = pipeline.settings, record_of(request)
    body = await read_json(request, PredictRequest, settings.max_batch_body_bytes, settings.max_json_values)
    record.note_received()
    record.output, record.photos = "label-studio", len(body.tasks)
    if len(body.tasks) > settings.max_batch_images:
        raise errors.InvalidRequest(f"got {len(body.tasks)} tasks, wanted at most {settings.max_batch_images}")
    request.state.visit.charge(len(body.tasks) - 1)
    labelling = read_labelling(body.label_config, pipeline.facts.class_names)
    clicks, chosen = read_clicks(body.params.context if body.params is not None else None)
    if clicks is not None and len(clicks.points) > settings.max_points:
        raise errors.InvalidRequest(f"got {len(clicks.points)} clicks, wanted at most {settings.max_points}")
    takes_clicks = pipeline.facts.prompt_kind is PromptKind.POINTS
    version = model_version(pipeline)
    if takes_clicks and clicks is None:
        nothing = LabelStudioPrediction(result=[], model_version=version)
        return LabelStudioPredictions(results=[nothing] * len(body.tasks), model_version=version)
    prompt = clicks if takes_clicks else None
    gate = asyncio.Semaphore(2 * pipeline.photos_together * settings.streams)
    is_batch = len(body.tasks) > 1
    room = pipeline.batch_room if is_batch else nullcontext()  # who clicks does not wait behind batches

    async def predict_one(task: LabelStudioTask) -> LabelStudioPrediction:
        async with gate, room:
            return await predict_task(pipeline, images, task, labelling, prompt, chosen, waits=is_batch)

    async def predict_all() -> list[LabelStudioPrediction | errors.Problem]:
        return await asyncio.gather(*(outcome_of(predict_one(task)) for task in body.tasks))

    outcomes = await unless_gone(request, predict_all())
    if len(outcomes) == 1 and isinstance(outcomes[0], errors.Problem):
        raise outcomes[0]
    results = [
        LabelStudioPrediction(error=each.detail, model_version=version) if isinstance(each, errors.Problem) else each
        for each in outcomes
    ]
    return LabelStudioPredictions(results=results, model_version=version)


async def predict_task(
    pipeline: Pipeline,
    images: LabelStudioImages,
    task: LabelStudioTask,
    labelling: Labelling,
    prompt: Prompt,
    chosen: str | None,
    *,
    waits: bool,
) -> LabelStudioPrediction:
    """One task's image through the model, `waits` as for `Pipeline.segment`. Raises the Problem that fits."""
    reference = task.data.get(labelling.image_key)
    if not isinstance(reference, str):
        raise errors.InvalidRequest(f"got a task without {labelling.image_key!r} in its data, wanted its image there")
    upload = await images.read(reference, task.id)
    class_names = pipeline.facts.class_names

    def draw(prepared: Prepared, prediction: Prediction) -> LabelStudioPrediction:
        mask = prepared.letterbox.restore_mask(prediction.logits)
        regions: list[dict[str, Any]] = []
        scores = []
        for segment in find_segments(mask, prediction.logits, prepared.letterbox):
            label = labelling.label_of(class_names[segment.category_id], chosen)
            if label is not None:
                regions += draw_regions(mask == segment.category_id, label, segment.score, labelling)
                scores.append(segment.score)
        score = sum(scores) / len(scores) if scores else 0.0
        return LabelStudioPrediction(result=regions, score=round(score, 4), model_version=model_version(pipeline))

    return (await pipeline.segment(Photo(upload, None, prompt), draw, waits=waits)).drawn


async def read_json(request: Request, kind: type[Body], max_bytes: int, max_values: int) -> Body:
    """The body as `kind`. Raises BodyTooLarge or InvalidRequest."""
    data = await read_body(request, max_bytes)
    if (values := count_values(data)) > max_values:
        raise errors.InvalidRequest(f"got a body of about {values} JSON values, wanted at most {max_values}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        wrong = [{"pointer": errors.pointer(*each["loc"]), "detail": each["msg"]} for each in error.errors()[:20]]
        detail = "; ".join(f"{each['pointer']}: {each['detail']}" for each in wrong[:3])
        raise errors.InvalidRequest(f"got a body that Label Studio would not send ({detail})", errors=wrong) from error


def count_values(data: bytes) -> int:
    """No fewer than the values of JSON text, a list or an object as sixteen; told at the speed of reading memory."""
    return 1 + data.count(b",") + 16 * (data.count(b"[") + data.count(b"{"))


def model_version(pipeline: Pipeline) -> str:
    """The model and its checkpoint, so that Label Studio asks anew for tasks when either changes."""
    return f"{pipeline.name}-{pipeline.facts.checkpoint[:12]}"
