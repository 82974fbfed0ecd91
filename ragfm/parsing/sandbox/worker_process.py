"""A worker process, seen from its parent: start it, send documents, watch it, stop it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from ragfm.core.errors import WorkerError
from ragfm.core.types import Blob, Document
from ragfm.parsing.parsers import ParserChoice
from ragfm.parsing.sandbox import worker_protocol
from ragfm.parsing.sandbox.supervisor import descendants

BOOT = """
import json, sys
path, arguments = json.loads(sys.argv[1])
sys.path[:] = path
from ragfm.parsing.sandbox.worker_main import main
main(*arguments)
"""
"""The program that the Python of a worker runs."""
FOLDER_PREFIX = "ragfm-parse-"
"""Start of the names of workers' folders; the id of the parent process follows."""
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0  # for the supervisor to end what the worker has started
_POLL_SECONDS = 0.1  # between two checks of a worker's memory and processes
_MAX_PROCESSES = 32  # of a worker, itself included
_READ_SIZE = 1 << 20  # bytes
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_KEPT_VARIABLES = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
_KEPT_PREFIXES = ("LC_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "TESSDATA_")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the time and memory of a document."""

    stall_seconds: float = 60.0
    """Time without a heartbeat of the parser, unless it is heavy."""
    seconds: float = 300.0
    """Total time, plus `seconds_per_mib` for each MiB of the document."""
    seconds_per_mib: float = 120.0
    memory: int = 1 << 30
    """Resident memory in bytes, of the process and all that it starts."""
    model_memory: int = 3 << 30
    """Resident memory in bytes once a model (OCR, speech) or a heavy parser runs."""
    max_documents: int = 500
    """Documents after which a process is replaced."""


@dataclass(frozen=True, slots=True)
class Job:
    """A document to parse; cancelling the future stops the parser."""

    blob: Blob
    uri: str
    choice: ParserChoice
    future: Future[Document]
    context: Context = field(default_factory=copy_context)


class WorkerEnded(Exception):  # noqa: N818  the end of a process, which may be intended
    """The process ended while it parsed a document.

    `document_at_fault`: the document is the cause; otherwise, the process may have been damaged before.
    """

    def __init__(self, reason: str, *, document_at_fault: bool) -> None:
        super().__init__(reason)
        self.document_at_fault = document_at_fault


class WorkerProcess:
    """A worker. It ends with the thread that started it. Raises WorkerError where it cannot be started.

    With `service`, the name of a module, it serves calls instead of parsing documents. It may read what is below
    `readable`.
    """

    def __init__(self, limits: Limits, service: str | None = None, readable: Sequence[str] = ()) -> None:
        self._limits = limits
        self._service, self._readable = service, readable
        self._name = "its process" if service else "its parser"
        self._files: socket.socket | None = None
        self._worker_files: socket.socket | None = None
        if service:
            self._files, self._worker_files = socket.socketpair()
        self._memory_limit = limits.memory
        self._has_models = False
        self._reader = worker_protocol.FrameReader(worker_protocol.MAX_DATA)
        self._frames: list[worker_protocol.Frame] = []
        self._outgoing = b""
        self._start_error = ""
        self._last_check = -math.inf
        self._stop_lock = threading.Lock()
        self.parsed = 0
        self.is_busy = False
        """Whether a result of the process is outstanding."""
        self.protections: list[str] = []
        self._helpers: set[int] = set()  # processes that only end others: the supervisor, the first of a namespace
        self.folder = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
        try:
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _start(self) -> None:
        # The working folder and the folder of the main script are not on the worker's path: nothing is imported there,
        # unless the script is one of Python's own, such as `python -m cProfile`.
        package_root = str(Path(__file__).parents[3])
        main_script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
        excluded = {os.getcwd(), os.path.dirname(os.path.abspath(main_script))}  # noqa: PTH100, PTH109, PTH120
        excluded -= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        path = [entry for entry in map(os.path.abspath, filter(None, sys.path)) if entry not in excluded]
        path = path if package_root in path else [package_root, *path]
        cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111
        python_folder = os.path.dirname(sys.executable or "/usr")  # noqa: PTH120
        readable = [*path, sys.prefix, sys.base_prefix, sys.exec_prefix, python_folder, cache, *self._readable]
        arguments = [self.folder, self._limits.memory, self._limits.model_memory, os.getpid(), readable]
        descriptors = []
        if self._worker_files is not None:
            descriptors.append(self._worker_files.fileno())
            arguments += [self._service, *descriptors]
        env = {
            key: value for key, value in os.environ.items() if key in _KEPT_VARIABLES or key.startswith(_KEPT_PREFIXES)
        }
        env |= {"HOME": self.folder, "TMPDIR": self.folder, "HF_HOME": cache}
        try:
            with open(os.path.join(self.folder, "stderr"), "wb") as stderr:  # noqa: PTH118, PTH123
                self._process = subprocess.Popen(  # noqa: S603  no part of the command comes from a document
                    [sys.executable, "-P", "-c", BOOT, json.dumps([path, arguments])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=self.folder,
                    env=env,
                    pass_fds=descriptors,
                    start_new_session=True,  # Ctrl-C goes to the parent only, and children of the worker end with it
                )
        except (OSError, TypeError) as error:
            raise WorkerError(f"Cannot start {sys.executable!r} to parse documents: {error}.") from error
        finally:
            if self._worker_files is not None:
                self._worker_files.close()
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            frame = self._exchange_until_result(b"", _START_SECONDS, _START_SECONDS)
        except WorkerEnded as ended:
            raise WorkerError(f"Cannot start a process to parse documents: {self._start_error or ended}.") from ended
        self.pid, self.protections = frame.fields
        _log.debug(
            "Protections of process %d, %s: %s.", self.pid, self._service or "a parser", ", ".join(self.protections)
        )
        self._helpers = {self._process.pid, *descendants(self._process.pid)} - {self.pid}

    def send(self, jobs: list[Job]) -> None:
        """Queue documents for the process.

        The messages of several documents must fit in a pipe together, so that neither side blocks on the other.
        """
        self._outgoing = b"".join(worker_protocol.pack_blob(job.blob, job.uri, job.choice) for job in jobs)

    def receive(self, job: Job) -> Document:
        """Return the next document that was sent. Raises its RagfmError, and WorkerEnded where the process ended."""
        limits = self._limits
        # Memory of a model that was loaded for an earlier document does not count.
        kept = self._resident_memory() if self._has_models else 0
        self._memory_limit = min(limits.memory + kept, limits.model_memory)
        message, self._outgoing = self._outgoing, b""
        total_seconds = limits.seconds + limits.seconds_per_mib * len(job.blob.data) / 2**20
        self.parsed += 1
        frame = self._exchange_until_result(message, limits.stall_seconds, total_seconds, job.future)
        try:
            return worker_protocol.unpack_document(frame, job.blob, job.uri)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._fail(f"{self._name} sent an invalid result: {error}")

    def call(self, arguments: Sequence[Any], file: int | None, max_bytes: int) -> tuple[Any, bytes]:
        """Call the service with JSON values, and a file by its descriptor.

        Returns JSON fields, and up to `max_bytes` bytes. Raises the service's RagfmError, and WorkerEnded where the
        process ended.
        """
        self._reader = worker_protocol.FrameReader(max_bytes)
        self.is_busy = True
        if file is not None:
            assert self._files is not None
            socket.send_fds(self._files, [b"f"], [file])
        message = worker_protocol.pack(worker_protocol.CALL, [file is not None, *arguments])
        limits = self._limits
        frame = self._exchange_until_result(message, limits.stall_seconds, limits.seconds)
        self.is_busy = False
        return frame.fields, frame.data

    @property
    def is_worn(self) -> bool:
        """Whether another process should replace this one: it has parsed many documents, or holds much memory."""
        limit = self._limits.model_memory if self._has_models else self._limits.memory
        return self.parsed >= self._limits.max_documents or self._resident_memory() > limit * 3 // 4

    def stop(self) -> int:
        """Kill the process and all that it started, remove its folder, and return its exit status."""
        with self._stop_lock:
            if self._process.returncode is None:  # otherwise, its id may belong to another process by now
                if "supervisor" in self.protections:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.terminate()
                        self._process.wait(_STOP_SECONDS)
                if self._process.returncode is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
            self.release()
            if not self.protections:  # it did not start
                with contextlib.suppress(OSError):
                    output = Path(self.folder, "stderr").read_text(errors="replace")
                    self._start_error = output.strip().rpartition("\n")[2]
            shutil.rmtree(self.folder, ignore_errors=True)
        return status

    def release(self) -> None:
        """Close the pipes without stopping the process; for a fork of the parent."""
        for stream in (self._process.stdin, self._process.stdout, self._files):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.returncode is None:
            self._process.returncode = 0  # this process must not wait for it

    def _exchange_until_result(
        self, message: bytes, stall_seconds: float, total_seconds: float, future: Future[Document] | None = None
    ) -> worker_protocol.Frame:
        """Send a message and return the frame of the result, within the limits. Raises the RagfmError in its place."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        start = last_frame = self._clock()
        unsent = memoryview(message)
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                last_frame = self._clock()
                if frame.kind == worker_protocol.SIGN:
                    if frame.fields in ("model", "heavy"):
                        self._memory_limit, self._has_models = self._limits.model_memory, True
                    if frame.fields == "heavy":
                        stall_seconds = math.inf
                elif frame.kind == worker_protocol.OUT_OF_MEMORY:
                    self._fail(self._memory_reason(), document_at_fault=False)
                elif frame.kind == worker_protocol.ERROR:
                    self.is_busy = False
                    raise worker_protocol.unpack_error(frame.fields)
                else:
                    return frame
            now = self._clock()
            if now - last_frame > stall_seconds:
                self._fail(f"{self._name} made no progress for {stall_seconds:g} s")
            if now - start > total_seconds:
                self._fail(f"{self._name} did not finish within {total_seconds:,.0f} s")
            if monotonic() - self._last_check >= _POLL_SECONDS:
                if len(self._processes()) > _MAX_PROCESSES:
                    self._fail(f"{self._name} started over {_MAX_PROCESSES} processes")
                if self._resident_memory() > self._memory_limit:
                    self._fail(self._memory_reason(), document_at_fault=False)
                self._last_check = monotonic()
            if future is not None and future.cancelled():
                self._fail("its result is no longer needed")
            # Send and receive what is possible.
            poll = select.poll()
            poll.register(stdout, select.POLLIN)
            if unsent:
                poll.register(stdin, select.POLLOUT)
            ready = dict(poll.poll(_POLL_SECONDS * 1000))
            if stdin.fileno() in ready:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a broken pipe shows in stdout, too
                    unsent = unsent[os.write(stdin.fileno(), unsent[:_READ_SIZE]) :]
            if stdout.fileno() in ready:
                data = os.read(stdout.fileno(), _READ_SIZE)
                if not data:
                    status = self.stop()  # a process that is ending already keeps its own status
                    if status >= 0:
                        reason = f"{self._name} ended with status {status}"
                    elif (name := signal.Signals(-status).name) == "SIGKILL":
                        reason = f"{self._name} was killed by the system, possibly for lack of memory"
                    else:
                        reason = f"{self._name} crashed ({name})"
                    raise WorkerEnded(reason, document_at_fault=False)
                try:
                    self._frames += self._reader.feed(data)
                except (ValueError, RecursionError, MemoryError) as error:
                    self._fail(f"{self._name} sent an invalid message: {error}")

    def _fail(self, reason: str, *, document_at_fault: bool = True) -> NoReturn:
        self.stop()
        raise WorkerEnded(reason, document_at_fault=document_at_fault)

    def _memory_reason(self) -> str:
        return f"{self._name} needs over {self._memory_limit / 2**30:g} GiB of memory"

    def _clock(self) -> float:
        """Seconds, without the time in which the process waits for a processor on a busy machine."""
        try:
            with open(f"/proc/{self.pid}/schedstat", "rb") as file:  # noqa: PTH123
                return monotonic() - int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return monotonic()

    def _processes(self) -> set[int]:
        """Ids of the process and all that it started."""
        return {self.pid, *descendants(self._process.pid)} - self._helpers

    def _resident_memory(self) -> int:
        """Resident memory of `_processes` in bytes; 0 where the system does not report it."""
        pages = 0
        for pid in self._processes():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123
                pages += int(file.read().split()[1])
        return pages * _PAGE_SIZE
