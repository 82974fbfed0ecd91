"""Runs the process that indexes uploads. That process has the owner's handle, which the server must not have.

The process starts when there is work, reports as lines of JSON and ends with the server. It may be killed at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from time import monotonic
from typing import Any

from ragfm.core.errors import RagfmError
from ragfm.core.tracing import trace_headers
from ragfm.server.api_models import State
from ragfm.server.json_logging import log_event
from ragfm.server.served_models import Handles
from ragfm.store.collection_store import UploadStore
from ragfm.store.uploads import Upload

_POLL_SECONDS = 2.0  # between two looks at uploads that other servers share
_POLL_SECONDS_AFTER_ERROR = 20.0
_SETTLED_SECONDS = 0.2  # between two looks at whether an upload is settled
RETRY_SECONDS = (2, 10, 60, 300)  # after the first, second, … failure
_log = logging.getLogger(__name__)


class IndexSupervisor:
    """Keeps a collection's index up to date with its uploads. Belongs to one event loop.

    Of the servers that share uploads, the first to see that there is work, and that no other one does it, has the turn.
    """

    def __init__(self, collection: str, uploads: UploadStore, handles: Handles) -> None:
        self._collection, self._uploads, self._handles = collection, uploads, handles
        self._name = handles.as_groups(frozenset()).location  # without a password
        self._requested = asyncio.Event()
        self._trace: Mapping[str, str] = {}  # of the newest request
        self._last_request = 0.0  # time, by `monotonic`, which all processes of a machine share
        self._synced_as_of = 0.0  # when the last successful slice began
        self._running = False
        self.error: str | None = None
        """Why the last run failed, for the log: it may name other users and machines."""
        self._busy = False  # whether another process was writing
        self._waiting_since: float | None = None  # time of the oldest request that no slice has done
        self._elsewhere = False  # whether another server indexes them

    def request_run(self) -> None:
        """Request that the uploads are indexed as they are now."""
        self._last_request, self._trace = monotonic(), trace_headers()
        if self._waiting_since is None:
            self._waiting_since = self._last_request
        self._requested.set()

    @property
    def lag(self) -> float:
        """Age in seconds of the oldest upload or deletion that is not indexed."""
        return 0.0 if self._waiting_since is None else monotonic() - self._waiting_since

    async def wait_until_settled(self, upload: Upload) -> None:
        """Wait until an upload or its deletion is indexed, by this server or another one."""
        while await asyncio.to_thread(self._uploads.is_pending, upload):
            await asyncio.sleep(_SETTLED_SECONDS)

    @property
    def reason(self) -> str | None:
        """Why the last run failed, for users."""
        if self.error is None:
            return None
        return "Another process is writing to the collection." if self._busy else "The server's log has the reason."

    def state(self, upload: Upload) -> tuple[State, str | None]:
        """State and error of an upload that is not in the collection."""
        if upload.error is not None:
            return "failed", upload.error
        if self._running or self._elsewhere:
            return "indexing", None
        return "queued", self.reason

    async def run(self) -> None:
        """Index on request until cancelled."""
        await asyncio.to_thread(self._uploads.remove_leftovers)
        if not self._uploads.shared and (await asyncio.to_thread(self._uploads.poll))[0]:
            self.request_run()
        failures = 0
        while True:
            await self._wait_for_work()
            try:
                await self._refresh()
                self._handles.indexing = self._running = True
                self.error = await self._run_worker()
            except (OSError, ValueError) as error:  # the process did not start, or its output is not valid
                self.error = f"{type(error).__name__}: {error}"
            except RagfmError as error:
                self.error = error.message
            finally:
                self._handles.indexing = self._running = False
            if self.error is None:
                failures = 0
                if self._synced_as_of >= self._last_request:  # its last slice included what was requested meanwhile
                    self._requested.clear()
                continue
            log_event(_log, logging.WARNING, "indexing_failed", self.error, collection=self._name)
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
            failures += 1
            self._requested.set()

    async def _wait_for_work(self) -> None:
        """Wait for a request. Uploads that servers share may also wait since another server was killed."""
        while self._uploads.shared:
            self._requested.clear()
            seconds = _POLL_SECONDS
            try:
                waiting, self._elsewhere = await asyncio.to_thread(self._uploads.poll)
                self._waiting_since = (self._waiting_since or monotonic()) if waiting else None
            except RagfmError as error:  # readiness and requests report it, too
                waiting, self._elsewhere, seconds = False, False, _POLL_SECONDS_AFTER_ERROR
                _log.debug("%s", error)
            if waiting and not self._elsewhere:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), seconds)
        await self._requested.wait()
        self._requested.clear()

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._handles.refresh)
        except RagfmError as error:  # each search will report it
            log_event(_log, logging.WARNING, "refresh_failed", str(error), collection=self._name)

    async def _run_worker(self) -> str | None:
        """Run the process once. Returns why it failed, or None."""
        error: str | None = None
        busy = False
        try:
            async with aclosing(worker_messages(self._collection, trace=self._trace)) as messages:
                async for message in messages:
                    if "error" in message:
                        error, busy = error or message["error"], busy or message.get("busy", False)
                        continue
                    await asyncio.to_thread(partial(self._uploads.record_slice, **message))
                    began = self._synced_as_of = message["began"]
                    if not message["waiting"]:  # what came later came after the slice began
                        self._waiting_since = began if self._last_request > began else None
                    await self._refresh()
        finally:
            self._busy = busy  # only now, with the error that it belongs to
        return error


async def worker_messages(
    collection: str, *words: str, trace: Mapping[str, str] | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Start an index worker and yield its messages, at the end one with `error` if it crashed. Closing kills it."""
    command = [sys.executable, "-m", "ragfm.server.index_worker", *words]
    pipe = asyncio.subprocess.PIPE
    env = os.environ | {name.upper(): value for name, value in (trace or {}).items()}
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26, env=env)
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(f"{collection}\n".encode())  # other users see a process's arguments
        async for line in process.stdout:
            yield json.loads(line)
        if await process.wait():
            yield {"error": "the indexing process crashed"}
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
