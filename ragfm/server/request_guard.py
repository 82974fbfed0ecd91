"""The guard before all routes: whose request it is, what it may cost, when it ends, and one line of log for each.

It is plain ASGI, so that a request is refused before a byte of its body is read.

    Host and Origin (without keys) → key → rate → size and time of the body → the routes → log, metrics
                                                       └── the client goes away: what runs for it is cancelled
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from ragfm.core.errors import ConfigError
from ragfm.server.api_errors import ApiError, as_api_error, error_response
from ragfm.server.api_keys import Key, KeyFile
from ragfm.server.prometheus_metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

__all__ = ["Guard", "Limits"]

LOCAL = Key(name="local", per_minute=1e9, uploads_mb=1e9)
"""Whose requests are those of a server without keys."""
UPLOADS = "/v1/documents"
"""The path whose bodies may be large."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_GONE = 499  # nginx's status for a client that went away; nobody is sent it
_METHODS = {"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"}
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
_log = logging.getLogger("ragfm.server.requests")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost. Sizes are in bytes, times in seconds."""

    body: int = 2**20
    upload: int = 100 * 2**20
    body_seconds: float = 30.0
    upload_seconds: float = 600.0
    answer_seconds: float = 300.0
    answer_tokens: int = 1024
    waiting: int = 64
    """Requests that may wait for each reader."""


class Guard:
    """ASGI middleware. `keys` is None for a server that only its own machine can reach.

    `public` says of a path whether everybody may have it.
    """

    def __init__(
        self, app: Any, *, keys: KeyFile | None, limits: Limits, metrics: Metrics, public: Callable[[str], bool]
    ) -> None:
        self._app, self._keys, self._limits, self._metrics, self._public = app, keys, limits, metrics, public
        self._rates: dict[str, tuple[float, float]] = {}
        """By key: how many requests it may make at once, as of when."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        about: dict[str, Any] = {"id": asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8), "status": _GONE}
        start = monotonic()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                about["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = about["id"]
            await send(message)

        state = scope.setdefault("state", {})
        try:
            state["key"] = self._key(scope, headers)
            body = self._body(scope, headers, receive)
        except ApiError as error:
            response = error_response(error)
            length = headers.get("content-length", "0")
            if "transfer-encoding" in headers or not length.isdecimal() or int(length) > self._limits.body:
                response.headers["connection"] = "close"  # else what comes is read, so that the client sees why
            await response(scope, receive, sending)
        else:
            try:
                await _until_gone(self._app, scope, body, sending)
            except Exception as error:  # no traceback reaches uvicorn's log, which would show what it says
                state["error"] = error
                if about["status"] == _GONE:
                    await error_response(as_api_error(error))(scope, receive, sending)
        finally:
            self._note(scope, about, monotonic() - start)

    def _key(self, scope: Scope, headers: Headers) -> Key | None:
        """Whose request it is. Raises ApiError where it may not be made."""
        if self._public(scope["path"]):
            return None
        if self._keys is None:
            _check_local(headers)
            return LOCAL
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        try:
            key = self._keys.find(secret.strip()) if scheme.lower() == "bearer" and secret else None
        except ConfigError as error:
            logging.getLogger(__name__).error("%s", error)
            raise ApiError(503, "Keys can't be checked now.", code="keys_unreadable", retry_after=10) from error
        if key is None:
            raise ApiError(401, "This needs a key: `Authorization: Bearer KEY`.", code="invalid_api_key")
        self._count(key)
        return key

    def _count(self, key: Key) -> None:
        """A bucket of a minute's requests, refilled as time goes."""
        now = monotonic()
        left, since = self._rates.get(key.name, (key.per_minute, now))
        left = min(max(1.0, key.per_minute), left + (now - since) * key.per_minute / 60)
        if left < 1:
            wait = int((1 - left) * 60 / key.per_minute) + 1
            raise ApiError(429, "Too many requests a minute for this key.", code="rate_limit", retry_after=wait)
        self._rates[key.name] = (left - 1, now)

    def _body(self, scope: Scope, headers: Headers, receive: Receive) -> _Body:
        upload, limits = scope["path"] == UPLOADS, self._limits
        most, seconds = (limits.upload, limits.upload_seconds) if upload else (limits.body, limits.body_seconds)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise _too_large(most)
        return _Body(receive, most, seconds)

    def _note(self, scope: Scope, about: dict[str, Any], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "none"
        state = scope["state"]
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, about["status"]).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        key, error = state.get("key"), state.get("error")
        line = {
            "request_id": about["id"],
            "key": key.name if key else None,
            "method": method,
            "route": route,
            "status": about["status"],
            "ms": round(1000 * seconds),
            **state.get("noted", {}),
        }
        if error is not None:
            line["error"] = type(error).__name__
        _log.info("request", extra={"fields": line})
        if error is None or isinstance(error, ApiError):  # what is meant to be said
            return
        if as_api_error(error).status_code >= 500:  # what it says may be words of a document: only where it was
            logging.getLogger(__name__).error("%s: %s at %s", about["id"], type(error).__name__, _place(error))
            logging.getLogger(__name__).debug("%s", about["id"], exc_info=error)


class _Body:
    """A request's body, within size and time; behind it, whether the client is still there."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._until = receive, most, monotonic() + seconds
        self._read = 0
        self.whole = asyncio.Event()
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        """The next part. Raises ApiError over a limit."""
        if self.whole.is_set():
            await self.gone.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(max(0.0, self._until - monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "The body took too long to come.", code="body_timeout") from error
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise _too_large(self._most)
        if message["type"] == "http.disconnect":
            self.whole.set()
            self.gone.set()
        elif not message.get("more_body", False):
            self.whole.set()
        return message

    async def watch(self) -> None:
        """Wait until the client goes away."""
        await self.whole.wait()
        while not self.gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.gone.set()


async def _until_gone(app: Any, scope: Scope, body: _Body, send: Send) -> None:
    """Run the routes; where the client goes away, what runs is cancelled, wherever it waits."""
    task = asyncio.current_task()
    assert task

    def stop(_: asyncio.Task[None]) -> None:
        if body.gone.is_set():
            task.cancel()

    watching = asyncio.create_task(body.watch())
    watching.add_done_callback(stop)
    try:
        await app(scope, body.receive, send)
    except asyncio.CancelledError:
        if not body.gone.is_set():
            raise
        task.uncancel()
    finally:
        watching.remove_done_callback(stop)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is over {most:,} bytes.", code="too_large")


def _check_local(headers: Headers) -> None:
    """A page that somebody's browser shows must not reach the server, by another name for this machine or directly."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    origin = headers.get("origin")
    if host not in _LOOPBACK or (origin is not None and urlsplit(origin).netloc != headers.get("host")):
        raise ApiError(403, "A server without keys answers this machine only.", code="not_local")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
