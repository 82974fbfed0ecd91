"""Calls of a module's function in a confined process, for work with untrusted data that keeps state between calls.

    call ─→ pipe: arguments ──────────────────→ handle(file, *arguments) in the process
         └→ socket: descriptor of an open file ┘      └→ pipe: fields and bytes, or an error

The process cannot open files, except for those below `readable`; it gets the descriptors of the files that it works on.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ragfm.core.errors import ParseError
from ragfm.parsing.sandbox.worker_process import Limits, WorkerEnded, WorkerProcess

SERVICE_LIMITS = Limits(stall_seconds=600.0, seconds=600.0)
"""A service sends no signs of life, so only the total time is limited."""


class ConfinedService:
    """A process that runs `handle` of a module: `(file, *arguments) -> (fields, bytes)`. Thread-safe.

    It starts with the first call, and again after it has ended, so `handle` must not rely on what earlier calls did.
    """

    def __init__(self, module: str, *, limits: Limits = SERVICE_LIMITS, readable: Sequence[str] = ()) -> None:
        self._module, self._limits, self._readable = module, limits, readable
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None
        self._stop: Any = None
        _services.add(self)

    def call(self, *arguments: Any, file: int | bytes | None = None, max_bytes: int = 1 << 20) -> tuple[Any, bytes]:
        """Call `handle` with JSON values and an open file, or the bytes of one.

        Returns JSON fields, and up to `max_bytes` bytes.

        Raises the RagfmError that `handle` raised, ParseError if the process ended or another exception was raised, and
        WorkerError if no process can be started.
        """
        if isinstance(file, bytes):
            with tempfile.TemporaryFile() as opened:
                opened.write(file)
                opened.seek(0)
                return self.call(*arguments, file=opened.fileno(), max_bytes=max_bytes)
        with self._lock:
            while True:
                process, is_new = self._process, self._process is None
                if process is None:
                    # In a thread that lasts, since the process ends with the thread that started it.
                    start = _starter.submit(WorkerProcess, self._limits, self._module, self._readable)
                    process = self._process = start.result()
                    self._stop = weakref.finalize(self, process.stop)
                try:
                    return process.call(arguments, file, max_bytes)
                except (WorkerEnded, ConnectionError) as ended:
                    self._close()
                    if is_new or (isinstance(ended, WorkerEnded) and ended.document_at_fault):
                        raise ParseError(str(ended)) from ended
                except BaseException:
                    if process.is_busy:  # interrupted: the result of this call must not become that of the next one
                        self._close()
                    raise

    def close(self) -> None:
        """Stop the process; the next call starts another one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._stop is not None:
            self._stop()
        self._process = self._stop = None

    def release(self) -> None:
        """Release the process without stopping it; for a fork of the process that it belongs to."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._stop.detach()
            self._process.release()
        self._process = self._stop = None


_starter = ThreadPoolExecutor(1, "ragfm-confined")
_services: weakref.WeakSet[ConfinedService] = weakref.WeakSet()


def _after_fork() -> None:
    global _starter
    _starter = ThreadPoolExecutor(1, "ragfm-confined")
    for service in list(_services):
        service.release()


os.register_at_fork(after_in_child=_after_fork)
