"""Calls of libraries that change the thread in which they run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_own_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Run each call of a function in a new thread, which ends with the call.

    For what llama.cpp computes:

    - On processors with AMX, llama.cpp configures the matrix registers of a thread once. oneDNN (torch, OpenVINO)
      changes that configuration. If both compute in one thread, the processor raises "illegal instruction".
    - OpenMP keeps a pool for each thread that has computed. As soon as its pools have more threads than the machine
      has cores, they sleep at each barrier instead of spinning. And in a forked process, a thread with a pool waits
      forever for the pool's threads, which only the parent has.

    For loading a model in OpenVINO, which replaces the thread's signal stack, and unmaps the new one when the model is
    freed. If another thread frees it, the first one crashes at its next signal: the main thread at Ctrl-C.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with ThreadPoolExecutor(1, "ragfm-own") as thread:
            return thread.submit(function, *args, **kwargs).result()

    return run
