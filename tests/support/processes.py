"""The processes that a test run has started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil

RUN_VARIABLE = "PYTEST_RAGFM_RUN"
"""Environment variable that all processes of a test run inherit, also those whose parent has ended."""
_UNTIL_EXIT = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Processes that Python itself ends with this process."""


def started_in(run: str) -> list[psutil.Process]:
    """The processes with `run` in their environment: all that were started after it was set, and theirs."""
    return [process for process in psutil.process_iter() if _is_of_run(process, run)]


def wait_for_end(run: str, seconds: float) -> list[str]:
    """Wait for the processes of a run to end. Those that do not are killed, and described: command line and test."""
    deadline = time.monotonic() + seconds
    while (left := started_in(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    described = [text for process in left for text in _described(process)]
    for process in left:
        process.kill()
    return described


def _is_of_run(process: psutil.Process, run: str) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if any(name in word for word in process.cmdline() for name in _UNTIL_EXIT):
            return False
        return process.environ().get(RUN_VARIABLE) == run
    except psutil.Error:  # it has ended, or belongs to another user
        return False


def _described(process: psutil.Process) -> Iterator[str]:
    try:
        words = " ".join(process.cmdline())[:300]
        test = process.environ().get("PYTEST_CURRENT_TEST", "an unknown test")
        yield f"process {process.pid}, {words!r}, started by {test}"
    except psutil.Error:
        return
