"""A collection of the documents that a data set brings, made as a user makes one: files, then a sync."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.evaluation.question_sets import CORPUS

if TYPE_CHECKING:
    from ragfm.core.config import Settings
    from ragfm.core.types import Embedder, Offsets, Scalar, Vectors
    from ragfm.evaluation.question_sets import QuestionSet
    from ragfm.ingestion.sync import Progress, SyncReport


class TimedEmbedder:
    """An embedder that adds up, in `seconds`, how long it took over queries."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.seconds = 0.0

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._embedder.dim

    @property
    def max_tokens(self) -> int:
        """Tokens of a passage that fit."""
        return self._embedder.max_tokens

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return self._embedder.fingerprint

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Where the model's tokens stand."""
        return self._embedder.tokenize(texts)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages; not timed."""
        return self._embedder.embed_passages(texts)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of queries."""
        start = time.perf_counter()
        try:
            return self._embedder.embed_queries(texts)
        finally:
            self.seconds += time.perf_counter() - start


@contextlib.contextmanager
def corpus_collection(
    data: QuestionSet,
    settings: Settings,
    *,
    keep: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[tuple[Path, SyncReport]]:
    """The folder of a collection of the set's documents, temporary unless `keep` names one for it to stay in.

    Several sets may be kept in one folder; what is there is embedded once. A set without documents is a ValueError.
    """
    from ragfm.collection import Collection

    if data.documents is None:
        raise ValueError(f"{data.name} brings no documents")
    with contextlib.ExitStack() as stack:
        if keep is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ragfm-eval-")))
        else:
            place = Path(keep) / f"{data.name.replace(' ', '-')}-{_digest(data.documents)}"
        _write(data.documents, place / CORPUS)
        with Collection.open(place / ".ragfm", settings=settings) as collection:
            report = collection.sync(place / CORPUS, name=CORPUS, progress=progress)
        yield place / ".ragfm", report


def _write(documents: Mapping[str, str], folder: Path) -> None:
    if folder.exists():  # it is renamed to this name when it is complete
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    for path, text in documents.items():
        file = unfinished / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode("utf-8", "replace"))
    unfinished.rename(folder)


def _digest(documents: Mapping[str, str]) -> str:
    digest = blake2b(digest_size=6)
    for path, text in documents.items():
        digest.update(f"{path}\0{len(text)}\0{text}".encode("utf-8", "replace"))
    return digest.hexdigest()
