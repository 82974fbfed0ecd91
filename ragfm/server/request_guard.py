"""ASGI middleware in front of all routes: authentication, limits, cancellation, and one log line per request.

It is plain ASGI, so that a request is refused before its body is read.

    head → Host and Origin (without keys) → key or user → rate → size and time of the body → routes → log, metrics
                                                       └── the client disconnects: the route is cancelled
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
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from ragfm.core.errors import CollectionError, ConfigError
from ragfm.core.tracing import Span, span
from ragfm.server.api_errors import ApiError, as_api_error, error_response, shutting_down
from ragfm.server.api_keys import SCOPES, Key, KeyFile, RequestCounter, User, hash_secret
from ragfm.server.api_keys import Scope as KeyScope
from ragfm.server.json_logging import log_event, request_fields
from ragfm.server.prometheus_metrics import Metrics
from ragfm.server.static_pages import PAGE_HEADER, USER_HEADER

if TYPE_CHECKING:
    from ragfm.server.key_table import KeyTable
    from ragfm.server.sign_in import SignIn

KeyStore: TypeAlias = "KeyFile | KeyTable"
"""Where the keys are: a file, or the database of a collection."""
LOCAL_KEY = Key(name="local", per_minute=1e9, uploads_mb=1e9, scopes=SCOPES)
"""The key of all requests to a server without keys."""
UPLOADS_PATH = "/v1/documents"
"""The only path with large request bodies."""
METRICS_PATH = "/metrics"
PROBES = ("/healthz", "/readyz")
_UNTRACED = (*PROBES, METRICS_PATH)
MAX_HEAD_BYTES = 32 * 2**10
"""Maximum size of a request's head."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_CLIENT_CLOSED = 499  # nginx's status for a client that disconnects; it is only logged
_METHODS = {"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"}
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
_request_log = logging.getLogger("ragfm.server.requests")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request. Sizes are in bytes, times in seconds.

    `uploads_waiting` is the maximum number of uploads of a key that are not indexed yet, `commit_waits` that of its
    requests that wait for a commit, each for up to `commit_seconds`, and `attempts_per_minute` that of requests of an
    address whose key was not valid before. More of these are refused after `refusal_seconds`, so that a client that
    repeats its request at once takes no time from others.
    """

    body: int = 2**20
    upload: int = 100 * 2**20
    body_seconds: float = 30.0
    upload_seconds: float = 600.0
    answer_seconds: float = 300.0
    answer_tokens: int = 1024
    uploads_waiting: int = 20
    commit_waits: int = 16
    commit_seconds: float = 10.0
    attempts_per_minute: int = 300
    refusal_seconds: float = 1.0


class RequestGuard:
    """The middleware. Without `keys`, only local requests are accepted. Paths that are `is_public` need no key.

    With `sign_in`, users are accepted, too.
    """

    def __init__(
        self,
        app: Any,
        *,
        keys: KeyStore | None,
        sign_in: SignIn | None,
        limits: Limits,
        metrics: Metrics,
        is_public: Callable[[str], bool],
    ) -> None:
        self._app, self._keys, self._limits, self._metrics, self._is_public = app, keys, limits, metrics, is_public
        self._sign_in = sign_in
        self._attempts = RequestCounter()  # by address: each attempt would cost a look at the database
        self._known: set[str] = set()  # hashes of keys that were valid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the routes, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        request_fields.set({"request_id": request_id})  # uvicorn has a task for each request
        if scope["path"] in _UNTRACED:
            await self._handle(scope, headers, request_id, receive, send, Span())
            return
        with span("request", headers, request_id=request_id) as active:
            await self._handle(scope, headers, request_id, receive, send, active)

    async def _handle(
        self, scope: Scope, headers: Headers, request_id: str, receive: Receive, send: Send, active: Span
    ) -> None:
        status, complete, body = _CLIENT_CLOSED, False, None
        start = monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["x-request-id"] = request_id
                sent["x-content-type-options"] = "nosniff"
                sent["cross-origin-resource-policy"] = "same-origin"
                if self._sign_in is not None and PAGE_HEADER in headers:
                    user = state.get("key")
                    sent[USER_HEADER] = f"{quote(user.name)} {quote(user.label)}" if isinstance(user, User) else ""
                if is_large and body is not None and not body.complete.is_set():
                    sent["connection"] = "close"  # it was refused before all of its body was read
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        state, limits = scope.setdefault("state", {}), self._limits
        state["request_id"] = request_id
        if scope["path"] == UPLOADS_PATH:
            max_bytes, seconds = limits.upload, limits.upload_seconds
        else:
            max_bytes, seconds = limits.body, limits.body_seconds
        length = headers.get("content-length", "0")
        # A small body is read in any case, so that the client sees the response.
        is_large = "transfer-encoding" in headers or not length.isdecimal() or int(length) > limits.body
        try:
            _check_head(scope, headers)
            state["key"] = await self._authenticate(scope, headers)
            if not length.isdecimal() or int(length) > max_bytes:
                raise _too_large(max_bytes)
        except ApiError as error:
            state["error"] = error
            response = error_response(error)
            if is_large or error.status_code == 431:
                response.headers["connection"] = "close"
            await response(scope, receive, send_with_id)
        else:
            try:
                body = _Body(receive, max_bytes, seconds)
                await _run_until_disconnect(self._app, scope, body, send_with_id)
            except asyncio.CancelledError:  # the drain time is over
                state["error"] = shutting_down()
                if status != _CLIENT_CLOSED:
                    raise
                await error_response(state["error"])(scope, receive, send_with_id)
            except Exception as error:  # uvicorn would log the traceback, which may contain text of documents
                state["error"] = error
                if status == _CLIENT_CLOSED:
                    await error_response(as_api_error(error))(scope, receive, send_with_id)
        finally:
            self._record(scope, status if complete else _CLIENT_CLOSED, monotonic() - start, active)

    async def _authenticate(self, scope: Scope, headers: Headers) -> Key | None:
        """The key of a request, None for a public path. Raises ApiError if the request is not allowed."""
        if self._is_public(scope["path"]):
            return None
        if self._keys is None:  # refuse pages of other sites, direct or through a name that resolves to this machine
            host, origin = urlsplit(f"//{headers.get('host', '')}").hostname, headers.get("origin")
            if host not in _LOOPBACK or (origin is not None and urlsplit(origin).netloc != headers.get("host")):
                raise ApiError(403, "A server without keys accepts local requests only.", code="not_local")
            return LOCAL_KEY
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        secret, keys = secret.strip(), self._keys
        secret = secret if scheme.lower() == "bearer" else ""
        address, digest = (scope["client"] or ("", 0))[0], hash_secret(secret)
        refusal = ApiError(401, "A valid key is required: `Authorization: Bearer KEY`.", code="invalid_api_key")
        user: User | None = None
        if self._sign_in is not None:
            try:
                user = await self._sign_in.find(HTTPConnection(scope), secret)
            except ApiError as error:
                if error.status_code != 401:
                    raise
                secret, refusal = "", error
        # Behind a proxy, all clients may have one address: a key that was valid does not count as an attempt.
        known = user is not None or digest in self._known
        blocked_seconds = 0.0 if known else self._attempts.take(address, self._limits.attempts_per_minute)

        def admit() -> tuple[Key | None, float]:
            """The key, and the seconds until its next request is allowed."""
            key = user or keys.find(secret)
            return key, keys.take(key) if key else 0.0

        key, seconds = None, 0.0
        try:
            if user or (secret and not (blocked_seconds and keys.remote)):
                key, seconds = await asyncio.to_thread(admit) if keys.remote else admit()
        except (ConfigError, CollectionError) as error:
            log_event(_log, logging.ERROR, "keys_unreadable", str(error))
            raise ApiError(503, "Keys cannot be checked now.", code="keys_unreadable", retry_after=10) from error
        if key is None:
            self._known.discard(digest)
            if blocked_seconds:
                await asyncio.sleep(self._limits.refusal_seconds)
                message = "This address has sent too many requests without a valid key."
                raise ApiError(429, message, code="too_many_invalid_keys", retry_after=int(blocked_seconds) + 1)
            raise refusal
        scope["state"]["key"] = key  # for the log, also of a request that is refused
        request_fields.set({**request_fields.get(), "key": key.name})
        if key.expired:
            raise ApiError(401, "The key has expired.", code="expired_api_key")
        if user is None:
            self._known.add(digest)
        if seconds > 0:
            message = "The key has reached its limit of requests per minute."
            raise ApiError(429, message, code="rate_limit", retry_after=int(seconds) + 1)
        scope_needed: KeyScope = "read"
        if scope["path"] == METRICS_PATH:
            scope_needed = "metrics"
        elif scope["path"].startswith(UPLOADS_PATH) and scope["method"] in ("POST", "DELETE"):
            scope_needed = "write"
        if scope_needed not in key.scopes:
            message = f"The key has the scopes {', '.join(key.scopes) or 'none'}, not {scope_needed}."
            raise ApiError(403, message, code="missing_scope")
        return key

    def _record(self, scope: Scope, status: int, seconds: float, active: Span) -> None:
        """Update the metrics and write a log line. A stream that ended with an error counts with the error's status."""
        route = getattr(scope.get("route"), "path", "") or "none"
        state = scope["state"]
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key, error = state.get("key"), state.get("error")
        failure = None if error is None else as_api_error(error)
        if failure is not None:
            status = failure.status_code
            self._metrics.failures.labels(failure.code).inc()
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        active.rename(f"{method} {route}")
        active.set(method=method, route=route, status_code=status, key=key.name if key else None)
        if failure is not None and status >= 500:
            active.fail(type(error).__name__)
        client = scope.get("client")
        fields = {
            "request_id": state["request_id"],
            "client": client[0] if client else None,
            "key": key.name if key else None,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(1000 * seconds),
            **state.get("log_fields", {}),
        }
        if failure is not None:
            fields |= {"error": type(error).__name__, "code": failure.code}
        level = logging.DEBUG if failure is None and scope["path"] in _UNTRACED else logging.INFO
        log_event(_request_log, level, "request", **fields)
        if error is None or failure is error or status < 500:
            return
        # The message may contain text of documents: only its type and place are logged.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        about = {"request_id": state["request_id"], "error": type(error).__name__, "place": place}
        log_event(_log, logging.ERROR, "error", **about)
        _log.debug("The request failed.", exc_info=error, extra={"event": "traceback", "fields": about})


class _Body:
    """A request's body within its limits; after the body, whether the client is still connected."""

    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive, self._max_bytes, self._deadline = receive, max_bytes, monotonic() + seconds
        self._bytes_read = 0
        self.complete = asyncio.Event()
        self.disconnected = asyncio.Event()

    async def receive(self) -> Message:
        """The next ASGI message. Raises ApiError if a limit is exceeded."""
        if self.complete.is_set():
            await self.disconnected.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(max(0.0, self._deadline - monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "The request's body took too long.", code="body_timeout") from error
        self._bytes_read += len(message.get("body", b""))
        if self._bytes_read > self._max_bytes:
            raise _too_large(self._max_bytes)
        if message["type"] == "http.disconnect":
            self.complete.set()
            self.disconnected.set()
        elif not message.get("more_body", False):
            self.complete.set()
        return message

    async def wait_for_disconnect(self) -> None:
        await self.complete.wait()
        while not self.disconnected.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.disconnected.set()


async def _run_until_disconnect(app: Any, scope: Scope, body: _Body, send: Send) -> None:
    task = asyncio.current_task()
    assert task

    def cancel_route(_: asyncio.Task[None]) -> None:
        if body.disconnected.is_set():
            task.cancel()

    watcher = asyncio.create_task(body.wait_for_disconnect())
    watcher.add_done_callback(cancel_route)
    try:
        await app(scope, body.receive, send)
    except asyncio.CancelledError:
        if not body.disconnected.is_set():
            raise
        task.uncancel()
    finally:
        watcher.remove_done_callback(cancel_route)
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes:,} bytes.", code="too_large")


def _check_head(scope: Scope, headers: Headers) -> None:
    """Refuse a head that is too large, or that a proxy and this server may read differently."""
    # The HTTP library limits only what it has to buffer, not a head that arrives at once.
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in headers.raw)
    if size > MAX_HEAD_BYTES:
        message = f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes."
        raise ApiError(431, message, code="head_too_large")
    for part in (scope["raw_path"], scope["query_string"]):
        try:
            decoded = unquote_to_bytes(part).decode()
        except UnicodeDecodeError as error:
            message = "The path or a query parameter is not valid UTF-8. Encode it as UTF-8, then with `%`."
            raise ApiError(400, message, code="invalid_request") from error
        if "\0" in decoded:
            message = "The path or a query parameter has a NUL character (`%00`), which no name has. Remove it."
            raise ApiError(400, message, code="invalid_request")
    if "content-length" in headers and "transfer-encoding" in headers:
        message = "A request has either Content-Length or Transfer-Encoding, not both."
        raise ApiError(400, message, code="invalid_request", param="transfer-encoding")
    for name, prefix in (("host", "//"), ("origin", "")):
        try:
            _ = urlsplit(f"{prefix}{headers.get(name, '')}").port
        except ValueError as error:
            raise ApiError(400, f"The header {name!r} is not valid.", code="invalid_request", param=name) from error
