"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from __future__ import annotations

import errno
import re

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from ragfm.core.errors import (
    CollectionBusyError,
    CollectionUnavailableError,
    ContextOverflowError,
    DataError,
    DiskFullError,
    EndpointError,
    FilterError,
    RagfmError,
    ReaderBusyError,
    TooLongError,
    UnsupportedError,
)
from ragfm.server.api_models import UNKNOWN_MEMBER
from ragfm.server.fair_queue import QueueFullError
from ragfm.server.json_logging import request_fields

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_TYPE_NAME = re.compile(r"str|constrained-str|list\[.+\]")  # pydantic's, in the place of an error
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    """An error. `param` is the parameter of the request that caused it, `request_id` the id in the server's log."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """The body of an error response, as in OpenAI's API."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error response."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        headers = {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    @property
    def body(self) -> ErrorBody:
        """The response's body."""
        default = "invalid_request_error" if self.status_code < 500 else "server_error"
        error_type = _TYPES.get(self.status_code, default)
        request_id = request_fields.get().get("request_id")
        detail = ErrorDetail(
            message=self.detail, type=error_type, param=self.param, code=self.code, request_id=request_id
        )
        return ErrorBody(error=detail)


def shutting_down() -> ApiError:
    """The error of requests that cannot be finished before the end of the server."""
    return ApiError(503, "The server is shutting down.", code="ending", retry_after=5)


def not_found(kind: str, name: str) -> ApiError:
    """The error for a thing that does not exist, and for one that the key may not see."""
    return ApiError(404, f"There is no {kind} {name!r}.", code=f"{kind}_not_found", param=kind)


def as_api_error(error: Exception) -> ApiError:
    """The response for an exception. Errors that the client cannot fix give no details."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            # Of a value that may have several types, the error of the one that it comes nearest to.
            detail = max(error.errors(), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"])))
            part, *where = (key for key in detail["loc"] if not _TYPE_NAME.fullmatch(str(key)))
            if detail["type"] == UNKNOWN_MEMBER:
                where.append(detail["ctx"]["name"])
            if detail["type"] == "json_invalid":
                message = f"The body is not JSON: {detail['ctx']['error']} at character {where[0]}."
                return ApiError(400, message, code="invalid_request")
            if part == "body" and not where:
                message = "The body is not a JSON object, or lacks the header `Content-Type: application/json`."
                return ApiError(400, message, code="invalid_request")
            param = ".".join(map(str, where if part in ("body", "query", "path") else [part, *where]))
            message = f"{param}: {detail['msg'][0].lower()}{detail['msg'][1:]}" if param else detail["msg"]
            return ApiError(400, f"{message}.", code="invalid_request", param=param or None)
        case HTTPException():
            code = _CODES.get(error.status_code, "invalid_request")
            return ApiError(error.status_code, str(error.detail), code=code)
        case QueueFullError():
            return ApiError(429, f"{error}.".capitalize(), code="queue_full", retry_after=error.retry_after)
        case ReaderBusyError():
            return ApiError(429, "The reader is busy.", code="queue_full", retry_after=1)
        case EndpointError():
            # Without its message, which names hosts.
            return ApiError(503, "The reader's server failed. Ask again.", code="reader_unavailable", retry_after=1)
        case CollectionBusyError():
            return ApiError(503, "The collection is busy.", code="collection_busy", retry_after=1)
        case CollectionUnavailableError():
            return ApiError(503, "The database cannot be reached.", code="collection_unavailable", retry_after=5)
        case ContextOverflowError():
            return ApiError(400, error.message, code="context_length_exceeded")
        case TooLongError():
            return ApiError(400, error.message, code="too_long")
        case DataError():
            return ApiError(400, str(error), code="invalid_request")
        case FilterError():
            return ApiError(400, str(error), code="invalid_filter")
        case UnsupportedError():
            return ApiError(400, error.message, code="unsupported")
        case DiskFullError() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ApiError(507, "The server's disk is full. Nothing was stored.", code="disk_full")
        case TimeoutError():
            return ApiError(503, "The request timed out.", code="timeout", retry_after=1)
    code = "ragfm_error" if isinstance(error, RagfmError) else "internal_error"
    return ApiError(500, "The server failed. Its log has the reason under this request's id.", code=code)


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP response of an error."""
    return JSONResponse(error.body.model_dump(), error.status_code, error.headers)


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise ApiError for a parameter or form field that the route does not have: its sender relies on its effect."""
    route = request.scope["route"].dependant
    form = list(await request.form()) if route.body_params else []
    for kind, names, fields in (
        ("parameter", list(request.query_params), route.query_params),
        ("field", form, route.body_params),
    ):
        known = [field.alias for field in fields]
        for name in names:
            if name not in known:
                message = f"{name}: there is no such {kind}. Known are {', '.join(known) or 'none'}."
                raise ApiError(400, message, code="invalid_request", param=name)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler. Leaves the exception for the request log."""
    request.state.error = error
    response = error_response(as_api_error(error))
    if response.status_code == 405:  # Starlette's own header has the methods of one route of the path only
        routes, scope = request.app.routes, request.scope
        allowed = (
            method
            for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
            if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
        )
        response.headers["Allow"] = ", ".join(allowed)
    return response
