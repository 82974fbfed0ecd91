"""Sync of one source: the collection becomes equal to it.

    examine   refs ─→ known revision and recipe? ──→ unchanged
                   └→ new or changed ─→ wanted
    prepare   wanted ─→ fetch ─→ known content? ───→ unchanged, with a new revision
                              └→ parse ─→ split
    commit    up to 500 documents ─→ embed what has no vector yet ─→ commit

The next documents are parsed while these are embedded (`preparation`, or on a cluster `ray_executor`).

A new version of a document replaces the old one when it is committed. Documents that left the source are removed by the
last commit, after a complete listing and only if the deletion guard agrees. Access groups are updated before anything
is fetched. A document that cannot be fetched or parsed fails alone and is tried again later.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ragfm.core.access_groups import changed_groups, groups_after_listing, path_prefix
from ragfm.core.errors import MassDeleteError, SourceError
from ragfm.core.progress import Progress, ignore_progress
from ragfm.ingestion.deletion_guard import lost_documents, missing_paths, paths_at_last_sync, record_complete_sync
from ragfm.ingestion.document_tags import differs_by_tags_only, tags_of
from ragfm.ingestion.embedding import MAX_COMMIT_TEXTS, embed_missing
from ragfm.ingestion.ingest_report import SKIP_STAGE, Failed, Skipped, SyncReport, Unmapped, document_uri
from ragfm.ingestion.preparation import Entry, Outcome, prepare
from ragfm.ingestion.recipe import SourceRecipes, older_documents
from ragfm.ingestion.unmapped_identities import record_unmapped
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
    from ragfm.ingestion.ray_executor import RayExecutor
    from ragfm.ingestion.turns import Turns
    from ragfm.store.catalog import Source

MAX_COMMIT_DOCUMENTS = 500
"""Maximum number of documents in one commit."""
RETRY_DELAYS = (0, 60, 300, 1_800, 7_200, 86_400)
"""Seconds to wait after the first, second, … failure of a document; the last value is used for all later ones."""
_MAX_COMMIT_IMAGES = 64 << 20  # bytes
_MAX_URI_BYTES = 2_500  # on PostgreSQL, whose indexes take up to 2,704

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
        self._catalog, self._source, self._embedder = catalog, source, embedder
        self._chunk_settings, self._choice, self._keep_recipe = chunk_settings, parser_choice, keep_recipe
        self._progress, self._after_commit = progress or ignore_progress, after_commit
        self._start = time.monotonic()

        newest = catalog.at()
        self._contract_id = newest.contract_id
        self._recipes = SourceRecipes(source, newest.contract, chunk_settings, parser_choice, rules, keep=keep_recipe)
        self._current = catalog.current(source.id)
        self._groups = {path: row.allow for path, row in self._current.items()}
        self._stored = {row.path: row for row in catalog.failures(source.id)}  # failures and skips of earlier syncs

        # What became of the entries so far, by their paths.
        self._counts: Counter[str] = Counter()  # added, updated, removed and unchanged documents; chunks embedded
        self._skipped: dict[str, str] = {}  # reasons
        self._outcomes: list[Failure] = []  # failures and skips of this sync, to store
        self._kept_failures: list[Any] = []  # stored ones of documents that are not tried again yet
        self._kept_paths: set[str] = set()  # whose stored outcome remains
        self._new_revisions: dict[str, str] = {}  # of documents with the same content
        self._new_digests: Counter[str] = Counter()  # of new and changed documents
        self._retagged: set[str] = set()  # documents whose tags changed while their text did not

        self._unmapped: Sequence[str] = ()  # identities without a group
        self._listed = self._remaining = 0  # entries, and those of them that are wanted and have no outcome yet
        self._pending: list[NewDocument] = []
        self._pending_texts: dict[bytes, str] = {}  # by hash

    def run(
        self,
        connector: Connector,
        refs: Sequence[Ref],
        *,
        retry: bool = False,
        allow_mass_delete: bool = False,
        unfiltered: Callable[[], Sequence[Ref]] | None = None,
        turns: Turns | None = None,
        ray: RayExecutor | None = None,
    ) -> SyncReport:
        """Sync the source with `refs`, its complete listing.

        `retry` tries all failed documents at once. `unfiltered` lists the source without include and exclude patterns,
        for the deletion guard. With `turns`, only a slice of the new and changed documents is fetched; the others
        keep their state. With `ray`, a cluster prepares the documents. Raises MassDeleteError if over half of the
        documents are lost, unless allowed.
        """
        older, chunks = older_documents(self._catalog, self._choice, self._source.id)
        if older and not self._keep_recipe:
            _log.warning(
                "%d documents with %d chunks of %s were prepared by an older version of ragfm or a different parser: "
                "they are parsed and embedded again, which improves search. To postpone this, use --keep-recipe.",
                *(older, chunks, self._source.name),
            )
        self._unmapped = record_unmapped(self._catalog, self._source.id, connector)
        baseline = paths_at_last_sync(self._catalog, self._source.id, self._current)
        wanted = self._examine(refs, retry, turns)
        self._prepare(connector, wanted, turns, ray)
        missing = missing_paths(self._current, refs, self._skipped)
        lost = None
        if not allow_mass_delete:
            lost = lost_documents(missing, self._current, baseline, self._new_digests, self._skipped, unfiltered)
        self._commit([] if lost else missing)
        self._store_outcomes(refs)
        if lost:
            paths, total = lost
            examples = ", ".join(self._uri(path) for path in paths[:3]) + (", …" if len(paths) > 3 else "")
            raise MassDeleteError(
                f"The source {self._source.name!r} has lost {len(paths)} of its {total} documents since the last sync: "
                f"{examples}. New and changed documents were added; nothing was removed.",
                "If the documents are meant to be removed, run the command again with --allow-mass-delete.",
            )
        if self._counts["added"] or self._counts["updated"] or len(baseline) < len(self._current):
            record_complete_sync(self._catalog, self._source.id)
        return self.report

    @property
    def report(self) -> SyncReport:
        """The result so far."""
        failures: list[tuple[Any, bool]] = [(row, True) for row in self._kept_failures]
        failures += [(failed, failed.attempts > 1) for failed in self._outcomes if failed.stage != SKIP_STAGE]
        return SyncReport(
            **self._counts,
            seconds=round(time.monotonic() - self._start, 3),
            skipped=tuple(Skipped(self._uri(path), reason) for path, reason in sorted(self._skipped.items())),
            failed=tuple(
                Failed(self._uri(f.path), f.stage, f.error, f.attempts, f.path in self._current, known)
                for f, known in sorted(failures, key=lambda failure: failure[0].path)
            ),
            unmapped=tuple(Unmapped(self._source.name, identity) for identity in self._unmapped),
        )

    # --- Examine -------------------------------------------------------------------------------------------------

    def _examine(self, refs: Sequence[Ref], retry: bool, turns: Turns | None) -> list[Entry]:
        """The entries that are new or changed, after groups and tags were updated. All others have an outcome."""
        # Close before anything is fetched. Opening a changed document waits until its new version is committed.
        revisions = {path: row.revision for path, row in self._current.items()}
        self._update_groups(groups_after_listing(self._groups, refs, revisions))
        changes, up_to_date = {}, set()
        for path, row in self._current.items():
            recipe = self._recipes.of_known(row)
            if recipe == row.recipe:
                up_to_date.add(path)
            elif differs_by_tags_only(row.recipe, recipe):
                changes[path] = tags_of(recipe), recipe
        if changes:
            self._catalog.retag(self._source, changes)
            self._current = self._catalog.current(self._source.id)
            self._retagged.update(changes)
            up_to_date |= changes.keys()

        wanted: list[Ref] = []
        for ref in refs:
            known, stored = self._current.get(ref.path), self._stored.get(ref.path)
            if stored is not None and (retry or not self._same_input(stored, ref)):
                stored = None
            if self._catalog.database.shared and len(self._uri(ref.path).encode()) > _MAX_URI_BYTES:
                reason = f"its uri has more than {_MAX_URI_BYTES:,} bytes, which PostgreSQL cannot index"
                self._skipped[ref.path] = reason
            elif ref.error is not None:
                self._fail(ref, "list", ref.error)
            elif ref.skip is not None:
                self._skipped[ref.path] = ref.skip
            elif known is not None and known.revision == ref.revision and ref.path in up_to_date:
                self._count_unchanged(ref.path)
            elif stored is not None and stored.stage == SKIP_STAGE:
                self._skipped[ref.path] = stored.error
                self._kept_paths.add(ref.path)
            elif stored is not None and ((turns is not None and turns.has_taken(ref)) or _must_wait(stored)):
                self._kept_failures.append(stored)
                self._kept_paths.add(ref.path)
            elif (
                "://" in ref.path
                and known is None
                and (rows := self._catalog.documents(None, documents.c.uri == ref.path))
            ):
                reason = f"the document is already in the collection, from the source {rows[0].source!r}"
                self._fail(ref, "list", reason)
            else:
                wanted.append(ref)
        self._listed, self._remaining = len(refs), len(wanted)
        self._report_progress()
        if turns is not None:
            wanted = turns.begin_slice(wanted)
        return [(ref, self._current[ref.path].digest if ref.path in up_to_date else None) for ref in wanted]

    def _count_unchanged(self, path: str) -> None:
        self._counts["updated" if path in self._retagged else "unchanged"] += 1

    def _fail(self, ref: Ref, stage: str, error: str) -> None:
        stored = self._stored.get(ref.path)
        attempts = 1
        if stored is not None and stored.stage != SKIP_STAGE and self._same_input(stored, ref):
            attempts += stored.attempts
        environment = self._recipes.environment
        self._outcomes.append(Failure(ref.path, stage, error, ref.revision, environment, attempts))
        _log.info("%s failed at %s: %s", self._uri(ref.path), stage, error)

    def _same_input(self, stored: Any, ref: Ref) -> bool:
        return bool(stored.revision == ref.revision and stored.recipe == self._recipes.environment)

    # --- Prepare -------------------------------------------------------------------------------------------------

    def _prepare(
        self, connector: Connector, entries: Sequence[Entry], turns: Turns | None, ray: RayExecutor | None
    ) -> None:
        """Prepare entries, and record what became of each. Documents are committed together, see `_add_pending`."""
        choice, chunk_settings = self._choice, self._chunk_settings
        if ray is not None:
            prepared = ray.prepare(self._source, choice, chunk_settings, self._contract_id, entries)
        else:
            prepared = prepare(connector, choice, chunk_settings, self._embedder, entries, turns)
        with closing(prepared):
            for item in prepared:
                if item is None:  # it takes long: embed what there is meanwhile
                    if self._pending:
                        self._commit()
                    self._report_progress()
                    continue
                ref, outcome = item
                self._remaining -= 1
                self._counts["chunks"] += outcome.embedded
                if outcome.kind == "unchanged":
                    self._count_unchanged(ref.path)
                    self._new_revisions[ref.path] = ref.revision
                elif outcome.kind == "ignored":  # not stored: it can depend on the connector's options
                    self._skipped[ref.path] = outcome.reason
                elif outcome.kind == "skip":
                    self._skipped[ref.path] = outcome.reason
                    environment = self._recipes.environment
                    self._outcomes.append(Failure(ref.path, SKIP_STAGE, outcome.reason, ref.revision, environment))
                elif outcome.document is None:
                    self._fail(ref, outcome.kind, outcome.reason)
                else:
                    self._add_pending(ref, outcome, outcome.document)
                self._report_progress()
        if turns is not None:
            self._kept_paths.update(ref.path for ref in turns.postponed)

    def _add_pending(self, ref: Ref, outcome: Outcome, parsed: Document) -> None:
        recipe = self._recipes.of_parsed(ref.path, outcome.parser, outcome.fallback, outcome.written)
        document = replace(parsed, uri=self._uri(ref.path), metadata={**parsed.metadata, **tags_of(recipe)})
        hashes = [text_hash(chunk.embedded_text) for chunk in outcome.chunks]
        self._pending.append(
            NewDocument(ref.path, ref.revision, outcome.digest, recipe, document, outcome.chunks, hashes, ref.allow)
        )
        self._pending_texts.update(zip(hashes, (chunk.embedded_text for chunk in outcome.chunks), strict=True))
        known = self._current.get(ref.path)
        if known is None or known.digest != outcome.digest:
            self._new_digests[outcome.digest] += 1
        image_bytes = sum(len(data) for new in self._pending for data in new.document.images.values())
        full = len(self._pending_texts) >= MAX_COMMIT_TEXTS or len(self._pending) >= MAX_COMMIT_DOCUMENTS
        if full or image_bytes >= _MAX_COMMIT_IMAGES:
            self._commit()

    # --- Commit --------------------------------------------------------------------------------------------------

    def _commit(self, removed: Sequence[str] = ()) -> None:
        """Embed and commit the pending documents, and remove others."""
        chunks_before = self._counts["chunks"]

        def embedded(progress: Progress) -> None:
            self._counts["chunks"] = chunks_before + progress.done
            self._report_progress(waiting=(progress.total or 0) - progress.done)

        embed_missing(self._catalog, self._contract_id, self._embedder, self._pending_texts, embedded)
        if self._pending or removed:
            self._catalog.commit(self._source, self._pending, removed)
            self._after_commit()
        updated = sum(new.path in self._current for new in self._pending)
        self._counts.update(updated=updated, added=len(self._pending) - updated, removed=len(removed))
        self._pending, self._pending_texts = [], {}
        self._report_progress()

    def _store_outcomes(self, refs: Sequence[Ref]) -> None:
        """Store revisions, groups and failures; delete outcomes of documents that were read or are no longer listed."""
        self._update_groups(groups_after_listing(self._groups, refs, self._new_revisions))
        remaining = self._kept_paths.union(outcome.path for outcome in self._outcomes)
        unlisted = tuple(path_prefix(ref.path) for ref in refs if ref.error is not None)
        cleared = [path for path in self._stored if path not in remaining and not path.startswith(unlisted)]
        if self._new_revisions or self._outcomes or cleared:
            self._catalog.note(self._source.id, revisions=self._new_revisions, failed=self._outcomes, cleared=cleared)

    def _update_groups(self, groups: Mapping[str, Groups]) -> None:
        changed = changed_groups(self._groups, groups)
        if changed:
            self._catalog.restrict(self._source, changed)
            self._groups.update(changed)

    def _report_progress(self, waiting: int | None = None) -> None:
        done = self._listed - self._remaining - len(self._pending)
        waiting = len(self._pending_texts) if waiting is None else waiting
        figures = {"chunks": self._counts["chunks"], "waiting": waiting}
        self._progress(Progress("ingest", done, self._listed, figures))

    def _uri(self, path: str) -> str:
        return document_uri(self._source.name, path)


def _must_wait(stored: Any) -> bool:
    """Whether it is too early to retry a document that failed."""
    elapsed = datetime.now(UTC) - datetime.fromisoformat(stored.at)
    # A time in the future means that the clock was set back by an unknown amount.
    return timedelta(0) <= elapsed < timedelta(seconds=RETRY_DELAYS[min(stored.attempts, len(RETRY_DELAYS)) - 1])


def list_refs(connector: Connector) -> list[Ref]:
    """The complete listing of a source. Raises SourceError if it breaks off or lists a path twice."""
    refs: dict[str, Ref] = {}
    for ref in connector.refs():
        if ref.path in refs:
            raise SourceError(f"The source lists {ref.path!r} twice.", "Nothing was changed.")
        refs[ref.path] = ref
    return list(refs.values())
