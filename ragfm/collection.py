"""Collections: documents, chunks and vectors in a folder. The public API of the store."""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast

from ragfm.core.errors import CollectionError, CollectionNotFound, ModelNotFoundError, UnsupportedError
from ragfm.core.notebook import Heading, as_html, as_markdown
from ragfm.core.table_rows import TableRow
from ragfm.core.text import counted
from ragfm.core.tracing import span
from ragfm.core.types import MAX_HOPS, Document, HitList, Scalar

if TYPE_CHECKING:
    from ragfm.core.config import Settings
    from ragfm.core.notebook import Block
    from ragfm.core.progress import ProgressCallback
    from ragfm.core.types import Box, Embedder, Hit, ImagePart, Reranker, SearchStep
    from ragfm.generation.answer_log import AnswerLog
    from ragfm.ingestion.ingest_report import Failed, SyncReport
    from ragfm.ingestion.reembed import ReembedReport
    from ragfm.maintenance.backup import BackupReport
    from ragfm.maintenance.copy import CopyReport
    from ragfm.maintenance.export import ExportReport
    from ragfm.maintenance.removal import RemoveReport
    from ragfm.maintenance.restore import RestoreReport
    from ragfm.maintenance.verification import VerifyReport
    from ragfm.retrieval.search import Mode, RankedChunks
    from ragfm.store.catalog import Catalog
    from ragfm.store.collection_store import Store
    from ragfm.store.compaction import CompactReport
    from ragfm.store.display_names import DisplayNames
    from ragfm.store.postgres import PostgresDatabase
    from ragfm.store.search_backend import SearchBackend

__all__ = ["Collection", "DocumentInfo", "Status"]
T = TypeVar("T")
_TABLE_CHUNKS = 4  # on each side of a hit
_PAUSE_SECONDS = 0.1  # between two checks for a commit


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A document of a collection, without its text; `characters` is the length of the text.

    `name` is the display name: a short form of the uri.
    """

    uri: str
    source: str
    media_type: str
    metadata: Mapping[str, Scalar]
    chunks: int
    characters: int
    digest: str
    name: str


@dataclass(frozen=True, slots=True)
class Status:
    """Counts of a collection, and the state of its parts.

    `older` documents were prepared by an older version of ragfm or another parser; the next sync parses and embeds them
    again. `parsers` has the formats of the documents, with the parsers that read them now. `images` are the pictures of
    figures.
    """

    documents: int
    chunks: int
    generation: int
    failed: tuple[Failed, ...]
    embedder: Mapping[str, Scalar]
    indexes: tuple[Mapping[str, Any], ...]
    sources: tuple[Mapping[str, Any], ...]
    older: int = 0
    parsers: tuple[Mapping[str, Any], ...] = ()
    images: int = 0
    image_bytes: int = 0


class Collection:
    """A handle on a collection. Any number of processes may read while one writes.

    `Collection.open(path)` is the owner's handle and sees everything; `as_groups` returns a restricted handle.
    Thread-safe. A long-lived handle sees the commits of other processes.
    """

    def __init__(self, store: Store, groups: frozenset[str] | None = None, oldest: int | None = None) -> None:
        if isinstance(store, str | Path):
            raise TypeError(f"a collection is opened with Collection.open({str(store)!r})")
        self._store = store
        self._groups = groups
        self._oldest = oldest

    @classmethod
    def open(
        cls,
        path: str | Path = ".ragfm",
        *,
        settings: Settings | None = None,
        embedder: str | Embedder | None = None,
        reranker: str | Reranker | None = None,
    ) -> Collection:
        """Open a collection by its folder, or by an address `postgresql://user@host/database?collection=NAME`.

        Nothing is read or created yet: the first `sync` creates the collection. `settings` default to `ragfm.toml` next
        to the folder; on PostgreSQL, to the file that `RAGFM_CONFIG` names, or to that of the working directory.
        `embedder` (a name or an object) defaults to the one that the collection was created with, `reranker` to that of
        the settings. All methods but `sync` raise CollectionNotFound if there is no collection.
        """
        from ragfm.retrieval.fusion_weight import warn_of_unknown_language
        from ragfm.store.collection_store import Store, open_database

        store = Store(open_database(path), settings, embedder, reranker)
        store.language_changed = lambda generation, language: warn_of_unknown_language(
            store.settings.search, generation.contract, language
        )
        return cls(store)

    @property
    def store(self) -> Store:
        """The store, for maintenance and servers. Raises UnsupportedError for a restricted handle."""
        self._owner()
        return self._store

    @property
    def path(self) -> Path:
        """The collection's folder; for one on PostgreSQL, its folder on this machine."""
        return self._store.folder

    @property
    def location(self) -> str:
        """The collection's folder, or its address without a password."""
        return self._store.database.location

    @property
    def settings_file(self) -> Path:
        """Where the settings of the collection are read from; the file need not exist."""
        return self._store.database.settings_file

    @property
    def settings(self) -> Settings:
        """The settings of this handle."""
        return self._store.settings

    @property
    def answer_log(self) -> AnswerLog:
        """The log of questions and answers: a file next to the folder, or a table of the database."""
        from ragfm.generation.answer_log import AnswerLog
        from ragfm.generation.log_storage import LogTable

        if self._store.database.shared:
            return AnswerLog(LogTable(cast("PostgresDatabase", self._store.database)))
        return AnswerLog.for_collection(self.path)

    @property
    def id(self) -> str:
        """The collection's own id, which stays when its documents change."""
        return self._store.read_catalog(lambda catalog: catalog.collection_id())

    @property
    def contract(self) -> Mapping[str, Scalar]:
        """The embedding contract of the newest generation."""
        return self._read(lambda snapshot: snapshot.generation.contract)

    @property
    def language(self) -> str | None:
        """The language of the keyword index, as ISO 639-1; None if there are no texts."""
        return self._read(lambda snapshot: snapshot.language if len(snapshot) else None)

    @property
    def state(self) -> str:
        """Changes whenever documents or access rights do: while it is equal, searches find the same."""
        return self._read(lambda snapshot: f"{snapshot.generation.digest} {self._store.catalog.at().digest}")

    @property
    def commit(self) -> str:
        """The newest commit, as its generation and digest. Pass it to `wait_for` on another machine after a `sync`."""
        newest = self._store.read_catalog(lambda catalog: catalog.at())
        return f"{newest.id}-{newest.digest}"

    @property
    def groups(self) -> frozenset[str] | None:
        """The groups of a restricted handle; None for the owner's, which sees everything."""
        return self._groups

    @property
    def embedder(self) -> Embedder:
        """The embedder of the newest generation."""
        return self._read(lambda snapshot: self._store.embedder(snapshot.generation))

    def as_groups(self, groups: Set[str], *, oldest: int | None = None) -> Collection:
        """A read-only handle that sees public documents, and restricted ones that one of `groups` may read.

        A restricted handle can only be restricted further. With `oldest`, a search does not wait for the newest
        generation, but uses one that is ready, this one or later; documents that have been closed to the groups since
        are not found. `Store.refresh` prepares the newest one.
        """
        names = _names(groups, "groups")
        oldest = self._oldest if oldest is None else oldest
        return Collection(self._store, names if self._groups is None else self._groups & names, oldest)

    def sync(
        self,
        *sources: str | Path,
        name: str | None = None,
        connector: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        tags: Mapping[str, Scalar] | None = None,
        allow: Sequence[str] | None = None,
        retry: bool = False,
        allow_mass_delete: bool = False,
        keep_recipe: bool = False,
        executor: Literal["local", "ray"] = "local",
        progress: ProgressCallback | None = None,
    ) -> SyncReport:
        """Make the collection equal to its sources. Only changes are parsed and embedded.

        Args:
            sources: Folders, files, globs or URLs. Default: all sources of `ragfm.toml` and of earlier syncs; sources
                that cannot be listed are then reported as failed.
            name: Prefix of the documents' uris, for one source.
            connector: Connector plugin. This and the following options keep their last values if they are None.
            include: Only paths that match one of these patterns.
            exclude: No paths that match one of these patterns.
            options: Options of the connector.
            tags: Metadata of all documents, for filters.
            allow: Groups that may see the documents.
            retry: Retry failed documents at once. Otherwise a failed document is retried when it or its parser has
                changed, or after a delay.
            allow_mass_delete: Allow the removal of more than half of a source's documents, which otherwise raises
                MassDeleteError and removes nothing.
            keep_recipe: Leave documents that an older version of ragfm prepared as they are, unless they changed.
                Otherwise they are parsed and embedded again.
            executor: "ray" fetches, parses and embeds documents on the Ray cluster of the environment variable
                RAY_ADDRESS, else of this machine, for a collection on PostgreSQL. This process lists and commits.
            progress: Called with the stage "ingest".

        Raises SourceError, EmbedderMismatchError, CollectionReadOnlyError.

        """
        from ragfm.core.text import check_characters
        from ragfm.ingestion.source_request import SourceEntry, resolve_source, stored_sources
        from ragfm.ingestion.sources import sync_sources

        self._owner()
        for what, names in (("include", include), ("exclude", exclude), ("allow", allow)):
            if names is not None:
                _names(names, what)
        for group in allow or ():
            check_characters("group", group)
        _check_tags(tags or {})
        settings = {
            "connector": connector,
            "include": include,
            "exclude": exclude,
            "options": options,
            "tags": tags,
            "allow": allow,
        }
        # A wrong source fails here, before the collection is created.
        stored = stored_sources(self._store)
        entries = [SourceEntry(str(source), name, settings) for source in sources]
        requests = [resolve_source(self._store, entry, stored) for entry in entries]
        return sync_sources(
            self._store,
            requests,
            progress,
            retry=retry,
            allow_mass_delete=allow_mass_delete,
            keep_recipe=keep_recipe,
            executor=executor,
        )

    def search(
        self,
        query: str,
        k: int | None = None,
        *,
        mode: Mode = "hybrid",
        filter: str | None = None,
        rerank: str | None = None,
        hops: int = 1,
        record: Callable[[SearchStep], None] = lambda _: None,
    ) -> list[Hit]:
        """The `k` best chunks for a query, best first.

        `dense` ranks by the cosine of embeddings, `keyword` by BM25, `hybrid` by both. A reranker reorders the best
        hits: `rerank` is its name, `none`, or `auto` for the judge of `ask` where query and documents are in
        English; by default the one that is configured. `auto` prefers the one that is configured, too.

        With 2 `hops`, names in the best hits are searched for as well, and the hits are not reranked. `record` is
        called for each search (docs/retrieval.md).

        `filter` is an expression over metadata such as `year >= 2024 and team in (hr, legal)`. It is applied inside the
        search, so `k` hits are found if `k` match. Raises FilterError, TooLongError for a query over the embedder's
        window, UnsupportedError for invalid text.
        """
        from ragfm.core.text import check_characters, is_english
        from ragfm.core.types import SearchStep
        from ragfm.retrieval.multi_hop import find_linked
        from ragfm.retrieval.search import check_mode, find, rerank_hits
        from ragfm.store.views import language_of

        check_mode(mode)
        check_characters("query", query)
        k = self.settings.search.k if k is None else k
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if hops not in range(1, MAX_HOPS + 1):
            raise ValueError(f"hops is {hops!r}; it must be between 1 and {MAX_HOPS}")
        settings = self.settings.search
        if hops == 2:
            steps: list[SearchStep] = []

            def linked(**parts: Any) -> RankedChunks:
                steps.clear()  # of an attempt that compaction has overtaken
                catalog = self._catalog()
                return find_linked(
                    query, k, mode=mode, settings=settings, catalog=catalog, record=steps.append, **parts
                )

            with span("search", query=query, k=k, collection=lambda: self.id, mode=mode, hops=hops) as active:
                hits = self._hits(filter, linked)
                active.set(hits=len(hits))
            for step in steps:
                record(step)
            return HitList(hits)
        reranker = self._store.reranker(None if rerank == "auto" else rerank)
        asked = self.language if (own := language_of(query)) in (None, "en") else own
        if rerank == "auto" and reranker is None and is_english(query, asked):
            with suppress(ModelNotFoundError):
                reranker = self._store.reranker(f"judge:{self.settings.ask.ranking_judge}")
        wanted = max(k, settings.rerank_candidates) if reranker else k
        with span("search", query=query, k=wanted, collection=lambda: self.id, mode=mode, hops=1) as active:
            hits = self._hits(filter, partial(find, query, wanted, mode=mode, settings=settings))
            active.set(hits=len(hits))
        record(SearchStep(query, 1, len(hits)))
        if reranker is not None:
            hits = rerank_hits(query, hits, reranker, settings.rerank_weight)[:k]
        return HitList(hits)

    def wait_for(self, commit: str, seconds: float = 10.0) -> bool:
        """Whether searches see a `commit` within `seconds`. From then on, they never see an older state.

        A replica may not have it yet. Raises LostCommitError if another commit has its place, ValueError if it is not a
        commit.
        """
        parts = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]+)", commit)
        if parts is None:
            raise ValueError(f"{commit!r} is not a commit; `ragfm ingest --json` returns one")
        generation, digest = int(parts[1]), parts[2]

        def sees(snapshot: SearchBackend) -> bool:
            return self._store.catalog.has(generation, digest) and snapshot.generation.id >= generation

        deadline = time.monotonic() + seconds
        while not self._store.read(sees):
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def neighbours(self, hits: Sequence[Hit]) -> list[Hit]:
        """The chunks next to each hit that belong to its section and page: the one before it, then the one after it.

        The hits themselves are left out. A hit of a document that has changed since has none.
        """
        from ragfm.retrieval.search import load_hits, unscored

        def found(snapshot: SearchBackend) -> list[Hit]:
            catalog, at = self._catalog(), snapshot.generation.id
            known = {hit.chunk_id for hit in hits}
            near: list[Hit] = []
            for hit in hits:
                ids = [chunk for chunk in catalog.neighbours(at, hit.chunk_id) if chunk not in known]
                known.update(ids)
                section = (hit.uri, hit.page, hit.place, hit.headings)
                loaded = load_hits(unscored(ids), catalog, snapshot)
                near += [other for other in loaded if (other.uri, other.page, other.place, other.headings) == section]
            return near

        return self._read(found)

    def table_chunks(self, hits: Sequence[Hit]) -> list[Hit]:
        """The other chunks of the tables that hits are from, or introduce.

        For each hit the four chunks after it at most, then the four before it, nearest first. The hits themselves are
        left out. A hit of a document that has changed since has none.
        """
        from ragfm.retrieval.passages import table_around
        from ragfm.retrieval.search import load_hits, unscored

        def found(snapshot: SearchBackend) -> list[Hit]:
            catalog, at = self._catalog(), snapshot.generation.id
            known, ids = {hit.chunk_id for hit in hits}, list[int]()
            rows = catalog.chunk_rows(list(known))
            for hit in hits:
                _, _, document = rows.get(hit.chunk_id, (None, "", ""))
                if document[hit.start : hit.end] != hit.text:
                    continue
                start, end = table_around(document, hit.start, hit.end)
                after = catalog.chunks_within(at, hit.chunk_id, hit.end, end)[:_TABLE_CHUNKS]
                before = catalog.chunks_within(at, hit.chunk_id, start, hit.start)[-_TABLE_CHUNKS:]
                ids += [*after, *reversed(before)]
            return load_hits(unscored([chunk for chunk in dict.fromkeys(ids) if chunk not in known]), catalog, snapshot)

        return self._read(found)

    def _hits(self, filter: str | None, find: Callable[..., RankedChunks]) -> list[Hit]:
        from ragfm.retrieval.search import load_hits
        from ragfm.store.search_backend import Predicate
        from ragfm.store.tables import chunks

        conditions = self._conditions(filter)

        def hits(snapshot: SearchBackend) -> list[Hit]:
            catalog, where = self._catalog(), None
            at = now = snapshot.generation.id
            if conditions or self._groups is not None:
                now = self._store.catalog.generation()
                where = Predicate(filter, self._groups, now if self._oldest is None else at, tuple(conditions))
            if not len(snapshot) or (where is not None and not snapshot.matches(where)):
                return []  # no need to load an embedder
            embedder = partial(self._store.embedder, snapshot.generation)
            parts = {"snapshot": snapshot, "embedder": embedder}
            ranked = find(where=where, **parts)
            if where is not None and where.now < now:  # tags and access rights of the hits may have changed
                is_hit = chunks.c.id.in_(ranked.ids.tolist())
                if len(catalog.chunk_ids(at, is_hit, *conditions)) < len(ranked.ids):
                    ranked = find(where=replace(where, now=now), **parts)
            return load_hits(ranked, catalog, snapshot)

        return self._read(hits)

    def _read(self, action: Callable[[SearchBackend], T]) -> T:
        return self._store.read(action, self._oldest)

    def documents(
        self, filter: str | None = None, *, below: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[DocumentInfo]:
        """Documents in order of uri: up to `limit`, those below a path such as `docs/hr`, those after a uri."""
        from ragfm.store.tables import documents

        conditions = self._conditions(filter)
        if below is not None:
            folder = below.rstrip("/")
            conditions += [documents.c.uri > f"{folder}/", documents.c.uri < f"{folder}0"]  # 0 comes next after /
        if after is not None:
            conditions.append(documents.c.uri > after)

        def found(catalog: Catalog) -> list[DocumentInfo]:
            names = catalog.display_names()
            return [_info(row, names) for row in catalog.documents(None, *conditions, limit=limit)]

        return self._read_catalog(found)

    def info(self, uri: str) -> DocumentInfo:
        """One document without its text, by uri or display name. Raises CollectionError as `document` does."""
        return self._read_catalog(lambda catalog: _info(self._row(catalog, uri), catalog.display_names()))

    def metadata(self, uri: str) -> Mapping[str, Scalar]:
        """The metadata of a document by uri or display name, empty if there is none that this handle may see."""
        try:
            return self.info(uri).metadata
        except CollectionError:
            return {}

    def document(self, uri: str) -> Document:
        """One document with its text, by uri or display name, without the images of its figures; see `image`.

        Raises CollectionError if there is none that this handle may see.
        """

        def found(catalog: Catalog) -> Document:
            row = self._row(catalog, uri)
            text, marks = catalog.document(row.id)
            return Document(row.uri, text, row.media_type, row.metadata, marks)

        return self._read_catalog(found)

    def image(self, key: str) -> ImagePart:
        """An image of a figure by its hash, see `Hit.image`.

        Raises CollectionError if no document that this handle may see has it.
        """
        found = self._read(lambda snapshot: self._catalog().image(key, snapshot.generation.id, *self._conditions(None)))
        if found is None:
            raise CollectionError(f"There is no image {key!r} in {self.location}.", "Use the `image` of a hit.")
        return found

    def page_image(self, uri: str, page: int, *, width: int = 1200) -> bytes:
        """A page of a PDF document or image as PNG, up to `width` pixels wide (100 to 2400); pages count from 1.

        It is rendered from the file that the source holds now, in a confined process. Raises ConnectorError if that is
        not the indexed version or cannot be read, CollectionError if there is no such document or page,
        UnsupportedError for other formats, ParseError for a file that cannot be rendered.
        """
        from ragfm.ingestion.page_images import page_image

        row = self._read_catalog(lambda catalog: self._row(catalog, uri))
        return page_image(self._store, self._groups, row, page, width)

    def page_boxes(self, uri: str, page: int, start: int, end: int) -> list[Box]:
        """Where `document.text[start:end]` stands on a page: a box for each line, empty if the place is not certain.

        A box is left, top, right and bottom, as fractions of the page from its top left corner. Text of scans is found
        if OCR is installed. Raises what `page_image` raises.
        """
        from ragfm.ingestion.page_images import page_boxes

        def found(catalog: Catalog) -> tuple[Any, str, Any]:
            row = self._row(catalog, uri)
            return row, *catalog.document(row.id)

        row, text, marks = self._read_catalog(found)
        return page_boxes(self._store, self._groups, row, text, marks, page, start, end)

    def status(self) -> Status:
        """Counts, failures, embedder, indexes and sources; only counts and embedder for restricted handles."""
        from ragfm.ingestion.recipe import older_documents
        from ragfm.ingestion.source_schedule import failed_sources
        from ragfm.ingestion.sources import failed_documents
        from ragfm.ingestion.unmapped_identities import unmapped_identities
        from ragfm.retrieval.fusion_weight import explain_weight
        from ragfm.store.compaction import count_dead_chunks

        own = self._groups is None

        def read_status(snapshot: SearchBackend) -> Status:
            catalog = self._catalog()
            counts = catalog.counts(snapshot.generation.id, *self._conditions(None))
            images, image_bytes = catalog.image_sizes(snapshot.generation.id, *self._conditions(None))
            indexes: tuple[Mapping[str, Any], ...] = ()
            if own:
                store = self._store
                vectors, words = snapshot.status(store.settings)
                weight, why = explain_weight(store.settings.search, snapshot.generation.contract, words["language"])
                dead, floor = count_dead_chunks(catalog), catalog.floor()
                indexes = (
                    {"over": "vectors", "floor": floor, "dead": dead, **vectors},
                    {"kind": "bm25", "over": "words", "weight": weight, "why": why, **words},
                )
            return Status(
                documents=sum(documents for documents, _ in counts.values()),
                chunks=sum(chunks for _, chunks in counts.values()),
                generation=snapshot.generation.id,
                images=images,
                image_bytes=image_bytes,
                failed=(*failed_sources(self._store), *failed_documents(catalog)) if own else (),
                older=older_documents(catalog, self._store.parser_choice)[0] if own else 0,
                parsers=_parsers(self._store) if own else (),
                embedder=snapshot.generation.contract,
                indexes=indexes,
                sources=tuple(
                    {
                        "name": source.name,
                        "connector": source.connector,
                        "location": source.location,
                        "documents": counts.get(source.name, (0, 0))[0],
                        "include": source.options.get("include", []),
                        "exclude": source.options.get("exclude", []),
                        "options": {k: v for k, v in source.options.items() if k not in ("include", "exclude")},
                        "tags": dict(source.tags),
                        "allow": list(source.allow),
                        "unmapped": unmapped_identities(catalog, source.id),
                    }
                    for source in catalog.sources()
                    if own
                ),
            )

        return self._store.read(read_status)

    def compact(self, progress: ProgressCallback | None = None) -> CompactReport:
        """Delete the rows of removed documents and free their space, while readers continue.

        A sync does so by itself if there are many. Progress is in rows.
        """
        self._owner()
        from ragfm.store.compaction import compact

        with self._store.writing() as catalog:
            return compact(self._store, catalog, progress)

    def reembed(self, embedder: str | Embedder, *, progress: ProgressCallback | None = None) -> ReembedReport:
        """Re-embed all chunks with a different embedder, in one commit. Vectors survive an interruption.

        Documents are chunked again for the embedder's window. Progress is in documents.
        """
        self._owner()
        from ragfm.ingestion.reembed import reembed

        return reembed(self._store, embedder, progress)

    def remove(self, name: str) -> RemoveReport:
        """Remove a source with all its documents, or the document with a uri. Raises CollectionError if it is neither.

        A document that is still in its source comes back with the next sync, unless it is excluded.
        """
        from ragfm.maintenance.removal import remove

        self._owner()
        return remove(self._store, name)

    def export(
        self,
        path: str | Path | BinaryIO,
        *,
        filter: str | None = None,
        vectors: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ExportReport:
        """Write all documents that this handle may see, with text and chunks, to a file or a binary stream.

        All are of one generation. Raises FilterError, CollectionError.
        """
        from ragfm.maintenance.export import export

        return export(
            self._catalog(),
            Path(path) if isinstance(path, str) else path,
            conditions=self._conditions(filter),
            vectors=vectors,
            progress=progress,
        )

    def verify(self, *, repair: bool = False, progress: ProgressCallback | None = None) -> VerifyReport:
        """Check all files and rows; with `repair`, rebuild whatever follows from an intact catalog."""
        from ragfm.maintenance.verification import verify

        self._owner()
        return verify(self._store, repair=repair, progress=progress)

    def backup(
        self,
        path: str | Path,
        *,
        force: bool = False,
        keep: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> BackupReport:
        """Write the collection to one file, while others read and write.

        With `keep`, `path` is a folder: a new file is written there, and all but the newest `keep` backups of this
        collection are deleted from it.
        """
        from ragfm.maintenance.backup import backup, backup_to_folder

        self._owner()
        place = Path(os.path.abspath(path))  # noqa: PTH100
        if keep is not None:
            return backup_to_folder(self._store, place, keep, progress)
        return backup(self._store, place, force=force, progress=progress)

    def restore(self, path: str | Path, progress: ProgressCallback | None = None) -> RestoreReport:
        """Create this collection, which must not exist yet, from a backup."""
        from ragfm.maintenance.restore import restore

        self._owner()
        return restore(self._store, Path(path), progress)

    def copy(self, target: str | Path, progress: ProgressCallback | None = None) -> CopyReport:
        """Copy the collection to PostgreSQL or from there to a folder, without embedding, and verify the copy.

        `target` is a folder or an address that has no collection yet. An interrupted copy leaves nothing there.
        """
        from ragfm.maintenance.copy import copy
        from ragfm.store.collection_store import Store, open_database

        self._owner()
        store = Store(open_database(target), self._store.settings, None)
        try:
            return copy(self._store, store, progress)
        finally:
            store.close()

    def close(self) -> None:
        """Close the files; the next use opens them again. On a restricted handle it does nothing."""
        if self._groups is None:
            self._store.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Collection({self.location!r})"

    def _repr_html_(self) -> str:
        return as_html(self._blocks())

    def _repr_markdown_(self) -> str:
        return as_markdown(self._blocks())

    def _blocks(self) -> list[Block]:
        blocks: list[Block] = [Heading(repr(self))]
        try:
            status = self.status()
        except CollectionNotFound:
            return [*blocks, "It does not exist yet: `sync` creates it."]
        counts = counted(document=status.documents, chunk=status.chunks)
        blocks.append(f"{counts}; embedder {status.embedder['embedder']}")
        columns = ("name", "documents", "location")
        rows = [TableRow(("source", *columns[1:]), tuple(str(row[key]) for key in columns)) for row in status.sources]
        blocks += [rows] if rows else []
        return blocks + ([f"{counted(document=len(status.failed))} failed."] if status.failed else [])

    def _owner(self) -> None:
        if self._groups is not None:
            raise UnsupportedError("A restricted handle cannot write.", "Use the owner's handle.")

    def _catalog(self) -> Catalog:
        """The catalog, without the rows that this handle may not see if the database can hide them."""
        catalog = self._store.catalog
        return catalog if self._groups is None else catalog.restricted_to(self._groups)

    def _read_catalog(self, action: Callable[[Catalog], T]) -> T:
        return self._store.read_catalog(lambda _: action(self._catalog()))

    def _row(self, catalog: Catalog, name: str) -> Any:
        """The row of the document with this uri or display name."""
        row = catalog.named(name, *self._conditions(None))
        if row is None:
            raise CollectionError(f"There is no document {name!r} in {self.location}.", "`ragfm documents` lists them.")
        return row

    def _conditions(self, text: str | None) -> list[Any]:
        from ragfm.store.filters import check_keys, parse_filter, visible_to

        visible = [] if self._groups is None else [visible_to(self._groups)]
        if text is None:
            return visible
        condition, keys = parse_filter(text)
        self._read_catalog(lambda catalog: check_keys(keys, catalog, *visible))
        return [condition, *visible]


def _info(row: Any, names: DisplayNames) -> DocumentInfo:
    return DocumentInfo(
        uri=row.uri,
        source=row.source,
        media_type=row.media_type,
        metadata=row.metadata,
        chunks=row.chunk_count,
        characters=row.characters,
        digest=row.digest,
        name=names.name_of(row.uri),
    )


def _parsers(store: Store) -> tuple[Mapping[str, Any], ...]:
    """The formats of the documents, and the names of the parsers that read them, the first one first."""
    from ragfm.parsing.parsers import known_formats

    documents: Counter[str] = Counter()
    for _, kind, count, _ in store.catalog.recipes():
        documents[kind] += count
    known = known_formats()
    return tuple(
        {
            "media_type": kind,
            "format": known.by_type[kind].name if kind in known.by_type else kind,
            "documents": count,
            "parsers": store.parser_choice.parsers_for(kind),
        }
        for kind, count in sorted(documents.items())
    )


def _check_tags(tags: Mapping[str, Any]) -> None:
    from ragfm.core.text import check_characters

    for key, value in tags.items():
        if not isinstance(value, Scalar):
            raise TypeError(f"the tag {key!r} is {value!r}; it must be a string, a number or a boolean")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"the tag {key!r} is {value!r}, which JSON cannot represent")
        check_characters("tag", f"{key}={value}")


def _names(names: Iterable[str], what: str) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f"{what} is {names!r}, a string; pass a list or a set of strings")
    return frozenset(names)
