"""The process in which documents are parsed, or in which a service runs. It imports only what that needs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from importlib import import_module

from ragfm.parsing import heartbeat, parse
from ragfm.parsing.sandbox import confinement, worker_protocol

_READ_SIZE = 1 << 20  # bytes


def main(
    folder: str,
    memory: int,
    model_memory: int,
    parent: int,
    readable: Sequence[str],
    service: str | None = None,
    files: int = -1,
) -> None:
    """Parse the documents that arrive on standard input until it ends, and write the results to standard output.

    With `service`, the name of a module, calls of its function `handle` arrive instead, and the descriptors of their
    files on the socket `files`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    # Take over both streams, so that whatever a library reads or prints does not touch the protocol.
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    if service is None:
        os.nice(5)  # embedding goes first where both need the same cores

    def send(message: bytes) -> None:
        unsent = memoryview(message)
        while unsent:
            unsent = unsent[os.write(sink, unsent) :]

    def send_sign(sign: heartbeat.Sign) -> None:
        if sign != "beat":
            confinement.limit_memory(model_memory)
        send(worker_protocol.pack(worker_protocol.SIGN, sign))

    protections = confinement.confine(folder, readable, memory, parent)
    heartbeat.set_listener(send_sign)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=files) if service else None
    handle = import_module(service).handle if service else None

    def answer(frame: worker_protocol.Frame) -> bytes:
        if channel is None or handle is None:
            return worker_protocol.pack_document(parse(*worker_protocol.unpack_blob(frame)))
        has_file, *arguments = frame.fields
        file = None
        if has_file:
            _, (descriptor, *_), _, _ = socket.recv_fds(channel, 1, 1)
            file = os.fdopen(descriptor, "rb")
        return worker_protocol.pack(worker_protocol.RESULT, *handle(file, *arguments))

    try:
        pid = int(os.readlink("/proc/self"))  # noqa: PTH115  for the parent; `getpid` returns that in a namespace
    except OSError:
        pid = os.getpid()
    send(worker_protocol.pack(worker_protocol.READY, [pid, protections]))

    # Standard error shows why a start failed. From now on it would only get warnings of libraries.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)

    reader = worker_protocol.FrameReader()
    while data := os.read(source, _READ_SIZE):
        for frame in reader.feed(data):
            try:
                message = answer(frame)
            except MemoryError:
                del frame
                send(worker_protocol.pack(worker_protocol.OUT_OF_MEMORY))
                return
            except Exception as error:  # a bug in a parser or service is a failure of this document or call only
                message = worker_protocol.pack_error(error)
            send(message)
