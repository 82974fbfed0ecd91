"""The application: routes, the guard before them, what goes on in the background, and an OpenAPI that is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from ragfm import __version__
from ragfm.server import chat_routes, document_routes, search_routes
from ragfm.server.api_errors import ErrorBody, answer_error, as_api_error
from ragfm.server.api_keys import KeyFile
from ragfm.server.api_models import ChatChunk
from ragfm.server.request_guard import Guard, Limits
from ragfm.server.served_models import Served
from ragfm.server.service import Service, service_of
from ragfm.server.static_pages import PAGE, add_page

__all__ = ["create_app"]

_PUBLIC = {"/healthz", "/readyz"}
_ERRORS = {
    400: "The request can't be read, or asks for what can't be done.",
    401: "There is no such key.",
    404: "There is no such thing, or none for this key.",
    408: "The body took too long to come.",
    413: "The body is too large, or there is no room for more of the key's uploads.",
    429: "Too many requests; `Retry-After` says when to come again.",
    500: "The server failed.",
    503: "The server can't answer now.",
}


def create_app(served: Served, *, keys: KeyFile | None, limits: Limits = Limits()) -> FastAPI:  # noqa: B008  frozen
    """The server of these models. Without `keys` it has to be reached from its own machine alone."""
    service = Service(served, limits)
    app = FastAPI(
        title="ragfm", version=__version__, lifespan=_living, docs_url=None, redoc_url=None,
        description="Cited answers over your own documents, as OpenAI's clients ask for them.",
        responses={status: {"model": ErrorBody, "description": said} for status, said in _ERRORS.items()},
        exception_handlers=dict.fromkeys((HTTPException, RequestValidationError, Exception), answer_error),
    )  # fmt: skip
    app.state.service = service
    for part in (chat_routes, search_routes, document_routes):
        app.include_router(part.router)
    _add_operations(app)
    app.state.tools = _tools(app, service)
    add_page(app)
    app.add_middleware(
        Guard, keys=keys, limits=limits, metrics=service.metrics, public=(_PUBLIC | PAGE.keys()).__contains__
    )  # fmt: skip
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


class Health(BaseModel):
    """The server lives; or it is ready, or says why it isn't."""

    status: str


def _add_operations(app: FastAPI) -> None:
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process lives."""
        return Health(status="ok")

    @app.get("/readyz")
    async def readyz(request: Request, response: Response) -> Health:
        """Whether it can answer: models are loaded, and it is not about to end."""
        service = service_of(request)
        ready = service.warm and not service.closing
        response.status_code = 200 if ready else 503
        return Health(status="ready" if ready else "ending" if service.closing else "loading models")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _tools(app: FastAPI, service: Service) -> AbstractAsyncContextManager[Any]:
    """Add the tools of the Model Context Protocol, where its library is installed; gives what runs beside them."""
    if find_spec("mcp") is None:
        return nullcontext()
    from ragfm.server.mcp_server import mount

    return mount(app, service, lambda error: as_api_error(error).detail)


@asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    """Load the models and index uploads in the background, for as long as the server lives."""
    service: Service = app.state.service
    tasks = [asyncio.create_task(indexer.work()) for indexer in service.indexers.values()]
    tasks.append(asyncio.create_task(service.served.run(service.warm_up)))
    try:
        async with app.state.tools:
            yield
    finally:
        service.stop()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        service.served.close()


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI with what it can't know: keys, the events of streams, and that what it calls 422 is a 400."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, item in schema["paths"].items():
            for operation in item.values():
                operation["responses"].pop("422", None)
                operation["security"] = [] if path in _PUBLIC else [{"key": []}]
        forms = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            forms.pop(name, None)
        _, events = models_json_schema([(ChatChunk, "validation")], ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] = events["$defs"] | forms
        app.openapi_schema = schema
    return app.openapi_schema
