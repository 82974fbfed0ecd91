"""Several processes that train one adapter, each on its own GPU; `accelerate launch` starts them.

    step ─rows→ process 0 ─ gradients ─┐
         ─rows→ process 1 ─ gradients ─┴─ sum → the same step of the optimizer in each

The first one alone writes, validates and speaks.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

_LONGEST = timedelta(days=1)  # of a wait: the launcher ends all where one has died


class Processes:
    """Those of one training, seen from inside one of them. Without `join` before, this process is alone."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if together else 1
        self.number = distributed.get_rank() if together else 0
        self._interrupted = False

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make each tensor the sum of those of all processes."""
        if self.count > 1:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make each tensor that of the first process."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A Ctrl-C in here is kept for `stop_if_interrupted`: what one leaves in a step, the others wait for."""
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: setattr(self, "_interrupted", True))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def stop_if_interrupted(self, device: torch.device) -> None:
        """Raise KeyboardInterrupt in each process where one of them got a Ctrl-C."""
        if self.count == 1:
            return
        came = torch.tensor(float(self._interrupted), device=device)
        self.add([came])
        if came.item():
            raise KeyboardInterrupt


def join() -> Processes:
    """Meet the other processes, where a launcher started several. Called before a model is loaded: it sets the GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=_LONGEST)
    return Processes()


def leave() -> None:
    """At the end, when nothing more is sent."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
