"""What operators and their probes ask: health, readiness, figures. On the service's port, or on one of its own.

`router` answers on both; `private_router`, which tells of the traffic, only on the port of its own where there is one.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from service import errors, openapi
from service.figures import Figures
from service.middleware import RequestContext
from service.pipeline import Service, not_ready
from service.schemas import Health
from service.security_headers import add_security_headers

router = APIRouter(tags=["operation"])
private_router = APIRouter(tags=["operation"])


async def get_service(request: Request) -> Service[Any]:
    """What create_app wired. Raises NotReady before the lifespan has begun: the operation port answers by then."""
    service: Service[Any] | None = getattr(request.app.state, "service", None)
    if service is None:
        raise not_ready()
    return service


ServiceDep = Annotated[Service[Any], Depends(get_service)]


@router.get(
    "/healthz",
    responses=openapi.problem_responses(errors.NotReady, is_open=True),
    openapi_extra=openapi.NO_KEY,
)
async def check_health(request: Request) -> Health:
    """Whether the process answers, or waiting may mend it; if not, it wants to be started anew."""
    service: Service[Any] | None = getattr(request.app.state, "service", None)
    if service is not None and not service.is_alive:
        raise not_ready(f"{service.fault}; only a new process answers again")
    return Health()


@router.get(
    "/readyz",
    responses=openapi.problem_responses(errors.NotReady, is_open=True),
    openapi_extra=openapi.NO_KEY,
)
async def check_readiness(service: ServiceDep) -> Health:
    """Whether all models are loaded and warm, and new work is taken."""
    if service.is_ready:
        return Health()
    raise not_ready(f"{service.fault}; try again in 5 s", retry_after_s=5) if service.fault else not_ready()


@private_router.get(
    "/metrics", response_class=Response, responses={200: openapi.metrics_success(), **openapi.problem_responses()}
)
async def show_metrics(request: Request) -> Response:
    """Figures for Prometheus, in its text format or, if it asks for that, as OpenMetrics."""
    figures: Figures = request.app.state.figures
    await figures.refresh()
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    text = await asyncio.to_thread(encoder, figures)
    return Response(text, headers={"Content-Type": content_type})


def create_operation_app(service_app: FastAPI) -> FastAPI:
    """The app of the operation port: shares the state of `service_app`, whose lifespan is the one that counts."""
    app = create_bare_operation_app(service_app)
    app.add_middleware(RequestContext, ledger=app.state.ledger)
    add_security_headers(app, ())
    return app


def create_bare_operation_app(service_app: FastAPI) -> FastAPI:
    """The same for requests that another app has counted already and whose answers it sends."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state = service_app.state
    errors.add_handlers(app)
    app.include_router(router)
    app.include_router(private_router)
    return app
