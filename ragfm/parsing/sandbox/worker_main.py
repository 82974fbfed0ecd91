"""The process in which documents are parsed. It imports what parsing needs and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence

from ragfm.parsing import heartbeat, parse
from ragfm.parsing.sandbox import confinement, worker_protocol

_READ = 1 << 20  # bytes at once


def main(folder: str, memory: int, model_memory: int, parent: int, readable: Sequence[str]) -> None:
    """Parse what comes on standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    into, out = _take_streams()
    os.nice(5)  # embedding goes first where both want the same cores

    def send(message: bytes) -> None:
        left = memoryview(message)
        while left:
            left = left[os.write(out, left) :]

    def tell(model: bool) -> None:
        if model:
            confinement.limit_memory(model_memory)
        send(worker_protocol.pack(worker_protocol.MODEL if model else worker_protocol.STEP))

    means = confinement.confine(folder, readable, memory, parent)
    heartbeat.listen(tell)
    send(worker_protocol.pack(worker_protocol.READY, means))
    _silence()
    for frame in _frames(into):
        if not _answer(frame, send):
            return


def _answer(frame: worker_protocol.Frame, send: Callable[[bytes], None]) -> bool:
    """Whether the process is fit for another document."""
    try:
        try:
            message = worker_protocol.pack_document(parse(*worker_protocol.unpack_blob(frame)))
        except MemoryError:
            raise
        except Exception as error:  # a parser's own mistake is its document's failure
            message = worker_protocol.pack_error(error)
        send(message)
    except MemoryError:
        del frame
        send(worker_protocol.pack(worker_protocol.FULL))
        return False
    return True


def _take_streams() -> tuple[int, int]:
    """The two ends of the talk with the parent; what a library reads or prints goes nowhere near it."""
    into, out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return into, out


def _silence() -> None:
    """Standard error is for what goes wrong at the start; libraries' warnings are nobody's."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    os.close(nothing)


def _frames(into: int) -> Iterator[worker_protocol.Frame]:
    inbox = worker_protocol.Inbox()
    while data := os.read(into, _READ):
        yield from inbox.feed(data)
