"""Parse documents in worker processes.

    submit ─→ small plain text? ─→ parsed at once, in this process
           └→ queue ─→ thread ⇄ worker process            one thread and one process per core, started as needed

See docs/decisions/008-parsing-in-processes.md.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from ragfm.core.errors import ParseError, RagfmError, WorkerError
from ragfm.core.tracing import span
from ragfm.core.types import Blob, Document
from ragfm.models.hardware import cpu_count
from ragfm.parsing import media_type, parse
from ragfm.parsing.parsers import OWN, ParserChoice
from ragfm.parsing.sandbox.worker_process import FOLDER_PREFIX, Job, Limits, WorkerEnded, WorkerProcess

PLAIN_TYPES = frozenset("text/plain text/markdown text/csv text/tab-separated-values application/json".split())
"""Media types whose own parsers are pure Python, unpack nothing, follow no references, and hardly multiply the text."""
MAX_PLAIN = 64 << 10
"""Size in bytes up to which plain text is parsed in this process."""
_IDLE_SECONDS = 30.0  # after which an idle worker is stopped
_MAX_BATCH = 48 << 10  # bytes of small documents that are sent together: what fits in a pipe
_MAX_BATCH_DOCUMENTS = 16
_MESSAGE_OVERHEAD = 200  # bytes per document
_MIN_BACKLOG = 128 << 10  # bytes in the queue that justify another worker


class WorkerPool:
    """Parses documents in up to `count` processes at a time; by default one per CPU, up to 8."""

    def __init__(self, limits: Limits | None = None, count: int | None = None) -> None:
        self._limits = limits or Limits()
        self._count = count or min(8, cpu_count())
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._threads = 0
        self._idle_threads = 0
        self._processes: set[WorkerProcess] = set()
        self._closed = False

    def submit(self, blob: Blob, uri: str, choice: ParserChoice = ParserChoice()) -> Future[Document]:  # noqa: B008
        """Parse a document by the parsers of a choice. The future fails with what `parse` raises, or with WorkerError.

        Cancelling the future stops the parser.
        """
        future: Future[Document] = Future()
        is_archive = blob.data.startswith(b"PK")  # detecting its type means opening it, so it goes to a worker
        is_small = len(blob.data) <= MAX_PLAIN
        named = "" if blob.written else uri
        kind = media_type(blob.data, named, blob.media_type) if is_small and not is_archive else ""
        if kind in PLAIN_TYPES and choice.parsers_for(kind) == [OWN]:
            try:
                with span("parse", uri=uri, media_type=kind, bytes=len(blob.data)):
                    future.set_result(parse(blob, uri, choice))
            except Exception as error:  # the caller of `result` decides
                future.set_exception(error)
            return future
        job = Job(blob, uri, choice, future)
        with self._changed:
            self._queue.append(job)
            backlog = sum(len(job.blob.data) for job in self._queue)
            may_start = not self._idle_threads and backlog > _MIN_BACKLOG and self._threads < self._count
            if not self._threads or may_start:
                self._threads += 1
                threading.Thread(target=self._run, name="ragfm-parse", daemon=True).start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stop all processes, and cancel what is not parsed yet."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.future.cancel()
            self._queue.clear()
            processes = list(self._processes)
            self._changed.notify_all()
        for process in processes:
            process.stop()

    def release(self) -> None:
        """Release all processes without stopping them; for a fork of the process that they belong to."""
        for process in self._processes:
            process.release()

    def _run(self) -> None:
        """The life of a thread: start a process, have it parse batches, and stop it once it has been idle."""
        process: WorkerProcess | None = None
        try:
            while batch := self._next_batch():
                try:
                    if process is not None and process.is_worn:
                        self._stop(process)
                        process = None
                    if process is None:
                        process = WorkerProcess(self._limits)
                        with self._changed:
                            self._processes.add(process)
                            closed = self._closed
                        if closed:
                            raise WorkerError("Cannot parse the document: the worker processes have been stopped.")
                    process = self._parse_batch(process, batch)
                except Exception as error:  # whoever waits for a document must not wait forever
                    if process is not None:
                        self._stop(process)
                    process = None
                    for job in batch:
                        _set_exception(job.future, error)
        finally:
            if process is not None:
                self._stop(process)

    def _next_batch(self) -> list[Job]:
        """Wait for one document, or several small ones. An empty list ends the thread."""
        while True:
            with self._changed:
                self._idle_threads += 1
                self._changed.wait_for(lambda: self._queue or self._closed, _IDLE_SECONDS)
                self._idle_threads -= 1
                batch: list[Job] = []
                size = 0
                share = -(-len(self._queue) // self._threads)
                while self._queue and len(batch) < min(share, _MAX_BATCH_DOCUMENTS):
                    job = self._queue[0]
                    size += len(job.blob.data) + _MESSAGE_OVERHEAD
                    if batch and size > _MAX_BATCH:
                        break
                    self._queue.popleft()
                    if not job.future.cancelled():
                        batch.append(job)
                if batch:
                    return batch
                if not self._queue:
                    self._threads -= 1
                    return batch

    def _stop(self, process: WorkerProcess) -> None:
        with self._changed:
            self._processes.discard(process)
        process.stop()

    def _parse_batch(self, process: WorkerProcess, batch: list[Job]) -> WorkerProcess | None:
        """Parse documents one after the other. Returns the process, None where it ended."""
        process.send(batch)
        for index, job in enumerate(batch):
            is_new = process.parsed == 0
            try:
                document = job.context.run(_receive, process, job)
            except RagfmError as error:
                _set_exception(job.future, error)
            except WorkerEnded as ended:
                # An earlier document may have damaged the process: then the document is retried in a new one.
                failed = is_new or ended.document_at_fault
                with self._changed:
                    self._processes.discard(process)
                    self._queue.extendleft(reversed(batch[index + 1 if failed else index :]))
                if failed:
                    name = job.uri.rstrip("/").rsplit("/", 1)[-1] or job.uri
                    _set_exception(job.future, ParseError(f"{name} cannot be parsed: {ended}."))
                return None
            else:
                with contextlib.suppress(Exception):  # cancelled in the meantime
                    job.future.set_result(document)
        return process


def _receive(process: WorkerProcess, job: Job) -> Document:
    with span("parse", uri=job.uri, bytes=len(job.blob.data), worker=process.pid) as active:
        document = process.receive(job)
        active.set(media_type=document.media_type, characters=len(document.text))
        return document


def _set_exception(future: Future[Document], error: Exception) -> None:
    with contextlib.suppress(Exception):  # cancelled in the meantime
        future.set_exception(error)


_lock = threading.Lock()
_shared: WorkerPool | None = None


def shared_worker_pool() -> WorkerPool:
    """The pool of this process; its workers start when they are needed and stop when they are idle."""
    global _shared
    with _lock:
        if _shared is None:
            remove_orphaned_folders()
            _shared = WorkerPool()
            atexit.register(_shared.close)
        return _shared


def remove_orphaned_folders() -> None:
    """Remove the folders of workers whose parent processes were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        parent = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError, ValueError):  # PermissionError: the parent process is alive
            if folder.stat().st_uid == os.getuid():
                try:
                    os.kill(int(parent), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder, ignore_errors=True)


def _after_fork() -> None:
    global _lock, _shared
    pool, _shared, _lock = _shared, None, threading.Lock()
    if pool is not None:
        atexit.unregister(pool.close)
        pool.release()


os.register_at_fork(after_in_child=_after_fork)
