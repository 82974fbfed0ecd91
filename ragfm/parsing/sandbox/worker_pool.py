"""Parsing in processes of its own: what a hostile or damaged document does to its parser, it does to nothing else.

    submit ─→ small plain text? ─→ parsed at once
           └→ waiting ─→ a thread ⇄ its process          one thread and one process for each core, as they are needed

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

from ragfm.core.errors import RagfmError, WorkerError
from ragfm.core.types import Blob, Document
from ragfm.models.hardware import cpus
from ragfm.parsing import media_type, parse
from ragfm.parsing.sandbox.worker_process import PREFIX, Ended, Job, Limits, Process, failure

PLAIN = frozenset("text/plain text/markdown text/csv text/tab-separated-values application/json".split())
"""Media types whose parsers are Python alone, unpack nothing, follow no reference and repeat little."""
SMALL = 64 << 10
"""Bytes of a plain text that is parsed where it is."""
_IDLE = 30.0  # seconds after which a process that nobody needs is ended
_BATCH = 48 << 10  # bytes of small documents that are sent at once: what a pipe holds
_BATCH_DOCUMENTS = 16
_BACKLOG = 128 << 10  # bytes, waiting, that are worth another process


class Workers:
    """Parses documents in processes, at most `count` at a time."""

    def __init__(self, limits: Limits | None = None, count: int | None = None) -> None:
        self._limits = limits or Limits()
        self._count = count or min(8, len(cpus()))
        self._change = threading.Condition()
        self._waiting: deque[tuple[Job, Future[Document]]] = deque()
        self._threads = 0
        self._idle = 0
        self._processes: set[Process] = set()
        self._closed = False

    def submit(self, blob: Blob, uri: str) -> Future[Document]:
        """Parse a document; the result is a Document, or an error as `parse` raises it, or WorkerError.

        Cancelling it ends the parser, too.
        """
        future: Future[Document] = Future()
        if _is_plain(blob, uri):
            _settle(future, blob, uri)
            return future
        job = Job(blob, uri, lambda: not future.cancelled())
        with self._change:
            self._waiting.append((job, future))
            backlog = sum(len(job.blob.data) for job, _ in self._waiting)
            if not self._threads or (not self._idle and backlog > _BACKLOG and self._threads < self._count):
                self._threads += 1
                threading.Thread(target=self._work, name="ragfm-parse", daemon=True).start()
            self._change.notify()
        return future

    def close(self) -> None:
        """End all processes; what was not parsed is cancelled."""
        with self._change:
            self._closed = True
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
            processes = list(self._processes)
            self._change.notify_all()
        for process in processes:
            process.end()

    def forget(self) -> None:
        """Let go of everything, in a fork of the process that all of it belongs to."""
        for process in self._processes:
            process.let_go()

    def _work(self) -> None:
        """A thread's life: start a process, have it parse what comes, and end it when nothing does for a while."""
        process: Process | None = None
        try:
            while batch := self._next():
                before, process = process, None
                try:
                    process = self._process(before)
                    process = self._have_parsed(process, batch)
                except Exception as error:  # whoever waits for a document decides, and must not wait for ever
                    for _, future in batch:
                        _fail(future, error)
        finally:
            if process is not None:
                self._part_with(process)

    def _next(self) -> list[tuple[Job, Future[Document]]]:
        """What to parse next: one document, or several small ones. Nothing means that it's over."""
        with self._change:
            self._idle += 1
            self._change.wait_for(lambda: self._waiting or self._closed, _IDLE)
            self._idle -= 1
            batch: list[tuple[Job, Future[Document]]] = []
            size = 0
            share = -(-len(self._waiting) // self._threads)
            while self._waiting and len(batch) < min(share, _BATCH_DOCUMENTS):
                job, future = self._waiting[0]
                size += len(job.blob.data) + 200
                if batch and size > _BATCH:
                    break
                self._waiting.popleft()
                if not future.cancelled():
                    batch.append((job, future))
            if not batch and not self._waiting:
                self._threads -= 1
            elif not batch:
                return self._next()
            return batch

    def _process(self, before: Process | None) -> Process:
        if before is not None and not before.worn:
            return before
        if before is not None:
            self._part_with(before)
        process = Process(self._limits)
        with self._change:
            self._processes.add(process)
            closed = self._closed
        if closed:
            self._part_with(process)
            raise WorkerError("The processes that parse documents have been ended.")
        return process

    def _part_with(self, process: Process) -> None:
        with self._change:
            self._processes.discard(process)
        process.end()

    def _have_parsed(self, process: Process, batch: list[tuple[Job, Future[Document]]]) -> Process | None:
        """Have documents parsed, one after the other; gives the process, None where it came to its end."""
        process.give([job for job, _ in batch])
        for at, (job, future) in enumerate(batch):
            fresh = process.parsed == 0
            try:
                outcome = process.take(job)
            except Ended as ended:
                with self._change:
                    self._processes.discard(process)
                    # Over what came before it may be the process that was damaged: then a new one decides.
                    again = batch[at if not (fresh or ended.certain) else at + 1 :]
                    self._waiting.extendleft(reversed(again))
                if fresh or ended.certain:
                    _fail(future, failure(job.uri, str(ended)))
                return None
            if isinstance(outcome, RagfmError):
                _fail(future, outcome)
            else:
                with contextlib.suppress(Exception):  # it was cancelled meanwhile
                    future.set_result(outcome)
        return process


def _is_plain(blob: Blob, uri: str) -> bool:
    if len(blob.data) > SMALL or blob.data.startswith(b"PK"):  # to recognise an archive is to open it
        return False
    return media_type(blob.data, uri, blob.media_type) in PLAIN


def _settle(future: Future[Document], blob: Blob, uri: str) -> None:
    try:
        future.set_result(parse(blob, uri))
    except Exception as error:  # whoever waits for it decides
        future.set_exception(error)


def _fail(future: Future[Document], error: Exception) -> None:
    with contextlib.suppress(Exception):  # it was cancelled meanwhile
        future.set_exception(error)


_lock = threading.Lock()
_shared: Workers | None = None


def shared_workers() -> Workers:
    """The workers of this process; they are started when they are needed, and end when nobody needs them."""
    global _shared
    with _lock:
        if _shared is None:
            _sweep()
            _shared = Workers()
            atexit.register(_shared.close)
        return _shared


def _sweep() -> None:
    """Remove the folders that workers of processes have left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        number = folder.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError, ValueError):
            if folder.stat().st_uid == os.getuid() and not _lives(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _after_fork() -> None:
    global _lock, _shared
    before, _shared, _lock = _shared, None, threading.Lock()
    if before is not None:
        atexit.unregister(before.close)
        before.forget()


os.register_at_fork(after_in_child=_after_fork)
