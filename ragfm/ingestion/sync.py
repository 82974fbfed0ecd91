"""Sync: a collection becomes equal to its source.

    refs ─→ known revision? ──────────────────────────────────────────────→ unchanged
         └→ fetch ─→ known content and recipe? ───────────────────────────→ unchanged, with a new revision
                  └→ parse ─→ split ─→ a window of documents ─→ embed what has no vector yet ─→ commit

Documents are parsed in processes of their own, the next ones while a window is embedded, and taken in in order.

An older version of a document serves until the new one is committed; what left the source goes with the last commit,
and only after the listing ended normally and most of the source is still there. Who may see a document is settled
before any is fetched. What can't be fetched or parsed fails alone, and is tried again after a while.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ragfm.chunking import CHUNKER_VERSION, ChunkSettings, chunk_document
from ragfm.core.access_groups import below, changed, listed
from ragfm.core.errors import MassDeleteError, RagfmError, SkipDocument, SourceError, WorkerError
from ragfm.ingestion.embedding import WINDOW, embed_missing
from ragfm.ingestion.ingest_report import Failed, Progress, Skipped, SyncReport, merge_reports
from ragfm.ingestion.parse_queue import Ahead
from ragfm.ingestion.sync_guards import conditions, known_before, not_held, not_moved, remember_sync, waits
from ragfm.parsing import PARSER
from ragfm.store.catalog import text_hash
from ragfm.store.catalog_writer import CatalogWriter, Failure
from ragfm.store.document_rows import NewDocument
from ragfm.store.tables import documents

if TYPE_CHECKING:
    from ragfm.core.access_groups import Groups
    from ragfm.core.types import Blob, Connector, Embedder, Ref, Scalar
    from ragfm.store.catalog import Source

__all__ = [
    "SKIP",
    "Failed",
    "Progress",
    "Skipped",
    "Sync",
    "SyncReport",
    "document_uri",
    "list_refs",
    "merge_reports",
    "recipe",
]

DOCUMENTS = 500
"""Documents that are committed at once, at most."""
PATIENCE = 2.0
"""Seconds for which a document is waited for before those that have come are embedded."""
SKIP = "skip"
"""The stage at which failures are noted that are none: entries that were fetched and hold nothing to index."""

_log = logging.getLogger(__name__)


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
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._committed = committed
        self._source = source
        self._embedder = embedder
        self._settings = settings
        self._progress = progress or (lambda _: None)
        newest = catalog.at()
        self._contract_id = newest.contract_id
        self._recipe = recipe(source, newest.contract, settings)
        self._current = catalog.current(source.id)
        self._allow = {path: row.allow for path, row in self._current.items()}
        self._known = known_before(catalog, source.id, self._current)
        self._before = {row.path: row for row in catalog.failures(source.id)}
        self._ahead = Ahead()
        self._window: list[NewDocument] = []
        self._waiting: set[bytes] = set()  # embedded texts of the window
        self._revisions: dict[str, str] = {}
        self._arrived: Counter[str] = Counter()  # digests of what is new in the source, or there in another place
        self._failed: list[Failure] = []  # at this run
        self._skipped: dict[str, str] = {}
        self._kept: list[str] = []  # paths whose failure, or reason to be skipped, stays as it was noted
        self._start = time.monotonic()
        self._added = self._updated = self._removed = self._unchanged = self._chunks = self._seen = self._total = 0

    def run(
        self,
        connector: Connector,
        refs: Sequence[Ref],
        *,
        retry: bool = False,
        allow_mass_delete: bool = False,
        unfiltered: Connector | None = None,
    ) -> SyncReport:
        """Bring the collection in step with the source, of which `refs` is the complete listing.

        `retry` tries all that failed, however short ago. `unfiltered` lists the source without include and exclude:
        what these leave out is not lost. Raises MassDeleteError where over half is lost and that isn't allowed.
        """
        self._total = len(refs)
        self._restrict(listed(self._allow, refs, {path: row.revision for path, row in self._current.items()}))
        try:
            for ref in refs:
                self._look_at(ref, connector, retry)
                self._seen += 1
                self._tell()
                while self._ahead.ready or self._ahead.full:
                    self._take_in()
            while self._ahead:
                self._take_in()
        finally:
            self._ahead.cancel()
        gone = not_held(self._current, refs, self._skipped)
        error = None if allow_mass_delete else self._mass_delete(gone, unfiltered)
        self._flush([] if error else gone)
        self._restrict(listed(self._allow, refs, self._revisions))
        self._note(refs)
        if error:
            raise error
        if self._added or self._updated or len(self._known) < len(self._current):
            remember_sync(self._catalog, self._source.id)
        return self.report

    @property
    def report(self) -> SyncReport:
        """What was done so far."""
        noted = [*self._failed, *(self._before[path] for path in self._kept)]
        failed = sorted((failure for failure in noted if failure.stage != SKIP), key=lambda failure: failure.path)
        return SyncReport(
            added=self._added,
            updated=self._updated,
            removed=self._removed,
            unchanged=self._unchanged,
            chunks=self._chunks,
            seconds=round(time.monotonic() - self._start, 3),
            skipped=tuple(Skipped(self._uri(path), why) for path, why in sorted(self._skipped.items())),
            failed=tuple(
                Failed(self._uri(f.path), f.stage, f.error, f.attempts, f.path in self._current) for f in failed
            ),
        )

    def _look_at(self, ref: Ref, connector: Connector, retry: bool) -> None:
        known = self._current.get(ref.path)
        if ref.error is not None:
            self._fail(ref, "list", ref.error)
        elif ref.skip is not None:
            self._skipped[ref.path] = ref.skip
        elif known is not None and known.revision == ref.revision and known.recipe == self._recipe:
            self._unchanged += 1
        elif retry or not self._settled(ref):
            self._bring_in(ref, connector)

    def _held_by(self, uri: str) -> str | None:
        """The source that a document of that address has come from."""
        rows = self._catalog.documents(None, documents.c.uri == uri)
        return rows[0].source if rows else None

    def _settled(self, ref: Ref) -> bool:
        """Whether an entry is skipped as before, or is as it was when it failed and not to be tried again yet."""
        row = self._before.get(ref.path)
        if row is None or not self._same(row, ref) or (row.stage != SKIP and not waits(row.attempts, row.at)):
            return False
        if row.stage == SKIP:
            self._skipped[ref.path] = row.error
        self._kept.append(ref.path)
        return True

    def _same(self, row: Any, ref: Ref) -> bool:
        return bool(row.revision == ref.revision and row.recipe == self._conditions)

    @cached_property
    def _conditions(self) -> str:
        return conditions(self._recipe)

    def _bring_in(self, ref: Ref, connector: Connector) -> None:
        if "://" in ref.path and ref.path not in self._current and (other := self._held_by(ref.path)):
            self._fail(ref, "list", f"it is in the collection already, from the source {other!r}")
            return
        try:
            blob = connector.fetch(ref)
        except SkipDocument as skip:
            self._skip(ref, str(skip))
            return
        except (OSError, SourceError) as error:
            self._fail(ref, "fetch", str(error))
            return
        digest = _digest(blob)
        known = self._current.get(ref.path)
        if known is not None and known.digest == digest and known.recipe == self._recipe:
            self._unchanged += 1
            self._revisions[ref.path] = ref.revision
            return
        self._ahead.add(ref, digest, blob, self._uri(ref.path))

    def _take_in(self) -> None:
        """Split the next document that is parsed; what waits longest is embedded and committed once it's enough."""
        while not _done(self._ahead.first.document, PATIENCE):
            if self._window:
                self._flush()
            self._tell()
        ref, digest, parsed, _ = self._ahead.pop()
        document, chunks = None, None
        with self._failing_alone(ref):
            document = parsed.result()
        if document is None:
            return
        embedder = self._embedder()  # loaded only for a document that is read, and its own errors end the sync
        with self._failing_alone(ref):
            chunks = chunk_document(document, embedder.tokenize, embedder.max_tokens, self._settings)
        if chunks is None:
            return
        hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
        new = NewDocument(ref.path, ref.revision, digest, self._recipe, document, chunks, hashes, ref.allow)
        self._window.append(new)
        self._waiting.update(hashes)
        known = self._current.get(ref.path)
        if known is None or known.digest != digest:
            self._arrived[digest] += 1
        if len(self._waiting) >= WINDOW or len(self._window) >= DOCUMENTS:
            self._flush()

    @contextmanager
    def _failing_alone(self, ref: Ref) -> Iterator[None]:
        """What goes wrong in here is the document's failure, or the reason to skip it, and nobody else's."""
        try:
            yield
        except WorkerError:
            raise
        except SkipDocument as skip:
            self._skip(ref, str(skip))
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
            self._committed()
        self._removed = len(gone)
        for new in self._window:
            if new.path in self._current:
                self._updated += 1
            else:
                self._added += 1
        self._window, self._waiting = [], set()
        self._tell()

    def _tell(self, waiting: int | None = None) -> None:
        waiting = len(self._waiting) if waiting is None else waiting
        done = self._seen - len(self._window) - len(self._ahead)
        self._progress(Progress(done, self._total, self._chunks, waiting))

    def _embed_window(self) -> None:
        texts = {
            key: chunk.embedded_text for new in self._window for chunk, key in zip(new.chunks, new.hashes, strict=True)
        }

        def told(embedded: int, left: int) -> None:
            self._chunks += embedded
            self._tell(left)

        embed_missing(self._catalog, self._contract_id, self._embedder, texts, told)

    def _restrict(self, now: Mapping[str, Groups]) -> None:
        """Make it hold in the collection who may see the documents."""
        others = changed(self._allow, now)
        if others:
            self._catalog.restrict(self._source, others)
            self._allow.update(others)

    def _mass_delete(self, gone: Sequence[str], unfiltered: Connector | None) -> MassDeleteError | None:
        """Why what is gone must not be removed: over half of what the source had is neither moved nor left out."""
        came = Counter(row.digest for path, row in self._current.items() if path not in {*self._known, *gone})
        lost = not_moved([path for path in gone if path in self._known], self._current, self._arrived + came)
        known = len(self._known)
        if 2 * len(lost) > known and unfiltered is not None:
            there = set(lost) - set(not_held(lost, list_refs(unfiltered), self._skipped))
            lost, known = [path for path in lost if path not in there], known - len(there)
        if 2 * len(lost) <= known:
            return None
        examples = ", ".join(self._uri(path) for path in lost[:3]) + (", …" if len(lost) > 3 else "")
        return MassDeleteError(
            f"The source {self._source.name!r} has lost {len(lost)} of its {known} documents since the last sync: "
            f"{examples}. Nothing was removed; what is new or changed was taken in.",
            "If they are meant to go, run it again with --allow-mass-delete.",
        )

    def _note(self, refs: Sequence[Ref]) -> None:
        stays = {*self._kept, *(failure.path for failure in self._failed)}
        unseen = tuple(below(ref.path) for ref in refs if ref.error is not None)
        cleared = [path for path in self._before if path not in stays and not path.startswith(unseen)]
        if self._revisions or self._failed or cleared:
            self._catalog.note(self._source.id, revisions=self._revisions, failed=self._failed, cleared=cleared)

    def _skip(self, ref: Ref, why: str) -> None:
        """What was fetched holds nothing to index: that is noted, so that it isn't fetched again."""
        self._skipped[ref.path] = why
        self._failed.append(Failure(ref.path, SKIP, why, ref.revision, self._conditions))

    def _fail(self, ref: Ref, stage: str, error: str) -> None:
        row = self._before.get(ref.path)
        attempts = row.attempts + 1 if row is not None and row.stage != SKIP and self._same(row, ref) else 1
        self._failed.append(Failure(ref.path, stage, error, ref.revision, self._conditions, attempts))
        _log.info("%s failed at %s: %s", self._uri(ref.path), stage, error)

    def _uri(self, path: str) -> str:
        return document_uri(self._source.name, path)


def document_uri(source: str, path: str) -> str:
    """The address of a document, unique in the collection: `<source>/<path>`, or the path if it is an address."""
    if source == "." or "://" in path:
        return path
    return f"{source.rstrip('/')}/{path}" if path else source


def _done(future: Future[Any], seconds: float) -> bool:
    """Whether something is done, now or within so many seconds."""
    return future.done() or bool(wait([future], seconds).done)


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
        "chunker": CHUNKER_VERSION,
        "chunk": asdict(settings),
        "max_tokens": contract["max_tokens"],
        "tags": dict(source.tags),
    }
    return json.dumps(parts, sort_keys=True)
