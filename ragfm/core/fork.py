"""Forked processes: end OpenMP's threads before a fork, and replace what the child cannot use.

A fork copies the memory of a process, but only the thread that forks. In the child, locks that other threads held stay
locked, and pools have no threads. GNU OpenMP waits for its missing threads forever: torch, FAISS and llama.cpp bring a
copy each, with a pool for each thread that computed. Only the pool of the forking thread matters to the child.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

_OMP_PAUSE_HARD = 2
"""`omp_pause_hard` of OpenMP 5.0: end the threads. The next parallel computation starts new ones."""


_objects: weakref.WeakSet[Any] = weakref.WeakSet()


def reset_in_children(owner: Any) -> None:
    """Call `owner.reset_after_fork()` in each process that is forked from this one while `owner` exists.

    It makes new locks, and forgets what other threads were using.
    """
    _objects.add(owner)


def end_openmp_threads() -> None:
    """End the OpenMP threads that wait for the calling thread, in each copy of GNU OpenMP that is loaded.

    Takes a millisecond. OpenMP's threads sleep instead of spinning while there are more of them than cores, so a thread
    that has nothing to compute should call this.
    """
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().select(prefix="libgomp").lib_controllers:
        if pause := getattr(library.dynlib, "omp_pause_resource_all", None):  # since GCC 9
            pause(_OMP_PAUSE_HARD)


def _before_fork() -> None:
    with suppress(OSError):  # no such file outside Linux
        if "libgomp" in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
            end_openmp_threads()


def _reset_objects() -> None:
    for owner in list(_objects):
        owner.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_reset_objects)
