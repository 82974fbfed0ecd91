"""Verify: whether everything in a collection is as it was committed.

    HEAD          its checksum, and that the catalog has the acknowledged generation
    catalog.db    checksums of all pages, SQLite's own checks, the chain of generations, and each live document with its
                  chunks, vectors, images, access groups and tags
    views/        checksums of all blocks, the ids, and a sample of scores
    backend       what the search backend keeps elsewhere: `pgvector` has the vectors in tables of the database
    uploads/      records of who may see them, and their content
    PostgreSQL    the rows of documents, and that row-level security is on

Views, what a backend keeps, and rows that follow from documents, can be rebuilt from the catalog: see `repair`. If the
catalog itself is damaged, its intact documents can be saved into a new collection: see `salvage`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import read_checksummed
from ragfm.core.errors import CollectionNotFound, DamagedCollectionError, RagfmError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import READ_ERRORS, Discrepancy, LiveDocuments, check_image, check_vector
from ragfm.maintenance.repair import repair as repair_derived
from ragfm.store.catalog import Catalog, StaleReadError, read_property
from ragfm.store.collection_store import Store
from ragfm.store.sqlite_file import CATALOG_FILE, HEAD_FILE, damaged_pages
from ragfm.store.tables import SCHEMA_VERSION, chunks, contracts, generations, images, vectors
from ragfm.store.views import FORMAT, MANIFEST, VIEWS_FOLDER, View, damaged_blocks

_PAGE_READS = 4  # of a page with a wrong checksum: a writer may be writing it
_PAGE_READ_INTERVAL = 0.05  # seconds
_ID_BATCH = 4096  # ids per search of a view
_SAMPLE_VECTORS = 32  # whose scores are compared
_EXACT_TOLERANCE, _APPROXIMATE_TOLERANCE = 1e-4, 0.02  # of a score


@dataclass(frozen=True, slots=True)
class Finding:
    """A value that differs from the committed one, and the file of the collection or the place that it is in."""

    file: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a verification.

    `documents` and `chunks` count what was read; `whole` of the documents are undamaged, and `lost` are the uris of the
    others. `mended` describes the repairs.
    """

    generation: int | None
    documents: int
    whole: int
    chunks: int
    views: int
    findings: tuple[Finding, ...]
    lost: tuple[str, ...]
    mended: tuple[str, ...]
    seconds: float

    @property
    def damaged(self) -> bool:
        """Whether there are findings."""
        return bool(self.findings)


def verify(store: Store, *, repair: bool = False, progress: ProgressCallback | None = None) -> VerifyReport:
    """Check everything in a collection. With `repair`, rebuild what is derived, and check again.

    Reports `Progress("verify", documents_read, documents)`. Raises CollectionNotFound, and DiskFullError or
    AccessDeniedError if the catalog cannot be read for such a reason. Damage is reported, not raised.
    """
    start = time.monotonic()
    database = store.database
    parts = (HEAD_FILE, CATALOG_FILE, VIEWS_FOLDER)
    if not (database.exists if database.shared else any((database.folder / name).exists() for name in parts)):
        raise CollectionNotFound(f"There is no collection at '{database.location}'.", "Choose a different one with -c.")
    check = _Check(store, progress or ignore_progress)
    repairs: list[str] = []
    if repair and not check.catalog_damaged:
        repairs = repair_derived(store, {finding.file for finding in check.findings}, check.derived_ids)
        check = _Check(store, progress or ignore_progress)
    return VerifyReport(
        generation=check.generation,
        documents=check.documents,
        whole=check.documents - len(check.lost),
        chunks=check.chunks,
        views=check.views,
        findings=tuple(check.findings),
        lost=tuple(check.lost),
        mended=tuple(repairs),
        seconds=round(time.monotonic() - start, 3),
    )


class _Check:
    """One run over a collection, and its results.

    `derived_ids` are the documents whose rows in `tags` or `groups` can be rebuilt. With `catalog_damaged`, the catalog
    has damage that cannot be repaired.
    """

    def __init__(self, store: Store, progress: ProgressCallback) -> None:
        database, folder = store.database, store.folder
        self._database = database
        self._progress = progress
        self.findings: list[Finding] = []
        self.derived_ids: list[int] = []
        self.lost: list[str] = []
        self.generation: int | None = None
        self.catalog_damaged = False
        self.documents = self.chunks = self.views = 0

        head = None
        try:
            head = database.read_head()  # before the catalog: a commit in between only makes the catalog newer
        except DamagedCollectionError as error:
            missing = not (folder / HEAD_FILE).exists()
            found = "missing" if missing else str(error.__cause__)
            self.findings.append(Finding(HEAD_FILE, "the file", "intact", found))
        if database.shared or (folder / CATALOG_FILE).exists():
            pages = set[tuple[str, str, str]]() if database.shared else set(damaged_pages(folder))
            for _ in range(_PAGE_READS - 1):  # only what is damaged in every read counts
                if pages:
                    time.sleep(_PAGE_READ_INTERVAL)
                    pages &= set(damaged_pages(folder))
            for page in sorted(pages):
                self._add_damage(*page)
            engine = database.open_engine(writable=False)
            try:
                with engine.connect() as connection:
                    self._check_catalog(connection, head)
            except READ_ERRORS as error:
                if isinstance(error, sa.exc.DatabaseError):
                    failure = database.read_error(error)
                    if not isinstance(failure, DamagedCollectionError):  # a full disk, for example
                        raise failure from error
                self._add_damage("reading it", "possible", getattr(error, "orig", error))
            finally:
                engine.dispose()
        else:
            self._add_damage("the file", "there", "missing")
        # A damaged collection cannot be opened; then only the files of its views are checked.
        has_head = not any(finding.file == HEAD_FILE for finding in self.findings)
        catalog = Catalog(database) if has_head and not self.catalog_damaged else None
        try:
            for name, discrepancies in _verify_views(folder, catalog, self.generation):
                self.views += 1
                for discrepancy in discrepancies:
                    self.findings.append(Finding(name, *discrepancy))
                    self.catalog_damaged |= name == CATALOG_FILE
            if catalog is not None:
                self.findings += [Finding(*found) for found in store.backend.differences(catalog, store.settings)]
                self.findings += [Finding(*found) for found in store.open_uploads().differences()]
        finally:
            if catalog is not None:
                catalog.close()

    def _add_damage(self, what: str, expected: object, found: object) -> None:
        self.catalog_damaged = True
        self.findings.append(Finding(CATALOG_FILE, what, str(expected), str(found)))

    def _check_catalog(self, connection: sa.Connection, head: Mapping[str, Any] | None) -> None:
        schema = read_property(connection, "schema")
        if schema != str(SCHEMA_VERSION):
            self._add_damage("the schema's version", SCHEMA_VERSION, schema)
        checks = (("integrity_check", "SQLite's integrity check"), ("foreign_key_check", "foreign keys"))
        for pragma, what in () if self._database.shared else checks:
            try:
                for row in connection.exec_driver_sql(f"PRAGMA {pragma}").all():
                    if tuple(row) != ("ok",):
                        self._add_damage(what, "ok", " ".join(str(value) for value in row))
            except sa.exc.DatabaseError as error:
                self._add_damage(what, "ok", error.orig)
        live = LiveDocuments(connection)
        newest = live.generation
        self.generation = newest.id
        try:
            # All are read to the end first: a read error discards their findings.
            for discrepancy in [
                *_check_generations(connection, head),
                *_check_unused(connection, newest.contract_id),
            ]:
                self._add_damage(*discrepancy)
        except READ_ERRORS as error:
            self._add_damage("generations and vectors", "readable", getattr(error, "orig", error))
        total = live.count()
        for document_id, uri in live:
            self.documents += 1
            self._progress(Progress("verify", self.documents, total))
            document = live.read(document_id)
            if isinstance(document, Discrepancy):
                what = f"the document {uri}" if uri else document.what
                self._add_damage(what, document.expected, document.found)
                self.lost.append(uri or f"document {document_id}")
                continue
            self.chunks += len(document.chunks)
            for discrepancy in document.damage:
                self._add_damage(*discrepancy)
            if document.damage:
                self.lost.append(uri or f"document {document_id}")
            if derived := [*document.tags, *document.groups]:
                self.findings += [Finding(CATALOG_FILE, *discrepancy) for discrepancy in derived]
                self.derived_ids.append(document_id)
        if total and self.documents != total:
            self._add_damage("the number of documents", total, self.documents)
        for uri, expected, actual in self._database.damaged_rows(connection):
            self._add_damage(f"the checksum of the row of {uri}", expected, actual)
            if uri not in self.lost:
                self.lost.append(uri)
        for table in self._database.unprotected_tables(connection):
            self.findings.append(Finding(table, "row-level security", "on", "off"))
        if self.chunks != newest.chunks:
            self._add_damage(f"the chunks of generation {newest.id}", newest.chunks, self.chunks)


def _check_generations(connection: sa.Connection, head: Mapping[str, Any] | None) -> Iterator[Discrepancy]:
    """Compare HEAD with the history, look for missing generations, and count the chunks of each."""
    floor = int(read_property(connection, "floor") or 0)
    rows = connection.execute(sa.select(generations).order_by(generations.c.id)).all()
    digests = {row.id: row.digest for row in rows}
    newest = rows[-1].id
    if head is not None:
        acknowledged, digest = head["generation"], head["digest"]
        # Compaction deletes old generations. A HEAD that was read before the compaction may be one of them.
        compacted = acknowledged not in digests and acknowledged < floor
        if digests.get(acknowledged) != digest and not compacted:
            yield Discrepancy(
                "the history",
                f"generation {acknowledged} with the digest {digest}, which was acknowledged",
                f"generation {newest}, with the digest {digests.get(acknowledged)} at generation {acknowledged}",
            )
    missing = set(range(floor, newest + 1)) - digests.keys()
    if missing and floor <= newest:
        yield Discrepancy("the generations", f"all from {floor} to {newest}", f"{len(missing)} are missing")
    changes: Counter[int] = Counter()  # of the number of chunks, by generation
    for column, sign in ((chunks.c.born, 1), (chunks.c.died, -1)):
        query = sa.select(column, sa.func.count()).where(column.is_not(None)).group_by(column)
        for generation, count in connection.execute(query):
            changes[generation] += sign * count
    counts = list(accumulate(changes[generation] for generation in range(newest + 1)))
    for row in rows:
        if row.id >= floor and row.chunks != counts[row.id]:
            yield Discrepancy(f"the chunks of generation {row.id}", str(row.chunks), str(counts[row.id]))


def _check_unused(connection: sa.Connection, contract_id: int) -> Iterator[Discrepancy]:
    """Check the vectors and images that no live chunk uses, but that the next sync or re-embedding may use."""
    used = sa.exists().where(chunks.c.text_hash == vectors.c.text_hash, chunks.c.died.is_(None))
    query = sa.select(vectors, contracts.c.fingerprint).join(contracts)
    query = query.where(sa.or_(vectors.c.contract_id != contract_id, ~used))
    for row in connection.execute(query.execution_options(yield_per=1000)):
        for what, expected, found in check_vector(row.vector, row.checksum, int(row.fingerprint["dim"])):
            yield Discrepancy(f"{what} of the vector {row.text_hash.hex()}", expected, found)
    shown = sa.exists().where(chunks.c.image == images.c.hash, chunks.c.died.is_(None))
    for key, data in connection.execute(
        sa.select(images.c.hash, images.c.data).where(~shown).execution_options(yield_per=10)
    ):
        yield from check_image(key, data, f"the image {key}")


def _verify_views(
    root: Path, catalog: Catalog | None, generation: int | None
) -> Iterator[tuple[str, Iterable[Discrepancy]]]:
    """The name of each view, relative to the collection, and its discrepancies.

    Without a catalog, only the files are checked. A view that is newer than `generation`, the catalog's, is damage of
    the catalog, and is reported under its name.
    """
    folders = sorted((root / VIEWS_FOLDER).iterdir()) if (root / VIEWS_FOLDER).is_dir() else []
    for folder in folders:
        if folder.suffix == ".new":
            continue
        name = f"{VIEWS_FOLDER}/{folder.name}"
        try:
            manifest = read_checksummed(folder / MANIFEST)
            if manifest.get("format") != FORMAT:  # of another version: it is not used
                yield name, []
                continue
            view_generation = int(manifest.get("generation", -1))
            if generation is not None and view_generation > generation:
                expected = f"at least {view_generation}, the generation of the view {name}"
                yield CATALOG_FILE, [Discrepancy("its newest generation", expected, str(generation))]
                continue
            found = [Discrepancy(*damage) for damage in damaged_blocks(folder, manifest.get("files", {}))]
            if not found and catalog is not None:
                view = View(folder, manifest)
                found = list(_check_view(view, str(manifest["digest"]), int(manifest["contract"]), catalog))
            yield name, found
        except FileNotFoundError as error:
            if folder.exists():  # otherwise a writer has just replaced it
                yield name, [Discrepancy(Path(error.filename or MANIFEST).name, "there", "missing")]
        except (OSError, ValueError, RagfmError) as error:
            what = MANIFEST if isinstance(error, ValueError) else "the view"
            yield name, [Discrepancy(what, "intact", str(error))]


def _check_view(view: View, digest: str, contract_id: int, catalog: Catalog) -> Iterator[Discrepancy]:
    """Compare the indexes of a view with the catalog. A view that is no longer used is not compared."""
    try:
        generation = catalog.at(view.generation)
    except StaleReadError:
        return  # it is older than the floor
    if contract_id != generation.contract_id:
        return
    if digest != generation.digest:
        yield Discrepancy("the digest of the history", generation.digest, digest)
        return
    ids = catalog.chunk_ids(generation.id)
    if catalog.floor() > generation.id:
        return
    if view.count != len(ids):
        yield Discrepancy("the number of vectors", str(len(ids)), str(view.count))
    if view.index is None:
        return
    # A search for as many hits as ids are allowed must return all of them.
    dim, missing = int(generation.contract["dim"]), 0
    query = np.full((1, dim), dim**-0.5, dtype=np.float32)
    for start in range(0, len(ids), _ID_BATCH):
        batch = ids[start : start + _ID_BATCH]
        missing += len(np.setdiff1d(batch, view.index.search(query, len(batch), allowed=batch)[1]))
    if missing:
        yield Discrepancy("the chunks", f"all of generation {generation.id}", f"{missing} are missing")
        return
    sample, vectors = catalog.vectors_of(generation, ids[:: max(1, len(ids) // _SAMPLE_VECTORS)].tolist())
    if not len(sample):
        return
    scores, hits = view.index.search(vectors, len(sample), allowed=sample)
    exact = np.take_along_axis(vectors @ vectors.T, np.searchsorted(sample, hits), axis=1)
    difference = float(np.abs(scores - exact).max())
    tolerance = _EXACT_TOLERANCE if view.index.recall == 1 else _APPROXIMATE_TOLERANCE
    if not difference <= tolerance:  # also true for NaN
        found = f"up to {difference:.4f} off"
        yield Discrepancy("the scores of a sample", f"within {tolerance} of the exact ones", found)
