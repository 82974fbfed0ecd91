"""Ingest by several processes: what the one that lists and commits needs of its workers.

Workers run anywhere, as `ragfm worker`. `WorkerProcesses` are some on this machine, or the one that has Ray start
workers. They end with the ingest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from ragfm.core.errors import MissingExtraError, RagfmError, SourceError, UnsupportedError
from ragfm.ingestion.preparation import Outcome
from ragfm.store.work_queue import MAX_LEASES, WorkQueue

if TYPE_CHECKING:
    from ragfm.chunking import ChunkSettings
    from ragfm.core.types import Connector, Ref
    from ragfm.parsing import ParserChoice
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store
    from ragfm.store.postgres import PostgresDatabase

POLL_SECONDS = 0.2
"""Time between two looks at the queue."""
IDLE_SECONDS = 2.0
"""How long to wait for an outcome before what was collected so far is committed."""
LOOK_SECONDS = 1.0
"""Time between two looks at the workers."""
HINT_SECONDS = 60.0
"""How long to wait for a worker before a warning: longer than a lease of one that was killed."""
LOST = 75
"""Exit code of the process for Ray if the cluster is gone."""
_STOP_SECONDS = 10.0
_log = logging.getLogger(__name__)


def job_of(choice: ParserChoice, chunks: ChunkSettings, contract_id: int, max_bytes: int, environment: str) -> str:
    """Everything besides an entry that decides its outcome, as JSON. `environment` is not used by workers."""
    values = {
        "ragfm": version("ragfm"),
        "choice": asdict(choice),
        "chunks": asdict(chunks),
        "contract": contract_id,
        "max_bytes": max_bytes,
        "environment": environment,
    }
    return json.dumps(values, sort_keys=True)


class SharedWork:
    """The work that a sync shares with workers, `count` of which are processes of this machine or actors of Ray.

    A context manager: the processes are stopped at its end. What they have staged waits for the next sync.
    """

    def __init__(self, store: Store, count: int | None, executor: str = "local") -> None:
        """With the executor `ray`, `count` may be None: as many as the cluster has CPUs for.

        Raises UnsupportedError for a collection in a folder, and for an embedder without a name; MissingExtraError.
        """
        if not store.database.shared:
            raise UnsupportedError(
                "Workers need a collection on PostgreSQL.",
                "Leave out --workers and --executor: documents are parsed in several processes and embedded on all "
                "cores anyway.",
            )
        if count != 0 and store.has_own_embedder:
            raise UnsupportedError("Processes cannot share an embedder object.", "Pass its name.")
        if executor not in ("local", "ray"):
            raise UnsupportedError(f"There is no executor {executor!r}.", "Choose local or ray.")
        if executor == "ray" and find_spec("ray") is None:
            raise MissingExtraError("Ray is not installed.", "Run `pip install -e '.[ray]'` in ragfm's source folder.")
        database = cast("PostgresDatabase", store.database)
        self.max_bytes = int(store.settings.files.max_mb * 2**20)
        self._queue = WorkQueue(database)
        self._processes = WorkerProcesses(database, count, on_ray=executor == "ray")
        self._run = uuid.uuid4().hex
        self.workers = count or 0
        """The number of workers with work, for reports of progress."""

    def __enter__(self) -> SharedWork:
        self._queue.check()
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.stop()

    def outcomes(
        self, catalog: CatalogWriter, source_id: int, job: str, entries: Mapping[str, tuple[Ref, str | None]]
    ) -> Iterator[list[tuple[str, Outcome]]]:
        """Let workers prepare entries, given with the digests of their known content. Yields outcomes by path.

        An empty list means that nothing was staged for `IDLE_SECONDS`. Raises RagfmError if the processes of this
        machine fail.
        """
        self._queue.add(catalog, source_id, self._run, job, entries)
        gave_up = Outcome("parse", f"{MAX_LEASES} workers ended while they prepared it").to_bytes()
        waiting = set(entries)
        staged_at = looked_at = worked_at = time.monotonic()
        if waiting:
            self._processes.start()
        while waiting:
            staged = self._queue.take(catalog, source_id, self._run, gave_up)
            now = time.monotonic()
            if now - looked_at >= LOOK_SECONDS:
                looked_at, self.workers = now, self._queue.busy_workers()
                self._processes.check()
                if self.workers or staged:
                    worked_at = now
                elif now - worked_at > HINT_SECONDS:
                    worked_at = now
                    _log.warning("No worker has work. Start one: `ragfm worker -c ADDRESS`.")
            if staged:
                staged_at = now
                waiting.difference_update(path for path, _ in staged)
                yield [(path, Outcome.from_bytes(data)) for path, data in staged]
            elif now - staged_at >= IDLE_SECONDS:
                staged_at = now
                yield []
            else:
                time.sleep(POLL_SECONDS)

    def committed(self, catalog: CatalogWriter, source_id: int, paths: list[str]) -> None:
        """Remove entries that are committed from the queue."""
        self._queue.remove(catalog, source_id, paths)

    def finish(self, catalog: CatalogWriter, source_id: int) -> None:
        """Remove what is left of a source, whose outcomes are recorded."""
        self._queue.clear(catalog, source_id)


def check_connector(connector: Connector, plugin: str) -> None:
    """Raise SourceError if only the process that lists the source can fetch from it."""
    if not getattr(connector, "fetch_anywhere", False):
        raise SourceError(
            f"Workers cannot read sources of the connector {plugin!r}: it does not fetch without a listing of its own.",
            "Ingest this source without --workers.",
        )


class WorkerProcesses:
    """`ragfm worker` in processes of this machine, or `on_ray` the one process that has workers started by Ray.

    They end with this process, even if it is killed.
    """

    def __init__(self, database: PostgresDatabase, count: int | None, *, on_ray: bool = False) -> None:
        self._processes: list[subprocess.Popen[Any]] = []
        self._environment = os.environ | database.password_variables
        if on_ray:
            workers = "all" if count is None else str(count)
            self._count = int(count != 0)
            self._command = [sys.executable, "-m", "ragfm.ingestion.ray_workers", database.address, workers]
            self._again = ["again"]
        else:
            self._count = count or 0
            self._command = [sys.executable, "-m", "ragfm", "worker", "-c", database.address, "--until-eof"]
            self._again = []

    def start(self) -> None:
        """Start them, unless they run."""
        while len(self._processes) < self._count:
            self._processes.append(self._start())

    def _start(self, *words: str) -> subprocess.Popen[Any]:
        # In a session of their own, so that Ctrl-C reaches only this process, which closes their input.
        return subprocess.Popen(  # noqa: S603  no shell, and no name from outside
            [*self._command, *words],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def check(self) -> None:
        """Replace processes that were killed. Raises RagfmError if one ended with an error, which it has printed."""
        for number, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if code >= 0 and not (self._again and code == LOST):
                raise RagfmError(f"A worker has ended with code {code}.", "Its error is above; correct it.")
            if code < 0:
                _log.warning("A worker was killed by signal %d. Another one takes its place.", -code)
            assert process.stdin is not None
            process.stdin.close()
            self._processes[number] = self._start(*self._again)

    def stop(self) -> None:
        """Stop them; those that do not end in time are killed."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
