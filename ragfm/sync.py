"""Sync: a collection becomes equal to its source.

    refs ─→ known revision? ──────────────────────────────────────────────→ unchanged
         └→ fetch ─→ known content and recipe? ───────────────────────────→ unchanged, with a new revision
                  └→ parse ─→ split ─→ a window of documents ─→ embed what has no vector yet ─→ commit

An older version of a document serves until the new one is committed; what left the source goes with the last commit,
and only after the listing ended normally. What can't be fetched or parsed fails alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ragfm.catalog import text_hash
from ragfm.chunk import CHUNKER, ChunkSettings, split
from ragfm.commit import CatalogWriter, Failure
from ragfm.errors import EmbedderMismatchError, EmbeddingError, RagfmError, SkipDocument, SourceError
from ragfm.parse import PARSER, parse
from ragfm.rows import NewDocument

if TYPE_CHECKING:
    from ragfm.catalog import Source
    from ragfm.types import Blob, Connector, Embedder, Ref, Scalar, Vectors

WINDOW = 512
"""Texts that are embedded before their documents are committed; sorting them by length saves padding."""
SLICE = 64
"""Texts that are embedded between two progress reports, and lost when the process is killed."""
DOCUMENTS = 500
"""Documents that are committed at once, at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of the source that holds nothing to index, and why."""

    uri: str
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A document that failed at a stage (list, fetch, parse); `stale`: an older version still serves."""

    uri: str
    stage: str
    error: str
    attempts: int
    stale: bool


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did: counts of documents, of chunks embedded, and what was left out."""

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is: documents done with, of how many; chunks embedded so far, and known to wait for it."""

    documents: int
    total: int
    chunks: int
    waiting: int


def check_contract(stored: Mapping[str, Any], embedder: Embedder) -> None:
    """Raise EmbedderMismatchError where the embedder would give other vectors than the collection has."""
    given = dict(embedder.fingerprint)
    different = [key for key in given if key != "model" and given[key] != stored.get(key)]
    if different:
        names = ", ".join(f"{key} {stored.get(key)!r} there, {given[key]!r} now" for key in different)
        raise EmbedderMismatchError(
            f"The collection was made with the embedder {stored['model']!r}, this is {given['model']!r} ({names}).",
            f"Use the first one, or switch the collection with `ragfm reembed --embedder {given['model']}`.",
        )


class Sync:
    """One run over one source. The caller holds the collection's lock.

    `embedder` gives the embedder of the collection's contract; it is called only where there is something to embed,
    since most syncs find nothing new.
    """

    def __init__(
        self,
        catalog: CatalogWriter,
        source: Source,
        embedder: Callable[[], Embedder],
        settings: ChunkSettings,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._catalog = catalog
        self._source = source
        self._embedder = embedder
        self._settings = settings
        self._progress = progress or (lambda _: None)
        newest = catalog.at()
        self._contract_id = newest.contract_id
        self._dim = int(newest.contract["dim"])
        self._recipe = recipe(source, newest.contract, settings)
        self._current = catalog.current(source.id)
        self._attempts = {row.path: row.attempts for row in catalog.failures(source.id)}
        self._window: list[NewDocument] = []
        self._waiting: set[bytes] = set()  # embedded texts of the window
        self._revisions: dict[str, str] = {}
        self._failed: list[Failure] = []
        self._skipped: dict[str, str] = {}
        self._added = self._updated = self._unchanged = self._chunks = self._seen = self._total = 0

    def run(self, connector: Connector, refs: Sequence[Ref]) -> SyncReport:
        """Bring the collection in step with the source, of which `refs` is the complete listing."""
        start = time.monotonic()
        self._total = len(refs)
        for ref in refs:
            self._look_at(ref, connector)
            self._seen += 1
            self._tell()
            if len(self._waiting) >= WINDOW or len(self._window) >= DOCUMENTS:
                self._flush()
        gone = self._gone(refs)
        self._flush(gone)
        self._note()
        return SyncReport(
            added=self._added,
            updated=self._updated,
            removed=len(gone),
            unchanged=self._unchanged,
            chunks=self._chunks,
            seconds=round(time.monotonic() - start, 3),
            skipped=tuple(Skipped(self._uri(path), why) for path, why in sorted(self._skipped.items())),
            failed=tuple(
                Failed(self._uri(f.path), f.stage, f.error, f.attempts, f.path in self._current) for f in self._failed
            ),
        )

    def _look_at(self, ref: Ref, connector: Connector) -> None:
        known = self._current.get(ref.path)
        if ref.error is not None:
            self._fail(ref, "list", ref.error)
        elif ref.skip is not None:
            self._skipped[ref.path] = ref.skip
        elif known is not None and known.revision == ref.revision and known.recipe == self._recipe:
            self._unchanged += 1
        else:
            self._bring_in(ref, connector)

    def _bring_in(self, ref: Ref, connector: Connector) -> None:
        try:
            blob = connector.fetch(ref)
        except (OSError, SourceError) as error:
            self._fail(ref, "fetch", str(error))
            return
        digest = _digest(blob)
        known = self._current.get(ref.path)
        if known is not None and known.digest == digest and known.recipe == self._recipe:
            self._unchanged += 1
            self._revisions[ref.path] = ref.revision
            return
        document, chunks = None, None
        with self._failing_alone(ref):
            document = parse(blob, self._uri(ref.path))
        if document is None:
            return
        embedder = self._embedder()  # loaded only for a document that is read, and its own errors end the sync
        with self._failing_alone(ref):
            chunks = split(document, embedder.tokenize, embedder.max_tokens, self._settings)
        if chunks is None:
            return
        hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
        self._window.append(NewDocument(ref.path, ref.revision, digest, self._recipe, document, chunks, hashes))
        self._waiting.update(hashes)

    @contextmanager
    def _failing_alone(self, ref: Ref) -> Iterator[None]:
        """What goes wrong in here is the document's failure, or the reason to skip it, and nobody else's."""
        try:
            yield
        except SkipDocument as skip:
            self._skipped[ref.path] = str(skip)
        except RagfmError as error:
            self._fail(ref, "parse", str(error))
        except Exception as error:  # a parser's own mistake must not take the other documents with it
            _log.debug("%s", ref.path, exc_info=True)
            self._fail(ref, "parse", f"{type(error).__name__}: {error}")

    def _flush(self, gone: Sequence[str] = ()) -> None:
        """Embed and commit the window, and end the documents that are gone."""
        self._embed_window()
        if self._window or gone:
            self._catalog.commit(self._source, self._window, gone)
        for new in self._window:
            if new.path in self._current:
                self._updated += 1
            else:
                self._added += 1
        self._window, self._waiting = [], set()
        self._tell()

    def _tell(self, waiting: int | None = None) -> None:
        waiting = len(self._waiting) if waiting is None else waiting
        self._progress(Progress(self._seen - len(self._window), self._total, self._chunks, waiting))

    def _embed_window(self) -> None:
        missing = self._waiting - self._catalog.known_hashes(self._contract_id, self._waiting)
        texts: dict[bytes, str] = {}
        for new in self._window:
            for chunk, key in zip(new.chunks, new.hashes, strict=True):
                if key in missing:
                    texts[key] = chunk.embedded_text
        ordered = sorted(texts.items(), key=lambda item: len(item[1]))
        for start in range(0, len(ordered), SLICE):
            keys, passages = zip(*ordered[start : start + SLICE], strict=True)
            vectors = self._embedder().embed_passages(passages)
            _check_vectors(vectors, len(keys), self._dim)
            self._catalog.add_vectors(self._contract_id, keys, vectors)
            self._chunks += len(keys)
            self._tell(len(ordered) - start - len(keys))

    def _gone(self, refs: Sequence[Ref]) -> list[str]:
        """Living documents that the source no longer holds; what couldn't be looked at counts as held."""
        held = {ref.path for ref in refs} - self._skipped.keys()
        unseen = tuple(f"{ref.path}/" for ref in refs if ref.error is not None)
        return [path for path in self._current if path not in held and not path.startswith(unseen)]

    def _note(self) -> None:
        failed = {failure.path for failure in self._failed}
        cleared = [path for path in self._attempts if path not in failed]
        if self._revisions or self._failed or cleared:
            self._catalog.note(self._source.id, revisions=self._revisions, failed=self._failed, cleared=cleared)

    def _fail(self, ref: Ref, stage: str, error: str) -> None:
        attempts = self._attempts.get(ref.path, 0) + 1
        self._failed.append(Failure(ref.path, stage, error, ref.revision, self._recipe, attempts))
        _log.info("%s failed at %s: %s", self._uri(ref.path), stage, error)

    def _uri(self, path: str) -> str:
        return document_uri(self._source.name, path)


def merge_reports(reports: Sequence[SyncReport]) -> SyncReport:
    """The sums of several syncs' reports."""
    counts = ("added", "updated", "removed", "unchanged", "chunks")
    return SyncReport(
        **{count: sum(getattr(report, count) for report in reports) for count in counts},
        seconds=round(sum(report.seconds for report in reports), 3),
        skipped=tuple(skip for report in reports for skip in report.skipped),
        failed=tuple(failure for report in reports for failure in report.failed),
    )


def _check_vectors(vectors: Vectors, count: int, dim: int) -> None:
    """A vector is kept for good under its text's hash, so a bad one must never get in."""
    import numpy as np

    good = vectors.shape == (count, dim) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    if not good:  # a NaN is close to nothing
        raise EmbeddingError(
            f"The embedder gave vectors of shape {vectors.shape} that are not all of length 1, for {count} texts of "
            f"{dim} dimensions.",
            "Nothing of them was kept. Check the model, or its precision on this device.",
        )


def document_uri(source: str, path: str) -> str:
    """The address of a document: `<source>/<path>`, unique in the collection."""
    if source == ".":
        return path
    return f"{source.rstrip('/')}/{path}" if path else source


def list_refs(connector: Connector) -> list[Ref]:
    """All that a source holds. Raises SourceError where it can't be listed to its end."""
    listed: dict[str, Ref] = {}
    for ref in connector.refs():
        if ref.path in listed:
            raise SourceError(f"The source lists {ref.path!r} twice.", "Nothing was changed.")
        listed[ref.path] = ref
    return list(listed.values())


def _digest(blob: Blob) -> str:
    digest = blake2b(blob.data, digest_size=16)
    # Metadata counts as content, the time of change aside: that is what a revision is for.
    rest = {key: value for key, value in blob.metadata.items() if key != "modified"}
    digest.update(json.dumps([blob.media_type, rest], sort_keys=True).encode())
    return digest.hexdigest()


def recipe(source: Source, contract: Mapping[str, Scalar], settings: ChunkSettings) -> str:
    """All that makes the same bytes another document: a changed recipe counts as a changed document."""
    parts = {
        "parser": PARSER,
        "chunker": CHUNKER,
        "chunk": asdict(settings),
        "max_tokens": contract["max_tokens"],
        "tags": dict(source.tags),
    }
    return json.dumps(parts, sort_keys=True)
