"""Errors as clients of OpenAI's API know them: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ragfm.core.errors import (
    CollectionBusyError,
    ContextOverflowError,
    FilterError,
    RagfmError,
    ReaderBusyError,
    TooLongError,
    UnsupportedError,
)
from ragfm.server.fair_queue import Busy

__all__ = ["ApiError", "ErrorBody", "as_api_error", "error_response", "not_found"]


class ErrorDetail(BaseModel):
    """What went wrong; `param` is the part of the request that it is about."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error, as OpenAI's API gives it."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An answer with a status that is not 200."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(status, message, headers | ({} if retry_after is None else {"Retry-After": str(retry_after)}))
        self.code, self.param = code, param

    @property
    def body(self) -> ErrorBody:
        """What the client is told."""
        kind = _TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return ErrorBody(error=ErrorDetail(message=self.detail, type=kind, param=self.param, code=self.code))


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


def not_found(what: str, name: str) -> ApiError:
    """What is said of something that isn't there, and of something that isn't yours."""
    return ApiError(404, f"There is no {what} {name!r}.", code=f"{what}_not_found", param=what)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error. Of one that it can't mend it hears no more than that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), code=_CODES.get(error.status_code, "invalid_request"))
    if isinstance(error, Busy):
        return ApiError(429, f"{error}.".capitalize(), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ReaderBusyError):
        return ApiError(429, "The reader is busy.", code="queue_full", retry_after=1)
    if isinstance(error, CollectionBusyError):
        return ApiError(503, "The collection is busy.", code="collection_busy", retry_after=1)
    if isinstance(error, TooLongError):
        code = "context_length_exceeded" if isinstance(error, ContextOverflowError) else "too_long"
        return ApiError(400, error.message, code=code)
    if isinstance(error, FilterError | UnsupportedError):
        return ApiError(400, error.message, code="invalid_filter" if isinstance(error, FilterError) else "unsupported")
    if isinstance(error, TimeoutError):
        return ApiError(503, "It took too long.", code="timeout", retry_after=1)
    kind = "ragfm_error" if isinstance(error, RagfmError) else "internal_error"
    return ApiError(500, "The server failed; its log says why, under this request's id.", code=kind)


def error_response(error: ApiError) -> JSONResponse:
    """The response that an error becomes."""
    return JSONResponse(error.body.model_dump(), error.status_code, error.headers)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The same, as FastAPI calls it; what went wrong is left for the log."""
    request.state.error = error
    return error_response(as_api_error(error))


def _invalid(error: RequestValidationError) -> ApiError:
    detail = error.errors()[0]
    at = ".".join(str(part) for part in detail["loc"] if part not in ("body", "query", "path"))
    said = f"{at}: {detail['msg'][0].lower()}{detail['msg'][1:]}" if at else detail["msg"]
    return ApiError(400, f"{said}.", code="invalid_request", param=at or None)
