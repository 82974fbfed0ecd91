"""One worker process, as its parent sees it: it is started, given documents, watched, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from ragfm.core.errors import ParseError, RagfmError, WorkerError
from ragfm.core.types import Blob, Document
from ragfm.parsing.sandbox import worker_protocol

BOOT = """
import json, sys
path, given = json.loads(sys.argv[1])
sys.path[:] = path
from ragfm.parsing.sandbox.worker_main import main
main(*given)
"""
"""What a worker's Python runs first."""
PREFIX = "ragfm-parse-"
"""Of the names of workers' folders; the parent's id follows."""
_START = 60.0  # seconds that Python may take to start
_TICK = 0.1  # seconds between two looks at a worker's memory
_READ = 1 << 20
_KEPT = ("PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
_KEPT_KINDS = ("LC_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "TESSDATA_")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may cost."""

    silence: float = 60.0
    """Seconds without a step."""
    seconds: float = 300.0
    """Seconds in all, and as many more for each MiB as `seconds_per_mib` says."""
    seconds_per_mib: float = 120.0
    memory: int = 1 << 30
    """Bytes of resident memory."""
    model_memory: int = 3 << 30
    """The same where a model runs (OCR, speech)."""
    documents: int = 500
    """How many documents a process parses before another one takes its place."""

    def total(self, size: int) -> float:
        """Seconds for a document of so many bytes."""
        return self.seconds + self.seconds_per_mib * size / 2**20


@dataclass(frozen=True, slots=True)
class Job:
    """A document to parse; `wanted` says whether anybody still waits for it."""

    blob: Blob
    uri: str
    wanted: Callable[[], bool] = lambda: True


class Ended(Exception):  # noqa: N818  it says what became of a process
    """The process has come to its end over a document. `certain`: the document alone is the reason."""

    def __init__(self, why: str, *, certain: bool) -> None:
        super().__init__(why)
        self.certain = certain


class Process:
    """A worker. It ends with the thread that made it. Raises WorkerError where it can't be started."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._memory = limits.memory
        self._has_models = False
        self._inbox = worker_protocol.Inbox(worker_protocol.MOST_TEXT)
        self._frames: list[worker_protocol.Frame] = []
        self._said = ""
        self._ending = threading.Lock()
        self.parsed = 0
        self.means: list[str] = []
        self.folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        try:
            self._process = self._start()
            self.means = self._ready()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        # Not the folders that the parent is in or was started from: of what is imported nothing comes from there.
        own, main = str(Path(__file__).parents[3]), getattr(sys.modules.get("__main__"), "__file__", None) or ""
        here = {os.getcwd(), os.path.dirname(os.path.abspath(main))}  # noqa: PTH100, PTH109, PTH120
        path = [entry for entry in map(os.path.abspath, filter(None, sys.path)) if entry not in here]
        path = path if own in path else [own, *path]
        readable = [*path, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(sys.executable or "/usr")]  # noqa: PTH120
        cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111
        limits = self._limits
        given = [self.folder, limits.memory, limits.model_memory, os.getpid(), [*readable, cache]]
        env = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_KINDS)}
        env |= {"HOME": self.folder, "TMPDIR": self.folder, "HF_HOME": cache}
        try:
            with open(os.path.join(self.folder, "stderr"), "wb") as stderr:  # noqa: PTH118, PTH123
                return subprocess.Popen(  # noqa: S603  nothing of it comes from a document
                    [sys.executable, "-P", "-c", BOOT, json.dumps([path, given])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=self.folder,
                    env=env,
                    start_new_session=True,  # Ctrl-C is for the parent, and what a worker starts dies with it
                )
        except (OSError, TypeError) as error:
            raise WorkerError(f"{sys.executable!r} can't be started to parse documents: {error}.") from error

    def _ready(self) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        try:
            frame = self._await(b"", lambda: None, _START, _START)
        except Ended as ended:
            raise WorkerError(f"A process to parse documents can't be started: {self._said or ended}.") from ended
        return list(frame.fields)

    def give(self, jobs: list[Job]) -> None:
        """Send documents. Of several the messages together must fit in a pipe, so that nobody waits for the other."""
        self._outgoing = b"".join(worker_protocol.pack_blob(job.blob, job.uri) for job in jobs)

    def take(self, job: Job) -> Document | RagfmError:
        """What became of the first document that was given and not taken yet. Raises Ended where the process did."""
        limits = self._limits
        kept = self._resident() if self._has_models else 0  # a model that was loaded is not the next document's fault
        self._memory = min(limits.memory + kept, limits.model_memory)

        def check() -> None:
            if not job.wanted():
                raise Ended("nobody waits for it any more", certain=True)

        message, self._outgoing = self._outgoing, b""
        size = len(job.blob.data)
        frame = self._await(message, check, limits.silence, limits.total(size))
        self.parsed += 1
        try:
            if frame.kind == worker_protocol.DOCUMENT:
                return worker_protocol.unpack_document(frame, job.blob, job.uri)
            if frame.kind == worker_protocol.ERROR:
                return worker_protocol.unpack_error(frame.fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.end()
            raise Ended(f"its parser gave an answer that is none: {error}", certain=True) from error
        self.end()
        raise Ended(self._too_much(), certain=False)

    @property
    def worn(self) -> bool:
        """Whether another process should take its place: it has done much, or keeps much memory."""
        usual = (self._limits.model_memory if self._has_models else self._limits.memory) * 3 // 4
        return self.parsed >= self._limits.documents or self._resident() > usual

    def end(self) -> int:
        """End it at once, with all that it has started, and remove what it has written; gives its exit status."""
        with self._ending:
            if self._process.returncode is None:  # else its number may be another's by now
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
            self.let_go()
            if not self.means:  # it hasn't even begun
                with contextlib.suppress(OSError):
                    self._said = Path(self.folder, "stderr").read_text(errors="replace").strip().rpartition("\n")[2]
            shutil.rmtree(self.folder, ignore_errors=True)
        return status

    def let_go(self) -> None:
        """Close the ends that this process has: a fork of the one that started it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._process.returncode is None:
            self._process.returncode = 0  # nobody here is to wait for it

    def _await(self, message: bytes, check: Callable[[], None], silence: float, total: float) -> worker_protocol.Frame:
        """Send what is left to send, and give the next message that is more than a sign of life."""
        began = heard = self._clock()
        left = memoryview(message)
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                heard = self._clock()
                if frame.kind == worker_protocol.MODEL:
                    self._memory, self._has_models = self._limits.model_memory, True
                elif frame.kind != worker_protocol.STEP:
                    return frame
            now = self._clock()
            if now - heard > silence:
                self._kill(f"its parser made no progress for {silence:g} s")
            if now - began > total:
                self._kill(f"its parser was not done after {total:,.0f} s")
            if self._resident() > self._memory:
                self._kill(self._too_much(), certain=False)
            try:
                check()
            except Ended:
                self.end()
                raise
            left = self._exchange(left)

    def _exchange(self, left: memoryview) -> memoryview:
        """Wait a little for bytes to come, or to go; gives what is left to send."""
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        poll = select.poll()
        poll.register(out, select.POLLIN)
        if left:
            poll.register(into, select.POLLOUT)
        ready = dict(poll.poll(_TICK * 1000))
        if into.fileno() in ready:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a pipe that broke will be at its end, too
                left = left[os.write(into.fileno(), left[:_READ]) :]
        if out.fileno() in ready:
            data = os.read(out.fileno(), _READ)
            if not data:
                self._died()
            try:
                self._frames += self._inbox.feed(data)
            except (ValueError, RecursionError, MemoryError) as error:
                self._kill(f"its parser gave what can't be taken: {error}")
        return left

    def _kill(self, why: str, *, certain: bool = True) -> None:
        self.end()
        raise Ended(why, certain=certain)

    def _died(self) -> None:
        status = self.end()  # a process that is ending already keeps its own status
        if status >= 0:
            raise Ended(f"its parser ended with status {status}", certain=False)
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            raise Ended("its parser was killed by the system, perhaps for want of memory", certain=False)
        raise Ended(f"its parser crashed ({name})", certain=False)

    def _too_much(self) -> str:
        return f"it needs over {self._memory / 2**30:g} GiB of memory to be parsed"

    def _clock(self) -> float:
        """Seconds that go by for the process: not those in which it waits for a processor, on a busy machine."""
        try:
            with open(f"/proc/{self._process.pid}/schedstat", "rb") as file:  # noqa: PTH123
                return monotonic() - int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return monotonic()

    def _resident(self) -> int:
        """Bytes of memory that the process has; 0 where the system doesn't say."""
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as file:  # noqa: PTH123
                return int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0


_PAGE = os.sysconf("SC_PAGE_SIZE")


def failure(uri: str, why: str) -> ParseError:
    """The failure of a document over which its process ended."""
    name = uri.rstrip("/").rsplit("/", 1)[-1] or uri
    return ParseError(f"{name} can't be parsed: {why}.")
