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

from ragfm.server.api_models import IndexingProgress, State
from ragfm.server.uploads import Uploads

_RETRY_SECONDS = (2, 10, 60, 300)  # after the first, second, … failure
_log = logging.getLogger(__name__)


class IndexSupervisor:
    """Keeps a collection's index up to date with its uploads. Belongs to one event loop."""

    def __init__(self, collection: Path, uploads: Uploads) -> None:
        self._collection, self._uploads = collection, uploads
        self._requested = asyncio.Event()
        self._run_ended = asyncio.Condition()
        self._last_started = 0  # number of the last run
        self._last_succeeded = 0
        self._progress: IndexingProgress | None = None  # of the current run
        self._error: str | None = None  # of the last run
        self._failed: dict[str, str] = {}  # by URI, why a document is not indexed

    def request_run(self) -> int:
        """Request a run that indexes the uploads as they are now. Returns the run's number."""
        self._requested.set()
        return self._last_started + 1

    async def wait_for_run(self, number: int) -> None:
        """Wait until a run has succeeded."""
        async with self._run_ended:
            await self._run_ended.wait_for(lambda: self._last_succeeded >= number)

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
            self._last_started += 1
            number = self._last_started
            try:
                self._error = await self._run_worker()
            except (OSError, ValueError) as error:  # the process did not start, or its output is not valid
                self._error = f"{type(error).__name__}: {error}"
            finally:
                self._progress = None
            if self._error is None:
                failures = 0
                async with self._run_ended:
                    self._last_succeeded = number
                    self._run_ended.notify_all()
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
        error: str | None = "the indexing process crashed"
        try:
            async for line in process.stdout:
                message = json.loads(line)
                if "progress" in message:
                    self._progress = IndexingProgress(**message["progress"])
                else:
                    error = message.get("error")
                    self._failed = message.get("failed", self._failed)
            await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return error
