"""create_app(settings): loads the checkpoint folder and wires predictors, batchers, routes and error handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from models.cpus import available_cpus
from models.engine import EngineError
from models.engine_choice import EngineBuilder, EngineOptions
from models.prompts import PromptKind
from service import documentation, label_studio_routes, operation, page
from service.admission import Admission, Limiter
from service.api_keys import KeyFileError, KeyRing
from service.device_pipeline import DevicePipeline
from service.embedding_cache import EmbeddingCache
from service.errors import add_handlers
from service.figures import OwnFigures
from service.gathering import Gathering
from service.gauges import ServiceCollector
from service.hub import Hub, can_have_fronts
from service.image_processes import ImageProcesses, ImageWork, InThread, can_have_processes
from service.image_threads import ImageThreads
from service.image_work import PhotoLimits
from service.label_studio_images import LabelStudioImages
from service.ledger import Ledger
from service.memory import free_memory
from service.metrics import Metrics
from service.middleware import RequestContext
from service.openapi import PetsegApp
from service.pipeline import Service
from service.predictor import KeptPhoto, Predictor, choose_device
from service.priorities import call_yielding
from service.reload import Reloader
from service.routes import router
from service.security_headers import add_security_headers
from service.settings import Settings, SettingsError, variable
from service.tracing import Tracing
from service.turns import Turns
from service.watchdog import Watchdog

logger = logging.getLogger("petseg.app")

API_VERSION = "1.0"

MOST_ALONE_THREADS = 4
"""Of a forward pass on a CPU while no other runs; with more, these small networks gain little."""

CPUS_OF_THE_SERVER = 2
"""Beside a GPU: one for the event loop and one for what feeds the GPU; the others work on photos."""

MOST_FRONTS = 16
"""Started by themselves beside a GPU: each works on some 200 photos a second, and so many keep the hub busy."""

CPUS_WITH_FRONTS = 4
"""From which on fronts pay where the CPUs run the networks too: fewer are kept busy by one interpreter."""

MOST_FRONTS_OF_CPUS = 4
"""Started by themselves there; more were not measured."""

DESCRIPTION = """\
Cuts cats and dogs out of photographs. Send a photo to `/segment/{model}`, get the mask back at the photo's own size.
Coordinates are pixels of the upright photo, origin top left. Every error is an RFC 9457 problem.
"""


def create_app(settings: Settings, checkpoints: Sequence[Checkpoint] | None = None) -> FastAPI:
    """The service with every checkpoint of `settings.checkpoints`, or with the given ones.

    Raises SettingsError or CheckpointError, each with one line for the operator.
    """
    device = choose_device_of(settings)
    alone_threads = 0 if settings.stream_threads else min(MOST_ALONE_THREADS, available_cpus())
    settings = share_cpus(settings, device)
    # Beside a GPU torch's work on the CPU is the image threads', each of which would bring a thread for each CPU.
    torch.set_num_threads(settings.stream_threads if device.type == "cpu" else 1)
    loaded = load_folder(settings.checkpoints) if checkpoints is None else checkpoints

    app = create_bare_app(settings, lifespan)
    app.state.engines = create_engine_builder(device, settings, alone_threads)
    app.state.cache = EmbeddingCache(settings.cache_bytes)
    app.state.hub = None
    has_folder = app.state.has_folder = checkpoints is None
    app.state.predictors = call_yielding(build_predictors, loaded, app, with_stand_ins=has_folder)
    app.state.metrics = Metrics()
    app.state.figures = OwnFigures(app.state.metrics)
    assemble(app, settings, app.state.metrics)
    return app


def create_bare_app(settings: Settings, lifespan: Callable[[Any], AbstractAsyncContextManager[None]]) -> PetsegApp:
    """The app before its routes, with what every process that answers callers keeps. Raises SettingsError."""
    app = PetsegApp(
        title="petseg",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat whatever the Host header says
    )
    app.state.settings = settings
    app.state.work = create_image_work(settings)
    app.state.label_studio_images = LabelStudioImages(settings)
    app.state.tracing = create_tracing(settings)
    return app


def assemble(app: FastAPI, settings: Settings, metrics: Metrics, limiter: Limiter | None = None) -> None:
    """Put the routes and what stands before them into `app`. Raises SettingsError for a file of keys that is none."""
    try:
        keys = KeyRing(settings.keys) if settings.keys is not None else None
    except KeyFileError as error:
        raise SettingsError(f"{variable('keys')}: {error}") from error
    app.add_middleware(Admission, settings=settings, keys=keys, limiter=limiter)
    app.state.ledger = Ledger(metrics, app.state.tracing)
    app.add_middleware(RequestContext, ledger=app.state.ledger)
    add_security_headers(app, settings.cors_origins)
    add_handlers(app)
    app.include_router(router)
    app.include_router(documentation.router)
    app.include_router(operation.router)
    if settings.operation_port is None:
        app.include_router(operation.private_router)
    app.include_router(page.router)
    app.include_router(label_studio_routes.router)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Warm every model, take requests, then drain: what was accepted is finished before the threads end."""
    settings: Settings = app.state.settings
    metrics: Metrics = app.state.metrics
    predictors: list[Predictor] = app.state.predictors
    pool = ImageThreads(settings.image_threads, app.state.work)
    engines: EngineBuilder = app.state.engines
    turns = Turns(settings.streams * engines.passes_per_stream)

    def build_pipeline(path: Path) -> DevicePipeline:
        with gathering.everywhere():
            (predictor,) = call_yielding(build_predictors, [load_checkpoint(path)], app)
            pipeline = DevicePipeline(predictor, pool, turns, settings, metrics)
            try:
                pipeline.warm_up()
            except BaseException:
                pipeline.batcher.end()  # its threads hold the network
                raise
            return pipeline

    pipelines = {
        predictor.checkpoint.name: DevicePipeline(predictor, pool, turns, settings, metrics) for predictor in predictors
    }
    service: Service[DevicePipeline] = Service(settings, pipelines)
    app.state.service = service
    del pipelines  # the service's own mapping changes with the checkpoints
    gathering = Gathering(service, pool)
    reloader = Reloader(service, predictors, build_pipeline, metrics)
    levels = ServiceCollector(service)
    metrics.registry.register(levels)
    tasks = [asyncio.create_task(Watchdog(service).run())]
    hub: Hub | None = app.state.hub
    try:
        if hub is not None:
            await hub.start(app, service, [predictor.facts for predictor in predictors])
        await asyncio.to_thread(pool.wait_until_started)
        for pipeline in list(service.pipelines.values()):
            await asyncio.to_thread(pipeline.warm_up)
        del pipeline  # nothing may hold one that a reload retires
        await asyncio.to_thread(free_memory)
        if app.state.has_folder:
            app.state.reloader = reloader
            tasks.append(asyncio.create_task(reloader.run()))
        if settings.gather_threads and hub is None:
            tasks.append(asyncio.create_task(gathering.run()))
        service.is_warm = True
        if hub is not None:
            await hub.open()
        yield
    finally:
        service.drain()
        if hub is not None:
            await hub.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(each.batcher.close(service.drain_left_s) for each in service.pipelines.values()))
        await reloader.close()
        await asyncio.to_thread(pool.close)
        await asyncio.to_thread(app.state.work.close)
        metrics.registry.unregister(levels)
        await asyncio.to_thread(app.state.tracing.close)


def create_tracing(settings: Settings) -> Tracing:
    """With spans where the settings want them. Raises SettingsError where the packages for them are missing."""
    if settings.traces == "off":
        return Tracing()
    try:
        from service.spans import SpanTracing
    except ImportError as error:
        name = variable("traces")
        raise SettingsError(f"{name}: got otlp, wanted OpenTelemetry installed ({error}); add petseg[otel]") from error
    return SpanTracing()


def load_folder(folder: Path) -> list[Checkpoint]:
    """Every *.safetensors directly in `folder`, by name; subfolders hold frozen backbones. Raises CheckpointError."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder}: got no *.safetensors, wanted at least one; train one with petseg-train")
    return [load_checkpoint(path) for path in paths]


def create_engine_builder(device: torch.device, settings: Settings, alone_threads: int) -> EngineBuilder:
    """What makes engines as the settings want them. Raises SettingsError for one that cannot run here.

    alone_threads: of a forward pass on a CPU while no other runs.
    """
    options = EngineOptions(
        engine=settings.engine,
        precision=settings.precision,
        compiles=settings.compile,
        streams=settings.streams,
        threads=settings.stream_threads,
        alone_threads=alone_threads,
        cache_folder=settings.engine_cache,
    )
    try:
        return EngineBuilder(device, options)
    except EngineError as error:
        raise SettingsError(f"{variable('engine')}: {error}") from error


def build_predictors(
    checkpoints: Sequence[Checkpoint], app: FastAPI, *, with_stand_ins: bool = False
) -> list[Predictor]:
    """One predictor per checkpoint; those that take prompts share the app's cache, the others keep nothing.

    with_stand_ins: for a start that does not wait for networks to be converted; the reloader replaces them later.
    Raises SettingsError for a network that the engine cannot run.
    """
    engines: EngineBuilder = app.state.engines
    settings: Settings = app.state.settings
    none: EmbeddingCache[KeptPhoto] = EmbeddingCache(0)
    limits = PhotoLimits(settings.max_pixels, settings.max_frames)
    predictors = []
    for checkpoint in checkpoints:
        try:
            engine = (engines.stand_in(checkpoint) if with_stand_ins else None) or engines.build(checkpoint)
        except EngineError as error:
            raise SettingsError(f"{variable('engine')}: {error}") from error
        kept = none if checkpoint.model.prompt_kind is PromptKind.NONE else app.state.cache
        predictors.append(Predictor(checkpoint, engine, kept, limits=limits, work=app.state.work))
    return predictors


def create_image_work(settings: Settings) -> ImageWork:
    """Where photos are decoded and answers drawn. Raises SettingsError where no processes can be had."""
    if not settings.image_processes:
        return InThread()
    if not can_have_processes():
        name = variable("image_processes")
        raise SettingsError(f"{name}: got {settings.image_processes}, but this system forks no processes; set it to 0")
    return ImageProcesses(settings.deadline_s)


def share_cpus(settings: Settings, device: torch.device) -> Settings:
    """`settings` with the threads and processes that they leave open, by the device and this process's CPUs."""
    cpus, is_gpu = available_cpus(), device.type != "cpu"
    streams = settings.streams or (2 if is_gpu else cpus)
    processes = settings.image_processes
    if processes is None:
        processes = max(0, cpus - CPUS_OF_THE_SERVER) if is_gpu and can_have_processes() else 0
    chosen = {
        "streams": streams,
        "stream_threads": settings.stream_threads or max(1, cpus // streams),
        "image_processes": processes,
        "image_threads": processes or settings.image_threads or cpus,
    }
    return settings.model_copy(update=chosen)


def choose_fronts(settings: Settings) -> Settings:
    """`settings` with a number of fronts, for a server that can start them. Raises SettingsError."""
    if settings.fronts is None:
        return settings.model_copy(update={"fronts": _fronts_that_pay(settings)})
    if settings.fronts and not can_have_fronts():
        name = variable("fronts")
        raise SettingsError(f"{name}: got {settings.fronts}, but this system has no memory to share; set it to 0")
    return settings


def _fronts_that_pay(settings: Settings) -> int:
    cpus, is_gpu = available_cpus(), choose_device_of(settings).type != "cpu"
    if settings.image_processes is not None or not can_have_fronts():
        return 0
    if is_gpu:
        return max(0, min(MOST_FRONTS, cpus - CPUS_OF_THE_SERVER))
    if settings.streams:  # whoever sets these shares the CPUs with others
        cpus = min(cpus, settings.streams * max(1, settings.stream_threads))
    return min(MOST_FRONTS_OF_CPUS, cpus // 2) if cpus >= CPUS_WITH_FRONTS else 0


def choose_device_of(settings: Settings) -> torch.device:
    """The device that networks run on. Raises SettingsError."""
    try:
        return choose_device(settings.device)
    except ValueError as error:
        raise SettingsError(f"{variable('device')}: {error}") from error
