"""Syncs the sources with a schedule when they are due, in a process that has the owner's handle."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from ragfm.core.errors import RagfmError
from ragfm.ingestion.source_schedule import due_sources, failed_sources
from ragfm.server.index_supervisor import RETRY_SECONDS, worker_messages
from ragfm.server.json_logging import log_event
from ragfm.server.served_models import Handles

_log = logging.getLogger(__name__)


class SourceScheduler:
    """The schedules of a collection. Servers that share one follow the same: a source is due once for all of them."""

    def __init__(self, collection: str, handles: Handles) -> None:
        self._collection, self._handles = collection, handles
        self._name = handles.as_groups(frozenset()).location  # without a password
        self._failing = False  # whether the last run failed, other than since another process was writing

    async def run(self) -> None:
        """Sync the sources that are due until cancelled."""
        futile = 0  # runs in a row that synced nothing: the process may crash, or read other settings
        while True:
            await asyncio.sleep(RETRY_SECONDS[min(futile, len(RETRY_SECONDS) - 1)])
            synced, failing = False, False
            try:
                if not await asyncio.to_thread(due_sources, self._handles.store):
                    futile, self._failing = 0, False
                    continue
                async with aclosing(worker_messages(self._collection, "sources")) as messages:
                    async for message in messages:
                        busy, error = message.pop("busy", False), message.pop("error", "")
                        event, level = ("source_failed", logging.WARNING) if error else ("source_synced", logging.INFO)
                        log_event(_log, level, event, error, collection=self._name, **message)
                        synced, failing = synced or not error, failing or (bool(error) and not busy)
            except (OSError, ValueError, RagfmError) as error:  # the process did not start, or no database answers
                failing = True
                log_event(_log, logging.WARNING, "source_failed", str(error), collection=self._name)
            futile, self._failing = 0 if synced else futile + 1, failing

    def count_failing(self) -> int:
        """Number of sources whose last sync failed; at least 1 if syncs cannot be run."""
        return max(len(failed_sources(self._handles.store)), self._failing)
