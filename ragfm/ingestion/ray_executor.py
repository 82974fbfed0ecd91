"""Ingest on a Ray cluster: tasks of Ray prepare documents, and the ingest commits them.

    ingest ──batches of entries──→ tasks: fetch ─→ parse ─→ split ─→ embed, store vectors ──outcomes──→ ingest: commit

Ray places the tasks on its nodes and repeats those of a node or process that is lost. A task reads from the source
itself, so only texts and chunks pass through Ray. Vectors are stored by the task, so none is lost with the ingest.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from ragfm.core.errors import (
    CollectionBusyError,
    CollectionUnavailableError,
    MissingExtraError,
    RagfmError,
    UnsupportedError,
)
from ragfm.core.tracing import flush_traces, span, start_tracing, trace_headers
from ragfm.ingestion.connector_options import build_connector
from ragfm.ingestion.embedding import VectorCatalog, embed_missing
from ragfm.ingestion.preparation import WAIT_SECONDS, Outcome, prepare
from ragfm.store.catalog import StaleReadError
from ragfm.store.collection_store import Store
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.tables import text_hash

if TYPE_CHECKING:
    from ragfm.chunking import ChunkSettings
    from ragfm.core.types import Connector, Ref
    from ragfm.ingestion.preparation import Entry
    from ragfm.parsing import ParserChoice
    from ragfm.store.catalog import Source

BATCH = 16
"""Number of documents per task: what is prepared again if a node is lost."""
HINT_SECONDS = 60.0
"""How long to wait for an outcome before a warning."""
_MAX_RETRIES = 3
_BATCHES_PER_SLOT = 2  # so that no slot waits for the ingest
_CONNECT_SECONDS = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything besides an entry that decides its outcome. `run` is unique to each sync of a source.

    `trace` has the headers of the span that the tasks belong to, see `core.tracing`; empty without traces.
    """

    run: str
    version: str
    address: str
    source: Source
    choice: ParserChoice
    chunks: ChunkSettings
    contract_id: int
    max_bytes: int
    trace: Mapping[str, str] = field(default_factory=dict)


class RayExecutor:
    """Prepares documents on the cluster of the environment variable RAY_ADDRESS, else of this machine.

    A context manager: the tasks end with it. It connects to the cluster when there is something to prepare, unless it
    is given the module `ray`, connected.
    """

    def __init__(self, store: Store, ray: Any = None) -> None:
        """Raises UnsupportedError for a collection in a folder and an embedder without a name; MissingExtraError."""
        if not store.database.shared:
            raise UnsupportedError(
                "Ray needs a collection on PostgreSQL.",
                "Leave out --executor: documents are parsed in several processes and embedded on all cores anyway.",
            )
        if store.has_own_embedder:
            raise UnsupportedError("Processes cannot share an embedder object.", "Pass its name.")
        if ray is None and find_spec("ray") is None:
            raise MissingExtraError("Ray is not installed.", "Run `pip install -e '.[ray]'` in ragfm's source folder.")
        self._database = cast("PostgresDatabase", store.database)
        self._max_bytes = int(store.settings.files.max_mb * 2**20)
        self._exits, self._ray = ExitStack(), ray

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _connect(self) -> Any:
        """The module `ray`, connected to the cluster."""
        if self._ray is not None:
            return self._ray
        import ray

        if ray.is_initialized():
            return ray
        cluster = os.environ.get("RAY_ADDRESS", "auto")
        host, _, port = cluster.rpartition(":")
        try:
            if host and port.isdigit() and "://" not in cluster:  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
            # Ray prints messages to the standard output, where those who started the ingest expect its report.
            self._exits.enter_context(redirect_stdout(sys.stderr))
            ray.init(cluster, namespace="ragfm", logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise RagfmError(
                f"No Ray cluster answers at {cluster!r}: {str(error).strip().partition(chr(10))[0]}.",
                "Start one with `ray start --head`, or set RAY_ADDRESS.",
            ) from error
        self._exits.callback(ray.shutdown)
        return ray

    def prepare(
        self,
        source: Source,
        choice: ParserChoice,
        chunk_settings: ChunkSettings,
        contract_id: int,
        entries: Sequence[Entry],
    ) -> Generator[tuple[Ref, Outcome] | None, None, None]:
        """Like `preparation.prepare`, in the order in which documents are ready; their chunks have vectors.

        Raises RagfmError if a node cannot do the work: its version of ragfm differs, or it cannot read the source or
        find the embedder.
        """
        if not entries:
            return
        ray = self._connect()
        resource = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        database = self._database
        task = ray.remote(
            num_cpus=1,
            num_gpus=int(resource == "GPU"),
            max_retries=_MAX_RETRIES,
            retry_exceptions=[CollectionBusyError, CollectionUnavailableError, StaleReadError],
            scheduling_strategy="SPREAD",
        )(prepare_batch)
        job = Job(
            uuid.uuid4().hex,
            version("ragfm"),
            database.address,
            source,
            choice,
            chunk_settings,
            contract_id,
            self._max_bytes,
            trace_headers(),
        )
        waiting = [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)][::-1]
        running: dict[Any, Sequence[Entry]] = {}
        last = time.monotonic()
        while waiting or running:
            slots = max(1, int(ray.cluster_resources().get(resource, 0)))  # more when nodes join
            while waiting and len(running) < _BATCHES_PER_SLOT * slots:
                batch = waiting.pop()
                running[task.remote(job, database.password_variables, batch)] = batch
            done, _ = ray.wait(list(running), timeout=WAIT_SECONDS)
            if not done:
                if time.monotonic() - last > HINT_SECONDS:
                    last = time.monotonic()
                    _log.warning(
                        "Nothing was prepared for %g s. `ray status` shows what the tasks wait for.", HINT_SECONDS
                    )
                yield None
                continue
            last = time.monotonic()
            batch = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise RagfmError(f"A task on Ray failed: {error.cause}") from error
            except ray.exceptions.RayError as error:  # its processes were killed, maybe by one of the documents
                _log.warning("A task of %d documents was lost on Ray: %s", len(batch), type(error).__name__)
                if len(batch) > 1:
                    waiting += [[entry] for entry in batch]
                    continue
                result = [(batch[0][0], Outcome("parse", f"{_MAX_RETRIES + 1} processes ended while they prepared it"))]
            if isinstance(result, str):
                raise RagfmError(f"A node of the Ray cluster cannot do the work: {result}")
            yield from result


# --- In the processes of Ray ---------------------------------------------------------------------------------------

_opened: dict[str, tuple[Store, Connector]] = {}  # by run; some connectors read the whole source first


def prepare_batch(job: Job, password: Mapping[str, str], entries: Sequence[Entry]) -> list[tuple[Ref, Outcome]] | str:
    """Prepare entries and embed their chunks. Returns the reason if this node cannot do the work."""
    if job.trace:
        start_tracing()
    with span("prepare", job.trace, documents=len(entries)):
        prepared = _prepare_batch(job, password, entries)
    flush_traces()  # Ray kills its processes
    return prepared


def _prepare_batch(job: Job, password: Mapping[str, str], entries: Sequence[Entry]) -> list[tuple[Ref, Outcome]] | str:
    if job.version != version("ragfm"):
        return f"the ingest runs ragfm {job.version}, the node ragfm {version('ragfm')}"
    os.environ.update(password)
    try:
        if job.run not in _opened:
            for old, _ in _opened.values():
                old.close()
            _opened.clear()
            source = job.source
            limits = {"max_bytes": job.max_bytes}
            connector = build_connector(source.connector, source.location, source.options, limits)
            _opened[job.run] = Store(PostgresDatabase(job.address), None, None), connector
        store, connector = _opened[job.run]
        catalog = VectorCatalog(store.database)
        newest = catalog.at()
        if newest.contract_id != job.contract_id:
            return "the embedder of the collection has changed"
        embedder = partial(store.embedder, newest)
        prepared = prepare(connector, job.choice, job.chunks, embedder, entries)
        outcomes = [item for item in prepared if item is not None]
        texts = {text_hash(chunk.embedded_text): chunk.embedded_text for _, item in outcomes for chunk in item.chunks}
        embedded = embed_missing(catalog, job.contract_id, embedder, texts)
    except (CollectionBusyError, CollectionUnavailableError):
        raise  # Ray repeats the task
    except RagfmError as error:
        return str(error)
    if embedded:  # counted once per batch
        first = next(index for index, (_, item) in enumerate(outcomes) if item.chunks)
        outcomes[first] = outcomes[first][0], replace(outcomes[first][1], embedded=embedded)
    return outcomes
