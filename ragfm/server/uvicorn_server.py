"""Runs uvicorn with limits on request heads and a graceful shutdown on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ragfm import __version__
from ragfm.core.errors import ConfigError
from ragfm.server.json_logging import log_event
from ragfm.server.request_guard import MAX_HEAD_BYTES
from ragfm.server.service import Service

HEAD_SECONDS = 10.0
"""Time limit for a request's head, from its first byte or from the start of the connection."""
_DRAIN_SECONDS = 30.0
# How long a thread may keep the interpreter. A search gives it up dozens of times, and waits for this long each time if
# another request computes in Python: with the default of 5 ms, it took several times as long.
_SWITCH_SECONDS = 0.0005
_REPORT_SECONDS = 5.0  # after the drain, to tell clients that their answers are cut off
_KEPT_SECONDS = 1.0  # after SIGTERM, for requests that are on their way on kept connections
_CLOSE = (b"connection", b"close")
_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves an application. `run` returns when the server has ended.

    `drain` is the time in seconds that running answers have on shutdown. After SIGTERM, the server accepts requests for
    `shutdown_delay` more seconds, while `/readyz` already fails. `on_listening` is called with the server's address.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str,
        port: int,
        drain: float = _DRAIN_SECONDS,
        shutdown_delay: float = 0.0,
        on_listening: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._service: Service = app.state.service
        self._drain, self._shutdown_delay, self._on_listening = drain, shutdown_delay, on_listening
        self._terminated, self._signal = False, ""
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=round(drain + _REPORT_SECONDS),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down gracefully on the first signal and at once on the second."""
        self._signal = signal.Signals(sig).name
        self._terminated |= sig != signal.SIGINT  # after Ctrl-C, a person waits, and no proxy
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Listen and report the address. Raises ConfigError if the server cannot listen."""
        try:
            await super().startup(sockets)
        except SystemExit as error:  # raised by uvicorn
            address = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"The server cannot listen at {address}.", "Use another --host or --port.") from error
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            names = list(self._service.served.models)
            log_event(_log, logging.INFO, "start", version=__version__, address=address, models=names, pid=os.getpid())
            self._on_listening(address)

    async def shutdown(self, sockets: Any = None) -> None:
        """Fail `/readyz`, accept no more connections after the delay, and end the running answers after the drain time.

        From the start, responses tell clients to close their connections, so that these move to another server.
        """
        log_event(_log, logging.INFO, "stop", signal=self._signal, running=self._service.running)
        self._service.ending = True
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        if self._terminated:
            await self._wait(self._shutdown_delay, lambda: True)
        asyncio.get_running_loop().call_later(self._drain, self._service.stop)

        # Close the listening sockets, and serve the connections that the kernel has accepted before: their clients have
        # sent a request, and would see it fail. asyncio only closes the socket, which resets them.
        loop, accepted = asyncio.get_running_loop(), list[socket.socket]()
        for server in self.servers:
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
        for _ in range(3):  # what asyncio has accepted gets its protocol in the next steps of the loop
            await asyncio.sleep(0)
        for server in self.servers:
            for listener in server.sockets:
                with socket.socket(fileno=os.dup(listener.fileno())) as copy, suppress(BlockingIOError):
                    while True:
                        accepted.append(copy.accept()[0])
            server.close()
        protocol = partial(_Protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        for connection in accepted:
            connection.setblocking(False)
            await loop.connect_accepted_socket(protocol, connection)

        if self._terminated:
            await self._wait(_KEPT_SECONDS, lambda: bool(self.server_state.connections))
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, goes_on: Callable[[], bool]) -> None:
        deadline = monotonic() + seconds
        while monotonic() < deadline and goes_on() and not self.force_exit:
            await asyncio.sleep(0.05)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Reload the settings on SIGHUP. A terminal sends it when it is closed: then it is handled like SIGTERM.

        Where it is ignored, as by `nohup`, it stays so. By default it would kill the process.
        """
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop = asyncio.get_running_loop()
            reload = partial(loop.call_soon_threadsafe, self._reload)
            signal.signal(signal.SIGHUP, self.handle_exit if _has_terminal() else lambda *_: reload())
        with super().capture_signals():
            yield

    def _reload(self) -> None:
        app: FastAPI = self.config.app  # type: ignore[assignment]
        self._reloading = asyncio.create_task(self._service.reload(app.state.sign_in))  # kept, or it might be collected

    def run(self, sockets: Any = None) -> None:
        """Serve until a signal arrives."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        with suppress(ValueError, OSError):  # each connection is an open file
            _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        super().run(sockets)
        log_event(_log, logging.INFO, "stopped")


def _has_terminal() -> bool:
    """Whether a terminal controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _Protocol(H11Protocol):
    """HTTP/1.1 with a time limit for a request's head, which uvicorn lacks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._idle:
            self._start_deadline()
        super().data_received(data)
        if not self._idle:
            self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        """Whether no request is running, so that the next bytes belong to a head."""
        return self.cycle is None or self.cycle.response_complete

    def _start_deadline(self) -> None:
        def abort_if_idle() -> None:
            if self._idle:
                self.transport.abort()

        self._deadline = self.loop.call_later(HEAD_SECONDS, abort_if_idle)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
