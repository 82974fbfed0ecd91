"""The process between the parent and a worker. It ends the worker, and everything that the worker has started.

    parent ─→ supervisor ─→ worker ─→ its children
                        └→ first process of the PID namespace, if there is one

Children of the worker that leave its session stay in the namespace, which ends with its first process. Without a
namespace, they become children of the supervisor once their own parents have ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MAX_DESCRIPTOR = 1 << 16
_SIGNALS = {signal.SIGTERM, signal.SIGCHLD}


def supervise(parent: int, *, has_namespace: bool) -> None:
    """Continue in a child process, the worker; this one becomes its supervisor, which SIGTERM or `parent`'s end ends.

    `has_namespace`: the next child is the first process of a PID namespace. Raises OSError, and AttributeError on
    systems other than Linux.
    """
    _end_with_parent(parent, signal.SIGTERM)
    supervisor, first = os.getpid(), 0
    reading, writing = os.pipe()
    if has_namespace:
        first = os.fork()
        if not first:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes orphans that have ended
            _close_all_but(reading)
            os.read(reading, 1)  # returns when the supervisor has ended
            os._exit(0)
    else:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    worker = os.fork()
    if worker:
        try:
            _close_all_but(writing)
            _watch(worker, first)
        finally:
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.close(reading)
    os.close(writing)
    _end_with_parent(0 if has_namespace else supervisor, signal.SIGKILL)


def _watch(worker: int, first: int) -> NoReturn:
    """Wait for the worker, end what it has started, and end like the worker."""
    status = None
    while status is None:
        if signal.sigwait(_SIGNALS) == signal.SIGTERM:
            os.kill(worker, signal.SIGKILL)
        while status is None and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                status = os.waitstatus_to_exitcode(ended[1])
    if first:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)  # returns when all processes of the namespace have ended
    while started := descendants(os.getpid()):
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    os._exit(status)


def descendants(pid: int) -> list[int]:
    """Ids of the processes that a process and its children have started; empty where the system does not list them."""
    found, unseen = [], [pid]
    while unseen:
        folder = f"/proc/{unseen.pop()}/task"
        with contextlib.suppress(OSError):
            for thread in os.listdir(folder):  # noqa: PTH208
                with contextlib.suppress(OSError), open(f"{folder}/{thread}/children", "rb") as file:  # noqa: PTH123
                    children = [int(child) for child in file.read().split()]
                    found += children
                    unseen += children
    return found


def _close_all_but(descriptor: int) -> None:
    os.closerange(0, descriptor)
    os.closerange(descriptor + 1, _MAX_DESCRIPTOR)


def _end_with_parent(parent: int, number: signal.Signals) -> None:
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
