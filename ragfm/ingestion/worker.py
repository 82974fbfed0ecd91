"""A worker: prepares and embeds queued documents of a collection on PostgreSQL, for the ingest that commits them.

    lease ─→ fetch ─→ parse ─→ split ─→ embed what has no vector yet ─→ stage

What to do is in the queue: sources and their connectors, parsers, chunk size and embedding contract are those of the
ingest, whatever the settings of this machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from threading import Event
from typing import TYPE_CHECKING, Any, cast

from ragfm.chunking import ChunkSettings
from ragfm.core.errors import CollectionBusyError, CollectionError, CollectionUnavailableError, UnsupportedError
from ragfm.core.progress import Progress
from ragfm.ingestion.connector_options import build_connector
from ragfm.ingestion.embedding import embed_missing
from ragfm.ingestion.ingest_report import document_uri
from ragfm.ingestion.parse_queue import ParseQueue
from ragfm.ingestion.preparation import Outcome, fetch, split
from ragfm.parsing.parsers import ParserChoice
from ragfm.store.catalog import StaleReadError
from ragfm.store.tables import stored_ref, text_hash
from ragfm.store.work_queue import WorkerCatalog, WorkQueue

if TYPE_CHECKING:
    from ragfm.core.progress import ProgressCallback
    from ragfm.core.types import Connector
    from ragfm.store.catalog import Source
    from ragfm.store.collection_store import Store
    from ragfm.store.postgres import PostgresDatabase

BATCH = 16
"""Number of documents to lease at once."""
_IDLE_SECONDS = 0.5  # between two looks at an empty queue
_RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Worker:
    """Works for any number of ingests, one after the other, until `stop` is set.

    While the database is away or has no work, it waits. It ends with an error if this machine cannot do the work: if
    the version of ragfm differs, a source cannot be read or the embedder is not that of the collection.
    """

    def __init__(self, store: Store, stop: Event, progress: ProgressCallback) -> None:
        """Raises UnsupportedError for a collection in a folder."""
        if not store.database.shared:
            raise UnsupportedError(
                "A worker needs a collection on PostgreSQL.", "Specify its address: `-c postgresql://…`."
            )
        self._store, self._stop, self._progress = store, stop, progress
        self._database = cast("PostgresDatabase", store.database)
        self._queue = WorkQueue(self._database)
        self._kept: tuple[object, Connector] | None = None
        self.documents = self._chunks = 0

    def run(self) -> None:
        """Work. Raises RagfmError."""
        with self._queue.working() as name:
            failed = False
            while not self._stop.is_set():
                try:
                    if failed:  # what it could not stage would be renewed, and never prepared
                        self._queue.give_up(name)
                        failed = False
                    rows = self._queue.lease(name, BATCH)
                    for (source_id, run, job), group in groupby(rows, lambda row: (row.source_id, row.run, row.job)):
                        self._prepare(name, source_id, run, job, list(group))
                except (CollectionBusyError, CollectionUnavailableError, StaleReadError) as error:
                    _log.warning("%s Trying again in %g s.", error, _RETRY_SECONDS)
                    self._stop.wait(_RETRY_SECONDS)
                    failed = True
                    continue
                if not rows:
                    self._stop.wait(_IDLE_SECONDS)

    def _prepare(self, name: str, source_id: int, run: str, job: str, rows: Sequence[Any]) -> None:
        """Prepare entries of one source, embed their chunks and stage them, unless `stop` is set meanwhile."""
        values = json.loads(job)
        if values["ragfm"] != version("ragfm"):
            raise CollectionError(
                f"The ingest runs ragfm {values['ragfm']}, this worker ragfm {version('ragfm')}.",
                "Install one version.",
            )
        catalog = WorkerCatalog(self._database)
        newest = catalog.at()
        source = next((source for source in catalog.sources() if source.id == source_id), None)
        if source is None or newest.contract_id != values["contract"]:
            # Left by an interrupted ingest. No later one takes this outcome: it would want another job.
            gone = Outcome("parse", "the source was removed, or the embedder changed").to_bytes()
            self._queue.stage(name, {row.id: gone for row in rows})
            return
        connector = self._connector(source, run, values["max_bytes"])
        choice, chunks = ParserChoice(**values["choice"]), ChunkSettings(**values["chunks"])
        outcomes: dict[int, Outcome] = {}
        ids: dict[str, int] = {}
        queue = ParseQueue(choice)

        def take_parsed() -> None:
            while not queue.wait(_IDLE_SECONDS):
                if self._stop.is_set():
                    return
            pending = queue.pop()
            outcomes[ids[pending.ref.path]] = split(pending, choice, lambda: self._store.embedder(newest), chunks)

        try:
            for row in rows:
                if self._stop.is_set():
                    return
                ref = stored_ref(row.ref)
                ids[ref.path] = row.id
                blob, outcome = fetch(connector, ref, row.known_digest)
                if blob is not None and outcome.kind == "fetched":
                    queue.add(ref, outcome.digest, blob, document_uri(source.name, ref.path))
                else:
                    outcomes[row.id] = outcome
                while queue.full and not self._stop.is_set():
                    take_parsed()
            while queue and not self._stop.is_set():
                take_parsed()
        finally:
            queue.cancel()
        if self._stop.is_set():
            return
        texts = {
            text_hash(chunk.embedded_text): chunk.embedded_text
            for outcome in outcomes.values()
            for chunk in outcome.chunks
        }
        embedded = embed_missing(catalog, newest.contract_id, lambda: self._store.embedder(newest), texts)
        if embedded:  # counted once per batch
            first = next(row for row, outcome in outcomes.items() if outcome.chunks)
            outcomes[first] = replace(outcomes[first], embedded=embedded)
        self._queue.stage(name, {row: outcome.to_bytes() for row, outcome in outcomes.items()})
        self.documents += len(outcomes)
        self._chunks += embedded
        self._progress(Progress("work", self.documents, None, {"chunks": self._chunks}))

    def _connector(self, source: Source, run: str, max_bytes: int) -> Connector:
        """The connector of a source, which is kept during a run: some have to read the whole source first."""
        if self._kept is None or self._kept[0] != (source.id, run):
            connector = build_connector(source.connector, source.location, source.options, {"max_bytes": max_bytes})
            self._kept = ((source.id, run), connector)
        return self._kept[1]
