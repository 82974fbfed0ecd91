"""Indexing of uploads: a process of its own, which has the owner's handle that the server must not have.

It is started where there is something to do, tells what it does as lines of JSON, and ends with the server, however
that ends. The collection's own rules make it safe to kill at any moment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress
from pathlib import Path

from ragfm.server.api_models import Progress, State
from ragfm.server.uploads import Uploads

__all__ = ["Indexer"]

_PAUSES = (2, 10, 60, 300)  # seconds until it is tried again after the first, second, … failure
_log = logging.getLogger(__name__)


class Indexer:
    """Keeps a collection equal to its uploads. Used by one event loop."""

    def __init__(self, collection: Path, uploads: Uploads) -> None:
        self._collection, self._uploads = collection, uploads
        self._wanted, self._runs = asyncio.Event(), 0
        self._finished = asyncio.Condition()
        self._started = 0
        self._progress: Progress | None = None
        self._trouble: str | None = None
        self._failed: dict[str, str] = {}
        """By uri, why a document is not indexed."""

    def want(self) -> int:
        """Have the uploads indexed as they are now; gives the number of the run that will have done so."""
        self._wanted.set()
        return self._started + 1

    async def done(self, run: int) -> None:
        """Wait until a run has ended well."""
        async with self._finished:
            await self._finished.wait_for(lambda: self._runs >= run)

    def state(self, uri: str) -> tuple[State, Progress | None, str | None]:
        """How far an upload is that is not in the collection: with the job's progress, or why it failed."""
        if uri in self._failed:
            return "failed", None, self._failed[uri]
        if self._progress is not None:
            return "indexing", self._progress, None
        return "queued", None, self._trouble

    async def work(self) -> None:
        """Index whenever it is wanted, until this is cancelled."""
        await asyncio.to_thread(self._uploads.clean)
        if self._uploads.folder.exists():
            self.want()
        failures = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._started += 1
            run = self._started
            try:
                self._trouble = await self._index()
            except (OSError, ValueError) as error:  # it can't be started, or what it says can't be read
                self._trouble = f"{type(error).__name__}: {error}"
            finally:
                self._progress = None
            if self._trouble is None:
                failures = 0
                async with self._finished:
                    self._runs = run
                    self._finished.notify_all()
                continue
            _log.warning("Uploads to %s were not indexed, and it is tried again: %s", self._collection, self._trouble)
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1
            self._wanted.set()

    async def _index(self) -> str | None:
        """One run; gives why it failed, or None."""
        command = [sys.executable, "-m", "ragfm.server.index_worker", str(self._collection)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26)
        assert process.stdout
        trouble: str | None = "the job has crashed"
        try:
            async for line in process.stdout:
                told = json.loads(line)
                if "progress" in told:
                    self._progress = Progress(**told["progress"])
                else:
                    trouble = told.get("error")
                    self._failed = told.get("failed", self._failed)
            await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return trouble
