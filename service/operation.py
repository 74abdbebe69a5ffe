"""What operators and their probes ask: health, readiness, figures. On the service's port, or on one of its own.

`router` answers on both; `private_router`, which tells of the traffic, only on the port of its own where there is one.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request

from service import errors, openapi
from service.middleware import RequestContext
from service.pipeline import Service, not_ready
from service.schemas import Health
from service.security_headers import add_security_headers

router = APIRouter(tags=["operation"])
private_router = APIRouter(tags=["operation"])


async def get_service(request: Request) -> Service:
    """What create_app wired. Raises NotReady before the lifespan has begun: the operation port answers by then."""
    service: Service | None = getattr(request.app.state, "service", None)
    if service is None:
        raise not_ready()
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


@router.get("/healthz", responses=openapi.problem_responses())
async def check_health() -> Health:
    """Whether the process answers."""
    return Health()


@router.get("/readyz", responses=openapi.problem_responses(errors.NotReady))
async def check_readiness(service: ServiceDep) -> Health:
    """Whether all models are loaded and warm, and new work is taken."""
    if not service.is_ready:
        raise not_ready()
    return Health()


def create_operation_app(service_app: FastAPI) -> FastAPI:
    """The app of the operation port: shares the state of `service_app`, whose lifespan is the one that counts."""
    app = FastAPI(openapi_url=None)
    app.state = service_app.state
    app.add_middleware(RequestContext)
    add_security_headers(app, ())
    errors.add_handlers(app)
    app.include_router(router)
    app.include_router(private_router)
    return app
