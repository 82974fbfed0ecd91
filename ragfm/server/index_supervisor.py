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

from ragfm.core.errors import RagfmError
from ragfm.server.api_models import IndexingProgress, State
from ragfm.server.served_models import Handles
from ragfm.server.uploads import Upload, Uploads, upload_id

_RETRY_SECONDS = (2, 10, 60, 300)  # after the first, second, … failure
_log = logging.getLogger(__name__)


class IndexSupervisor:
    """Keeps a collection's index up to date with its uploads. Belongs to one event loop."""

    def __init__(self, collection: Path, uploads: Uploads, handles: Handles) -> None:
        self._collection, self._uploads, self._handles = collection, uploads, handles
        self._requested = asyncio.Event()
        self._slice_ended = asyncio.Condition()
        self._last_request = 0.0  # time, by `monotonic`, which all processes of a machine share
        self._synced_as_of = 0.0  # when the last successful slice began
        self._progress: IndexingProgress | None = None  # of the current run
        self._error: str | None = None  # of the last run
        self._failed: dict[str, str] = {}  # by URI, why a document is not indexed
        # By id, the owner of each upload that is not indexed completely, and the time from which it was known.
        self._waiting: dict[str, tuple[str, float]] = {}

    def request_run(self, upload: Upload | None = None) -> float:
        """Request that the uploads are indexed as they are now, with a new one. Returns the time of the request."""
        self._last_request = monotonic()
        self._requested.set()
        if upload is not None:
            self._waiting[str(upload_id(upload.uri))] = upload.owner, self._last_request
        return self._last_request

    def waiting(self, owner: str) -> int:
        """Number of the owner's uploads that are not indexed yet."""
        return sum(owner == other for other, _ in self._waiting.values())

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
                await self._refresh()
                self._handles.indexing = True
                self._error = await self._run_worker()
            except (OSError, ValueError) as error:  # the process did not start, or its output is not valid
                self._error = f"{type(error).__name__}: {error}"
            finally:
                self._progress = None
                self._handles.indexing = False
            if self._error is None:
                failures = 0
                if self._synced_as_of >= self._last_request:  # its last slice included what was requested meanwhile
                    self._requested.clear()
                continue
            _log.warning("Indexing the uploads of '%s' failed and will be retried: %s", self._collection, self._error)
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1
            self._requested.set()

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._handles.refresh)
        except RagfmError as error:  # each search will report it
            _log.warning("The search of '%s' cannot be brought up to date: %s", self._collection, error)

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
                    self._failed, began = message["failed"], message["began"]
                    later = {number: known for number, known in self._waiting.items() if known[1] >= began}
                    self._waiting = {number: (owner, began) for number, owner in message["waiting"].items()} | later
                    async with self._slice_ended:
                        self._synced_as_of = began
                        self._slice_ended.notify_all()
                    await self._refresh()
            if await process.wait():
                error = error or "the indexing process crashed"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return error
