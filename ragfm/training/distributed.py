"""Data-parallel training: several processes, each on its own GPU, train one adapter; `accelerate launch` starts them.

    step ─rows→ process 0 ─ gradients ─┐
         ─rows→ process 1 ─ gradients ─┴─ sum → the same optimizer step in each

Only the main process (rank 0) writes files, validates and reports.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore

_TIMEOUT = timedelta(days=1)  # of a collective operation; the launcher ends all processes when one has died
_groups = itertools.count()  # of the groups that this process joined: the same in all processes


class Processes:
    """The process group of a training run: `rank` of this process and `world_size`, 0 and 1 without a launcher."""

    def __init__(self) -> None:
        initialized = distributed.is_available() and distributed.is_initialized()
        self.world_size = distributed.get_world_size() if initialized else 1
        self.rank = distributed.get_rank() if initialized else 0
        self._interrupted = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size > 1:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by that of the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def barrier(self) -> None:
        """Wait until all processes get here."""
        if self.world_size > 1:
            distributed.barrier()

    @contextmanager
    def defer_interrupts(self) -> Iterator[None]:
        """Keep a Ctrl-C in this block for `raise_if_interrupted`, or for the end of the block.

        Raised inside torch it may end the process, and a process that left a step would block the others. A process
        that is alone raises a second Ctrl-C at once.
        """
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            yield
            return

        def note(*_: object) -> None:
            if self._interrupted and self.world_size == 1:
                raise KeyboardInterrupt
            self._interrupted = True

        self._interrupted = False
        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
        if self._interrupted and self.world_size == 1:
            raise KeyboardInterrupt

    def raise_if_interrupted(self, device: torch.device) -> None:
        """Raise KeyboardInterrupt in all processes if one of them received a Ctrl-C."""
        if self.world_size == 1:
            interrupted = self._interrupted
        else:
            flag = torch.tensor(float(self._interrupted), device=device)
            self.sum_tensors([flag])
            interrupted = bool(flag.item())
        if interrupted:
            raise KeyboardInterrupt


def join_processes() -> Processes:
    """Join the process group if a launcher started several processes. Sets the GPU: call it before loading a model."""
    if _launched_processes() > 1 and not distributed.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "nccl"
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, world_size = _rendezvous()
        # A group leaves its processes' addresses in the store, where the next group would find and use them.
        store = PrefixStore(f"group {next(_groups)}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    return Processes()


def leave_processes() -> None:
    """Wait for the other processes, then leave the process group; `join_processes` may be called again."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()  # a process that leaves while others still communicate may be aborted
        distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process reports on the training run; True without a launcher."""
    return int(os.environ.get("RANK", "0")) == 0


def unused_gpus() -> int:
    """The number of GPUs of this machine if there are several and no launcher was used, else 0."""
    count = torch.cuda.device_count()
    return count if count > 1 and _launched_processes() == 1 else 0


@cache  # without a launcher's store, process 0 holds the store, and its port, until it ends
def _rendezvous() -> Any:  # the store, the rank of this process, the number of processes
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://", timeout=_TIMEOUT))


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
