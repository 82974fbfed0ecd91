"""Sync of one source: the collection becomes equal to it.

    refs ─→ known revision? ──────────────────────────────────────────────→ unchanged
         └→ fetch ─→ known content and recipe? ───────────────────────────→ unchanged, with a new revision
                  └→ parse ─→ split ─→ a window of documents ─→ embed what has no vector yet ─→ commit

Worker processes parse the next documents while a window is embedded; documents are committed in the order of the
listing.

A new version of a document replaces the old one when it is committed. Documents that left the source are removed by the
last commit, after a complete listing and only if the deletion guard agrees. Access groups are updated before anything
is fetched. A document that cannot be fetched or parsed fails alone and is tried again later.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ragfm.core.access_groups import changed_groups, groups_after_listing, path_prefix
from ragfm.core.errors import MassDeleteError, SourceError
from ragfm.core.progress import Progress, ignore_progress
from ragfm.embedders.backend_choice import measured_speed
from ragfm.ingestion.deletion_guard import lost_documents, missing_paths, paths_at_last_sync, record_complete_sync
from ragfm.ingestion.document_outcomes import skip_record, stored_outcomes
from ragfm.ingestion.document_tags import differs_by_tags_only, document_recipe, tags_of
from ragfm.ingestion.embedding import WINDOW, embed_missing
from ragfm.ingestion.ingest_report import Failed, Skipped, SyncReport, document_uri
from ragfm.ingestion.parse_environment import environment_hash
from ragfm.ingestion.parse_queue import ParseQueue
from ragfm.ingestion.preparation import Outcome, fetch, split
from ragfm.ingestion.recipe import (
    fallback_version,
    older_documents,
    source_recipe,
    with_parsers,
    with_versions_of,
)
from ragfm.ingestion.retry import must_wait
from ragfm.ingestion.shared_work import job_of
from ragfm.parsing.parsers import ParserChoice
from ragfm.store.catalog_writer import CatalogWriter, Failure
from ragfm.store.document_rows import NewDocument
from ragfm.store.tables import documents, text_hash

if TYPE_CHECKING:
    from ragfm.chunking import ChunkSettings
    from ragfm.core.access_groups import Groups
    from ragfm.core.config import TagsSection
    from ragfm.core.progress import ProgressCallback
    from ragfm.core.types import Connector, Document, Embedder, Ref
    from ragfm.ingestion.shared_work import SharedWork
    from ragfm.ingestion.turns import Turns
    from ragfm.store.catalog import Source

MAX_COMMIT_DOCUMENTS = 500
"""Maximum number of documents in one commit."""
_MAX_COMMIT_IMAGES = 64 << 20  # bytes
_MAX_URI_BYTES = 2_500  # on PostgreSQL, whose indexes take up to 2,704
PARSE_WAIT_SECONDS = 2.0
"""How long to wait for a document to be parsed before the window collected so far is embedded."""

_log = logging.getLogger(__name__)


class Sync:
    """One sync of one source. The caller holds the collection's lock.

    `embedder` gives the embedder of the collection's contract; it is called only if there is something to embed.
    `parser_choice` says which parser reads which format. `rules` are the tags by pattern of `ragfm.toml`.
    `after_commit` is called after each commit. With `keep_recipe`, unchanged documents that an older version of ragfm
    or another parser prepared stay as they are.
    """

    def __init__(
        self,
        catalog: CatalogWriter,
        source: Source,
        embedder: Callable[[], Embedder],
        chunk_settings: ChunkSettings,
        *,
        parser_choice: ParserChoice = ParserChoice(),  # noqa: B008  frozen
        rules: Sequence[TagsSection] = (),
        progress: ProgressCallback | None = None,
        after_commit: Callable[[], None] = lambda: None,
        keep_recipe: bool = False,
    ) -> None:
        self._catalog = catalog
        self._keep_recipe = keep_recipe
        self._source = source
        self._choice = parser_choice
        self._rules = rules
        self._embedder = embedder
        self._chunk_settings = chunk_settings
        self._progress = progress or ignore_progress
        self._after_commit = after_commit

        newest = catalog.at()
        self._contract_id = newest.contract_id
        self._recipe = source_recipe(source, newest.contract, chunk_settings)
        self._current = catalog.current(source.id)
        self._retagged: set[str] = set()  # paths of documents whose tags changed while their text did not
        self._groups = {path: row.allow for path, row in self._current.items()}
        self._baseline = paths_at_last_sync(catalog, source.id, self._current)
        self._stored_failures, self._stored_skips = stored_outcomes(catalog, source.id)

        self._queue = ParseQueue(parser_choice)
        self._shared: SharedWork | None = None
        self._window: list[NewDocument] = []
        self._window_hashes: set[bytes] = set()
        self._new_digests: Counter[str] = Counter()  # of new and changed documents
        self._new_revisions: dict[str, str] = {}  # of documents with a new revision but the same content
        self._failures: list[Failure] = []  # of this sync
        self._skips: list[Failure] = []  # of this sync, to store
        self._skipped: dict[str, str] = {}  # all reasons by path
        self._kept_failures: list[Any] = []  # rows of documents that are not tried again yet
        self._kept_paths: set[str] = set()  # whose stored failure or skip remains
        self._start = time.monotonic()
        self._added = self._updated = self._removed = self._unchanged = self._chunks = 0
        self._listed = self._examined = 0
        self._waiting = 0  # entries that are new or changed and not fetched yet

    def run(
        self,
        connector: Connector,
        refs: Sequence[Ref],
        *,
        retry: bool = False,
        allow_mass_delete: bool = False,
        unfiltered: Callable[[], Sequence[Ref]] | None = None,
        turns: Turns | None = None,
        shared: SharedWork | None = None,
    ) -> SyncReport:
        """Sync the source with `refs`, its complete listing.

        `retry` tries all failed documents at once. `unfiltered` lists the source without include and exclude patterns,
        for the deletion guard. With `turns`, only a slice of the new and changed documents is fetched; the others
        keep their state. With `shared`, workers prepare the documents. Raises MassDeleteError if over half of the
        documents are lost, unless allowed.
        """
        self._listed = len(refs)
        older, chunks = older_documents(self._catalog, self._choice, self._source.id)
        if older and not self._keep_recipe:
            _log.warning(
                "%d documents with %d chunks of %s were prepared by an older version of ragfm or a different parser: "
                "they are parsed and embedded again, which improves search%s. To postpone this, use --keep-recipe.",
                *(older, chunks, self._source.name, self._time_to_embed(chunks)),
            )
        # Close before anything is fetched. Opening a changed document waits until its new version is committed.
        revisions = {path: row.revision for path, row in self._current.items()}
        self._update_groups(groups_after_listing(self._groups, refs, revisions))
        self._update_tags()
        wanted = self._examine(refs, retry, turns)
        if shared is None:
            self._prepare_here(wanted, connector, turns)
        else:
            self._prepare_shared(wanted, shared)

        missing = missing_paths(self._current, refs, self._skipped)
        error = None
        if not allow_mass_delete:
            lost = lost_documents(missing, self._current, self._baseline, self._new_digests, self._skipped, unfiltered)
            if lost is not None:
                paths, total = lost
                examples = ", ".join(self._uri(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
                error = MassDeleteError(
                    f"The source {self._source.name!r} has lost {len(paths)} of its {total} documents since the last "
                    f"sync: {examples}. New and changed documents were added; nothing was removed.",
                    "If the documents are meant to be removed, run the command again with --allow-mass-delete.",
                )
        self._flush([] if error else missing)
        self._update_groups(groups_after_listing(self._groups, refs, self._new_revisions))
        # Delete the stored outcomes of documents that are no longer listed or that were read.
        outcomes = [*self._failures, *self._skips]
        remaining = self._kept_paths.union(outcome.path for outcome in outcomes)
        unlisted = tuple(path_prefix(ref.path) for ref in refs if ref.error is not None)
        stored = (*self._stored_failures, *self._stored_skips)
        cleared = [path for path in stored if path not in remaining and not path.startswith(unlisted)]
        if self._new_revisions or outcomes or cleared:
            self._catalog.note(self._source.id, revisions=self._new_revisions, failed=outcomes, cleared=cleared)
        if shared is not None:
            shared.finish(self._catalog, self._source.id)
        if error:
            raise error
        if self._added or self._updated or len(self._baseline) < len(self._current):
            record_complete_sync(self._catalog, self._source.id)
        return self.report

    @property
    def report(self) -> SyncReport:
        """The result so far."""
        failures = [(failure, failure.attempts > 1) for failure in self._failures]
        failures += [(failure, True) for failure in self._kept_failures]
        return SyncReport(
            added=self._added,
            updated=self._updated,
            removed=self._removed,
            unchanged=self._unchanged,
            chunks=self._chunks,
            seconds=round(time.monotonic() - self._start, 3),
            skipped=tuple(Skipped(self._uri(path), reason) for path, reason in sorted(self._skipped.items())),
            failed=tuple(
                Failed(self._uri(f.path), f.stage, f.error, f.attempts, f.path in self._current, known)
                for f, known in sorted(failures, key=lambda failure: failure[0].path)
            ),
        )

    def _examine(self, refs: Sequence[Ref], retry: bool, turns: Turns | None) -> Iterator[Ref]:
        """The entries that are new or changed. The outcome of all others is recorded."""
        for ref in refs:
            self._examined += 1
            if self._must_fetch(ref, retry, turns):
                self._waiting += 1
                yield ref
            else:
                self._report_progress()

    def _must_fetch(self, ref: Ref, retry: bool, turns: Turns | None) -> bool:
        """Find out whether an entry is new or changed; record its outcome if not."""
        known = self._current.get(ref.path)
        if self._catalog.database.shared and len(self._uri(ref.path).encode()) > _MAX_URI_BYTES:
            self._skipped[ref.path] = f"its uri has more than {_MAX_URI_BYTES:,} bytes, which PostgreSQL cannot index"
            return False
        if ref.error is not None:
            self._fail(ref, "list", ref.error)
            return False
        if ref.skip is not None:
            self._skipped[ref.path] = ref.skip
            return False
        if known is not None and known.revision == ref.revision and self._has_recipe(ref.path):
            self._count_unchanged(ref.path)
            return False
        if not retry:  # an entry that was skipped at this revision, or failed at it and must wait, keeps its outcome
            skip, failure = self._stored_skips.get(ref.path), self._stored_failures.get(ref.path)
            if skip is not None and self._same_input(skip, ref):
                self._skipped[ref.path] = skip.error
                self._kept_paths.add(ref.path)
                return False
            if failure is not None and self._same_input(failure, ref):
                failed_now = turns is not None and turns.has_taken(ref)
                if failed_now or must_wait(failure.attempts, failure.at):
                    self._kept_failures.append(failure)
                    self._kept_paths.add(ref.path)
                    return False
        if "://" in ref.path and known is None:
            rows = self._catalog.documents(None, documents.c.uri == ref.path)
            if rows:
                reason = f"the document is already in the collection, from the source {rows[0].source!r}"
                self._fail(ref, "list", reason)
                return False
        return True

    def _prepare_here(self, wanted: Iterable[Ref], connector: Connector, turns: Turns | None) -> None:
        try:
            if turns is not None:
                wanted = turns.begin_slice(wanted)
            for ref in wanted:
                if turns is not None and not turns.take(ref):
                    self._kept_paths.add(ref.path)
                    continue
                size = self._fetch(ref, connector)
                if turns is not None:
                    turns.count(size)
                self._waiting -= 1
                self._report_progress()
                while self._queue.ready or self._queue.full:
                    self._take_parsed()
            while self._queue:
                self._take_parsed()
        finally:
            self._queue.cancel()

    def _prepare_shared(self, wanted: Iterable[Ref], shared: SharedWork) -> None:
        """Let workers prepare the documents; record them in the order in which they are ready."""
        self._shared = shared
        entries = {ref.path: (ref, self._known_digest(ref.path)) for ref in wanted}
        job = job_of(self._choice, self._chunk_settings, self._contract_id, shared.max_bytes, self._environment)
        for outcomes in shared.outcomes(self._catalog, self._source.id, job, entries):
            for path, outcome in outcomes:
                self._waiting -= 1
                self._chunks += outcome.embedded
                self._record(entries[path][0], outcome)
            if not outcomes and self._window:
                self._flush()
            self._report_progress()

    def _fetch(self, ref: Ref, connector: Connector) -> int:
        """Fetch an entry, and queue it for parsing unless its content is the same. Returns its size in bytes."""
        blob, outcome = fetch(connector, ref, self._known_digest(ref.path))
        if blob is not None and outcome.kind == "fetched":
            self._queue.add(ref, outcome.digest, blob, self._uri(ref.path))
        else:
            self._record(ref, outcome)
        return 0 if blob is None else len(blob.data)

    def _known_digest(self, path: str) -> str | None:
        """The digest of the content for which nothing has to be parsed."""
        return self._current[path].digest if self._has_recipe(path) else None

    def _has_recipe(self, path: str) -> bool:
        known = self._stored_recipe(path)
        return known is not None and known == self._recipe_of(path, kept=self._keep_recipe)

    def _stored_recipe(self, path: str) -> str | None:
        known = self._current.get(path)
        return None if known is None else known.recipe

    def _same_input(self, row: Any, ref: Ref) -> bool:
        return bool(row.revision == ref.revision and row.recipe == self._environment)

    @cached_property
    def _environment(self) -> str:
        return environment_hash(f"{self._recipe} {self._choice.description}")

    def _time_to_embed(self, chunks: int) -> str:
        """The expected duration in words, if the speed of the embedder on this machine is known."""
        speed = measured_speed(str(self._catalog.at().contract.get("weights")))
        return f" and takes about {math.ceil(chunks / speed / 60)} min" if speed else ""

    def _take_parsed(self) -> None:
        """Record the outcome of the first document of the queue."""
        while not self._queue.wait(PARSE_WAIT_SECONDS):
            if self._window:
                self._flush()
            self._report_progress()
        pending = self._queue.pop()
        self._record(pending.ref, split(pending, self._choice, self._embedder, self._chunk_settings))

    def _record(self, ref: Ref, outcome: Outcome) -> None:
        """Record what became of an entry. A document joins the window, which is committed if it is full."""
        if outcome.kind == "unchanged":
            self._count_unchanged(ref.path)
            self._new_revisions[ref.path] = ref.revision
        elif outcome.kind == "ignored":  # not stored: it can depend on the connector's options
            self._skipped[ref.path] = outcome.reason
        elif outcome.kind == "skip":
            self._skipped[ref.path] = outcome.reason
            self._skips.append(skip_record(ref.path, outcome.reason, ref.revision, self._environment))
        elif outcome.document is None:
            self._fail(ref, outcome.kind, outcome.reason)
        else:
            self._add(ref, outcome, outcome.document)

    def _add(self, ref: Ref, outcome: Outcome, document: Document) -> None:
        hashes = [text_hash(chunk.embedded_text) for chunk in outcome.chunks]
        recipe = self._with_tags(with_parsers(self._recipe, outcome.parser, outcome.fallback), ref.path)
        tagged = replace(document, metadata={**document.metadata, **tags_of(recipe)})
        self._window.append(
            NewDocument(ref.path, ref.revision, outcome.digest, recipe, tagged, outcome.chunks, hashes, ref.allow)
        )
        self._window_hashes.update(hashes)
        known = self._current.get(ref.path)
        if known is None or known.digest != outcome.digest:
            self._new_digests[outcome.digest] += 1
        size = sum(len(data) for new in self._window for data in new.document.images.values())
        full = len(self._window_hashes) >= WINDOW or len(self._window) >= MAX_COMMIT_DOCUMENTS
        if full or size >= _MAX_COMMIT_IMAGES:
            self._flush()

    def _flush(self, removed: Sequence[str] = ()) -> None:
        """Embed and commit the window, and remove documents."""
        chunks_before = self._chunks

        def embedded(progress: Progress) -> None:
            self._chunks = chunks_before + progress.done
            self._report_progress(waiting=(progress.total or 0) - progress.done)

        texts = {
            key: chunk.embedded_text for new in self._window for chunk, key in zip(new.chunks, new.hashes, strict=True)
        }
        embed_missing(self._catalog, self._contract_id, self._embedder, texts, embedded)
        if self._window or removed:
            self._catalog.commit(self._source, self._window, removed)
            if self._shared is not None:
                self._shared.committed(self._catalog, self._source.id, [new.path for new in self._window])
            self._after_commit()
        self._removed = len(removed)
        updated = sum(new.path in self._current for new in self._window)
        self._updated += updated
        self._added += len(self._window) - updated
        self._window, self._window_hashes = [], set()
        self._report_progress()

    def _report_progress(self, waiting: int | None = None) -> None:
        done = self._examined - self._waiting - len(self._window) - len(self._queue)
        waiting = len(self._window_hashes) if waiting is None else waiting
        figures = {"chunks": self._chunks, "waiting": waiting}
        if self._shared is not None:
            figures["workers"] = self._shared.workers
        self._progress(Progress("ingest", done, self._listed, figures))

    def _update_groups(self, groups: Mapping[str, Groups]) -> None:
        changed = changed_groups(self._groups, groups)
        if changed:
            self._catalog.restrict(self._source, changed)
            self._groups.update(changed)

    def _update_tags(self) -> None:
        """Update the tags of documents that need not be parsed for that."""
        changes = {}
        for path, row in self._current.items():
            recipe = self._recipe_of(path, kept=self._keep_recipe)
            if recipe != row.recipe and differs_by_tags_only(row.recipe, recipe):
                changes[path] = tags_of(recipe), recipe
        if changes:
            self._catalog.retag(self._source, changes)
            self._current = self._catalog.current(self._source.id)
            self._retagged.update(changes)

    def _recipe_of(self, path: str, *, kept: bool) -> str:
        """The recipe of a known document; if it is `kept`, with the versions that prepared it."""
        row = self._current[path]
        if kept:
            return self._with_tags(with_versions_of(self._recipe, row.recipe), path)
        fallback = fallback_version(row.recipe, row.media_type, self._choice)
        return self._with_tags(with_parsers(self._recipe, self._choice.version(row.media_type, path), fallback), path)

    def _with_tags(self, recipe: str, path: str) -> str:
        return document_recipe(recipe, self._uri(path), self._rules, self._stored_recipe(path) or "")

    def _count_unchanged(self, path: str) -> None:
        self._updated += path in self._retagged
        self._unchanged += path not in self._retagged

    def _fail(self, ref: Ref, stage: str, error: str) -> None:
        previous = self._stored_failures.get(ref.path)
        attempts = previous.attempts + 1 if previous is not None and self._same_input(previous, ref) else 1
        self._failures.append(Failure(ref.path, stage, error, ref.revision, self._environment, attempts))
        _log.info("%s failed at %s: %s", self._uri(ref.path), stage, error)

    def _uri(self, path: str) -> str:
        return document_uri(self._source.name, path)


def list_refs(connector: Connector) -> list[Ref]:
    """The complete listing of a source. Raises SourceError if it breaks off or lists a path twice."""
    refs: dict[str, Ref] = {}
    for ref in connector.refs():
        if ref.path in refs:
            raise SourceError(f"The source lists {ref.path!r} twice.", "Nothing was changed.")
        refs[ref.path] = ref
    return list(refs.values())
