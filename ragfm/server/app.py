"""The application: routes, the request guard, background tasks and the OpenAPI schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from ragfm import __version__
from ragfm.server import chat_routes, document_routes, image_routes, log_routes, search_routes
from ragfm.server.api_errors import ErrorBody, answer_error, as_api_error
from ragfm.server.api_models import ChatChunk
from ragfm.server.request_guard import PROBES, KeyStore, Limits, RequestGuard
from ragfm.server.served_models import ServedModels
from ragfm.server.service import Service, service_of
from ragfm.server.static_pages import PAGE, add_page

if TYPE_CHECKING:
    from ragfm.server.sign_in import SignIn

_PUBLIC = set(PROBES)
_ERRORS = {
    400: "The request is not valid or not supported.",
    401: "The key is missing, wrong or expired.",
    403: "The key does not have the scope.",
    404: "Not found, or the key may not see it.",
    408: "The request's body took too long.",
    413: "The body is too large, or the key's uploads have reached their limit.",
    429: "Too many requests. `Retry-After` has the seconds to wait.",
    500: "The server failed.",
    503: "The server cannot answer now.",
}
_operations = APIRouter()


class Health(BaseModel):
    """The server's state."""

    status: str


@_operations.head("/healthz", include_in_schema=False)
@_operations.get("/healthz")
async def healthz() -> Health:
    """Report that the process is alive."""
    return Health(status="ok")


@_operations.head("/readyz", include_in_schema=False)
@_operations.get("/readyz", responses={503: {"model": Health, "description": "The server is not ready."}})
async def readyz(request: Request, response: Response) -> Health:
    """Report whether models are loaded, databases and readers reachable, and the server is not shutting down."""
    status = await service_of(request).readiness()
    response.status_code = 200 if status == "ready" else 503
    return Health(status=status)


@_operations.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    await service_of(request).update_gauges()
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def create_app(
    served: ServedModels,
    *,
    keys: KeyStore | None,
    sign_in: SignIn | None = None,
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> FastAPI:
    """The server of these models. Without `keys`, only local requests are accepted. With `sign_in`, users are, too."""
    service = Service(served, limits)
    app = FastAPI(
        title="ragfm",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        # FastAPI's own spans have paths, with names of documents, and its logs the messages of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        redoc_url=None,
        description="Cited answers over your own documents, through OpenAI's API.",
        responses={status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()},
        exception_handlers=dict.fromkeys((HTTPException, RequestValidationError, Exception), answer_error),
    )
    app.state.service = service
    for routes in (chat_routes, search_routes, document_routes, image_routes, log_routes):
        app.include_router(routes.router)
    app.include_router(_operations)
    app.state.mcp, app.state.sign_in = nullcontext(), sign_in
    if find_spec("mcp"):
        from ragfm.server.mcp_server import mount_mcp

        app.state.mcp = mount_mcp(app, service, lambda error: as_api_error(error).detail)
    add_page(app)
    public = _PUBLIC | PAGE.keys()
    if sign_in is not None:
        app.include_router(sign_in.router)
        public |= sign_in.paths
    app.add_middleware(
        RequestGuard,
        keys=keys,
        sign_in=sign_in,
        limits=limits,
        metrics=service.metrics,
        is_public=public.__contains__,
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    tasks = [asyncio.create_task(supervisor.run()) for supervisor in service.index_supervisors.values()]
    tasks += [asyncio.create_task(scheduler.run()) for scheduler in service.source_schedulers.values()]
    tasks.append(asyncio.create_task(service.served.run(service.warm_up)))
    tasks.append(asyncio.create_task(service.watch_readers()))
    if app.state.sign_in is not None:
        tasks.append(asyncio.create_task(app.state.sign_in.provider.refresh()))  # a wrong issuer is logged at once
    try:
        async with app.state.mcp:
            yield
    finally:
        service.stop()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        service.served.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, corrected: keys, the events of streams, and validation errors, which are 400 here, not 422."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, item in schema["paths"].items():
            for operation in item.values():
                operation["responses"].pop("422", None)
                operation["security"] = [] if path in _PUBLIC else [{"key": []}]
        components = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            components.pop(name, None)
        _, events = models_json_schema([(ChatChunk, "validation")], ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] = events["$defs"] | components
        app.openapi_schema = schema
    return app.openapi_schema
