"""Documents that are being parsed while those before them are embedded."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from ragfm.parsing.sandbox.worker_pool import shared_worker_pool

if TYPE_CHECKING:
    from ragfm.core.types import Blob, Document, Ref

DOCUMENTS = 256
"""Documents that are fetched ahead, at most."""
BYTES = 32 << 20
"""Their bytes, about; one alone may have more."""


class Pending(NamedTuple):
    """A document that was fetched; `document` is there when it is parsed."""

    ref: Ref
    digest: str
    document: Future[Document]
    size: int


class Ahead:
    """A queue in the order of the listing."""

    def __init__(self) -> None:
        self._queue: deque[Pending] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether to wait for the first before more is fetched."""
        return len(self._queue) >= DOCUMENTS or self._bytes >= BYTES

    @property
    def ready(self) -> bool:
        """Whether the first is parsed."""
        return bool(self._queue) and self._queue[0].document.done()

    @property
    def first(self) -> Pending:
        """The one that comes next."""
        return self._queue[0]

    def add(self, ref: Ref, digest: str, blob: Blob, uri: str) -> None:
        """Have a document parsed."""
        self._queue.append(Pending(ref, digest, shared_worker_pool().submit(blob, uri), len(blob.data)))
        self._bytes += len(blob.data)

    def pop(self) -> Pending:
        """Take the first, parsed or not."""
        pending = self._queue.popleft()
        self._bytes -= pending.size
        return pending

    def cancel(self) -> None:
        """Nobody waits for the rest."""
        while self._queue:
            self.pop().document.cancel()
