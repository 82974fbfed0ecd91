"""The process in which documents are parsed. It imports only what parsing needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from ragfm.parsing import heartbeat, parse
from ragfm.parsing.sandbox import confinement, worker_protocol

_READ_SIZE = 1 << 20  # bytes


def main(folder: str, memory: int, model_memory: int, parent: int, readable: Sequence[str]) -> None:
    """Parse the documents that arrive on standard input until it ends, and write the results to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    # Take over both streams, so that whatever a library reads or prints does not touch the protocol.
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    os.nice(5)  # embedding goes first where both need the same cores

    def send(message: bytes) -> None:
        unsent = memoryview(message)
        while unsent:
            unsent = unsent[os.write(sink, unsent) :]

    def send_heartbeat(model_started: bool) -> None:
        if model_started:
            confinement.limit_memory(model_memory)
        send(worker_protocol.pack(worker_protocol.MODEL_STARTED if model_started else worker_protocol.HEARTBEAT))

    protections = confinement.confine(folder, readable, memory, parent)
    heartbeat.set_listener(send_heartbeat)
    send(worker_protocol.pack(worker_protocol.READY, protections))

    # Standard error shows why a start failed. From now on it would only get warnings of libraries.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)

    reader = worker_protocol.FrameReader()
    while data := os.read(source, _READ_SIZE):
        for frame in reader.feed(data):
            try:
                send(_parse(frame))
            except MemoryError:
                del frame
                send(worker_protocol.pack(worker_protocol.OUT_OF_MEMORY))
                return


def _parse(frame: worker_protocol.Frame) -> bytes:
    """Return the message with the document or with the error. Raises MemoryError."""
    try:
        return worker_protocol.pack_document(parse(*worker_protocol.unpack_blob(frame)))
    except MemoryError:
        raise
    except Exception as error:  # a bug in a parser is a failure of this document only
        return worker_protocol.pack_error(error)
