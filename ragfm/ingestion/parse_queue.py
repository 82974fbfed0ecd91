"""Documents that are parsed in worker processes while earlier ones are embedded."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, NamedTuple

from ragfm.parsing.sandbox.worker_pool import shared_worker_pool

if TYPE_CHECKING:
    from ragfm.core.types import Blob, Document, Ref
    from ragfm.parsing import ParserChoice

MAX_DOCUMENTS = 256
"""Maximum number of queued documents."""
MAX_BYTES = 32 << 20
"""Total size at which the queue is full; a single larger document is still accepted."""


class Pending(NamedTuple):
    """A fetched document; the future `document` completes when it is parsed."""

    ref: Ref
    digest: str
    document: Future[Document]
    size: int


class ParseQueue:
    """A first-in, first-out queue of documents that are being parsed by the parsers of a choice."""

    def __init__(self, choice: ParserChoice) -> None:
        self._choice = choice
        self._queue: deque[Pending] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether the first document must be taken before more are added."""
        return len(self._queue) >= MAX_DOCUMENTS or self._bytes >= MAX_BYTES

    @property
    def ready(self) -> bool:
        """Whether the first document is parsed."""
        return bool(self._queue) and self._queue[0].document.done()

    def wait(self, seconds: float) -> bool:
        """Wait for the first document; returns whether it is parsed."""
        first = self._queue[0].document
        return first.done() or bool(wait([first], seconds).done)

    def add(self, ref: Ref, digest: str, blob: Blob, uri: str) -> None:
        """Send a document to the workers."""
        self._queue.append(Pending(ref, digest, shared_worker_pool().submit(blob, uri, self._choice), len(blob.data)))
        self._bytes += len(blob.data)

    def pop(self) -> Pending:
        """Remove and return the first document, parsed or not."""
        pending = self._queue.popleft()
        self._bytes -= pending.size
        return pending

    def cancel(self) -> None:
        """Cancel all documents that are left."""
        while self._queue:
            self.pop().document.cancel()
