"""Runs the process that indexes uploads. That process has the owner's handle, which the server must not have.

The process starts when there is work, reports as lines of JSON and ends with the server. It may be killed at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic

from ragfm.server.api_models import IndexingProgress, State
from ragfm.server.uploads import Uploads

_RETRY_SECONDS = (2, 10, 60, 300)  # after the first, second, … failure
_log = logging.getLogger(__name__)


class IndexSupervisor:
    """Keeps a collection's index up to date with its uploads. Belongs to one event loop."""

    def __init__(self, collection: Path, uploads: Uploads) -> None:
        self._collection, self._uploads = collection, uploads
        self._requested = asyncio.Event()
        self._slice_ended = asyncio.Condition()
        self._last_request = 0.0  # time, by `monotonic`, which all processes of a machine share
        self._synced_as_of = 0.0  # when the last successful slice began
        self._progress: IndexingProgress | None = None  # of the current run
        self._error: str | None = None  # of the last run
        self._failed: dict[str, str] = {}  # by URI, why a document is not indexed

    def request_run(self) -> float:
        """Request that the uploads are indexed as they are now. Returns the time of the request."""
        self._last_request = monotonic()
        self._requested.set()
        return self._last_request

    async def wait_for_run(self, request: float) -> None:
        """Wait until the uploads have been synced as they were at a request, apart from what waits for its turn."""
        async with self._slice_ended:
            await self._slice_ended.wait_for(lambda: self._synced_as_of >= request)

    def state(self, uri: str) -> tuple[State, IndexingProgress | None, str | None]:
        """State, progress and error of an upload that is not in the collection."""
        if uri in self._failed:
            return "failed", None, self._failed[uri]
        if self._progress is not None:
            return "indexing", self._progress, None
        return "queued", None, self._error

    async def run(self) -> None:
        """Index on request until cancelled."""
        await asyncio.to_thread(self._uploads.remove_incomplete)
        if self._uploads.folder.exists():
            self.request_run()
        failures = 0
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                self._error = await self._run_worker()
            except (OSError, ValueError) as error:  # the process did not start, or its output is not valid
                self._error = f"{type(error).__name__}: {error}"
            finally:
                self._progress = None
            if self._error is None:
                failures = 0
                if self._synced_as_of >= self._last_request:  # its last slice included what was requested meanwhile
                    self._requested.clear()
                continue
            _log.warning("Indexing the uploads of '%s' failed and will be retried: %s", self._collection, self._error)
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1
            self._requested.set()

    async def _run_worker(self) -> str | None:
        """Run the process once. Returns why it failed, or None."""
        command = [sys.executable, "-m", "ragfm.server.index_worker", str(self._collection)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26)
        assert process.stdout
        error: str | None = None
        try:
            async for line in process.stdout:
                message = json.loads(line)
                if "progress" in message:
                    self._progress = IndexingProgress(**message["progress"])
                elif "error" in message:
                    error = message["error"]
                else:
                    self._failed = message["failed"]
                    async with self._slice_ended:
                        self._synced_as_of = message["began"]
                        self._slice_ended.notify_all()
            if await process.wait():
                error = error or "the indexing process crashed"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return error
