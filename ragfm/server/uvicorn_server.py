"""uvicorn, as it is run: slow and huge heads are cut off, and SIGTERM lets what runs come to its end."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ragfm.core.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from ragfm.server.service import Service

__all__ = ["Server"]

HEAD_SECONDS = 10.0
"""How long the head of a request may take to come, from its first byte or the connection's beginning."""
_HEAD_BYTES = 32 * 2**10
_DRAIN = 30.0  # seconds that running answers have once the server is to end
_CLEAR = 5.0  # seconds more for saying that there is no more time


class Server(uvicorn.Server):
    """Serves an application. `told` is called with the address once it listens; `run` returns when it has ended."""

    def __init__(
        self, app: FastAPI, *, host: str, port: int, drain: float = _DRAIN, told: Callable[[str], None] = lambda _: None
    ) -> None:
        self._service: Service = app.state.service
        self._drain, self._told = drain, told
        super().__init__(uvicorn.Config(
            app, host=host, port=port, http=_Protocol, ws="none", loop="asyncio", log_config=None, access_log=False,
            server_header=False, h11_max_incomplete_event_size=_HEAD_BYTES, timeout_keep_alive=30,
            timeout_graceful_shutdown=round(drain + _CLEAR),
        ))  # fmt: skip

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server when all have their answers, the second one at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and tell where. Raises ConfigError where that can't be done."""
        try:
            await super().startup(sockets)
        except SystemExit as error:  # uvicorn's own, whose code would mean something else here
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"The server can't listen at {where}.", "Take another --host or --port.") from error
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._told(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
        """Take no more connections, and end the answers that run when the time is over."""
        asyncio.get_running_loop().call_later(self._drain, self._service.stop)
        await super().shutdown(sockets)

    def run(self, sockets: Any = None) -> None:
        """Serve until a signal comes."""
        with suppress(ValueError, OSError):  # each connection is an open file
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        super().run(sockets)


class _Protocol(H11Protocol):
    """HTTP/1.1 with a limit on how long a head may take: uvicorn waits for ever for the rest of one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._idle:
            self._expect_head()
        super().data_received(data)
        if not self._idle:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered, so that what comes is the head of the next."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._cut_off)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off(self) -> None:
        if self._idle:
            self.transport.abort()
