"""Verify: whether a collection is, to the byte, what was committed.

    HEAD          its checksum, and that the catalog has reached what it acknowledges
    catalog.db    every page's checksum, SQLite's own checks, the chain of generations, every living document with its
                  chunks and vectors, who may see it, and what filters find it by
    views/        every block's checksum, the ids, a sample of scores

Views can always be built from the catalog again, and so can what follows from a document's row. The catalog itself
can't: what of it is whole can be saved into a new collection. See `repair` and `salvage`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.core.errors import CollectionNotFound, DamagedCollectionError
from ragfm.maintenance.integrity import UNREADABLE, LivingDocuments, Wrong, wrong_vector
from ragfm.maintenance.repair import repair as mend
from ragfm.maintenance.view_verification import verify_views
from ragfm.store.catalog import Catalog
from ragfm.store.database import FILE, HEAD, damaged_pages, open_engine, read_head
from ragfm.store.migrations import is_old
from ragfm.store.tables import SCHEMA_VERSION, chunks, contracts, generations, properties, vectors
from ragfm.store.views import FOLDER as VIEWS

if TYPE_CHECKING:
    from ragfm.store.collection_store import Store

__all__ = ["Finding", "VerifyReport", "verify"]

Progress = Callable[[int, int], None]
"""Is told how many documents of how many were looked at."""
_LOOKS = 4  # at a page that looks damaged: a writer may be writing it
_PAUSE = 0.05  # seconds between them


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was committed: in which file of the collection, what, as expected and as found."""

    file: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what was found.

    `whole` of the `documents` have nothing wrong; `lost` names the others, and `mended` what a repair has done.
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
        """Whether anything is wrong."""
        return bool(self.findings)


@dataclass(slots=True)
class _Look:
    """What one look has found so far. `fatal`: the catalog has damage that nothing in it can mend."""

    findings: list[Finding] = field(default_factory=list)
    stray: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    generation: int | None = None
    fatal: bool = False
    documents: int = 0
    chunks: int = 0
    views: int = 0

    def catalog(self, what: str, expected: object, found: object) -> None:
        """Add damage of the catalog."""
        self.fatal = True
        self.findings.append(Finding(FILE, what, str(expected), str(found)))


def verify(store: Store, *, repair: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check all that a collection consists of; with `repair`, mend what is derived, and check again.

    Raises CollectionNotFound. What is damaged is reported, not raised.
    """
    start = time.monotonic()
    if is_old(store.folder):
        with store.writing():
            pass  # whoever writes brings it to this version's schema
    if not any((store.folder / name).exists() for name in (HEAD, FILE, VIEWS)):
        raise CollectionNotFound(f"There is no collection at {store.folder}.", "Name another folder with -c.")
    look, mended = _look(store.folder, progress), list[str]()
    if repair and not look.fatal:
        mended = mend(store, {finding.file for finding in look.findings}, look.stray)
        look = _look(store.folder, progress)
    return VerifyReport(
        generation=look.generation,
        documents=look.documents,
        whole=look.documents - len(look.lost),
        chunks=look.chunks,
        views=look.views,
        findings=tuple(look.findings),
        lost=tuple(look.lost),
        mended=tuple(mended),
        seconds=round(time.monotonic() - start, 3),
    )


def _look(folder: Path, progress: Progress | None) -> _Look:
    look, head = _Look(), None
    try:
        head = read_head(folder)  # before the catalog: a commit that lands in between only makes that newer
    except DamagedCollectionError as error:
        missing = not (folder / HEAD).exists()
        look.findings.append(Finding(HEAD, "the file", "whole", "missing" if missing else str(error.__cause__)))
    if not (folder / FILE).exists():
        look.catalog("the file", "there", "missing")
    else:
        for wrong in _damaged_pages(folder):
            look.catalog(*wrong)
        engine = open_engine(folder, writable=False)
        try:
            with engine.connect() as connection:
                _look_at_catalog(connection, head, look, progress)
        except UNREADABLE as error:
            look.catalog("reading it", "possible", getattr(error, "orig", error))
        finally:
            engine.dispose()
    _look_at_views(folder, look)
    return look


def _damaged_pages(folder: Path) -> list[tuple[str, str, str]]:
    """Those that stay damaged: a writer may just be folding its log into the file."""
    damaged = set(damaged_pages(folder))
    for _ in range(_LOOKS - 1):
        if damaged:
            time.sleep(_PAUSE)
            damaged &= set(damaged_pages(folder))
    return sorted(damaged)


def _look_at_catalog(
    connection: sa.Connection, head: dict[str, Any] | None, look: _Look, progress: Progress | None
) -> None:
    """All of the catalog, as one transaction sees it."""
    schema = connection.execute(sa.select(properties.c.value).where(properties.c.key == "schema")).scalar()
    if schema != str(SCHEMA_VERSION):
        look.catalog("the schema's version", SCHEMA_VERSION, schema)
    for pragma, what in (("integrity_check", "SQLite's integrity check"), ("foreign_key_check", "foreign keys")):
        try:
            for row in connection.exec_driver_sql(f"PRAGMA {pragma}").all():
                if tuple(row) != ("ok",):
                    look.catalog(what, "ok", " ".join(str(part) for part in row))
        except sa.exc.DatabaseError as error:
            look.catalog(what, "ok", error.orig)
    living = LivingDocuments(connection)
    newest = living.generation
    look.generation = newest.id
    try:
        for wrong in (*_wrong_generations(connection, head), *_wrong_spare_vectors(connection, newest.contract_id)):
            look.catalog(*wrong)
    except UNREADABLE as error:
        look.catalog("generations and vectors", "readable", getattr(error, "orig", error))
    _look_at_documents(living, look, progress)
    if look.chunks != newest.chunks:
        look.catalog(f"the chunks of generation {newest.id}", newest.chunks, look.chunks)


def _look_at_documents(living: LivingDocuments, look: _Look, progress: Progress | None) -> None:
    total = living.count()
    for document_id, uri in living:
        look.documents += 1
        if progress is not None:
            progress(look.documents, total)
        found = living.read(document_id)
        if isinstance(found, Wrong):
            look.catalog(f"the document {uri}" if uri else found.what, found.expected, found.found)
        else:
            look.chunks += len(found.chunks)
            for wrong in found.wrong:
                look.catalog(*wrong)
            look.findings += [Finding(FILE, *wrong) for wrong in found.stray]
            if found.stray:
                look.stray.append(document_id)
        if isinstance(found, Wrong) or found.wrong:
            look.lost.append(uri or f"document {document_id}")
    if total and look.documents != total:
        look.catalog("the documents that can be found", total, look.documents)


def _wrong_generations(connection: sa.Connection, head: dict[str, Any] | None) -> Iterator[Wrong]:
    """What of the chain doesn't fit: HEAD, missing links, and counts that are not those of the rows."""
    floor = int(connection.execute(sa.select(properties.c.value).where(properties.c.key == "floor")).scalar() or 0)
    rows = connection.execute(sa.select(generations).order_by(generations.c.id)).all()
    digests = {row.id: row.digest for row in rows}
    newest = rows[-1].id
    if head is not None:
        at, digest = head["generation"], head["digest"]
        # Compaction forgets generations; one that HEAD had before it began is no loss.
        if digests.get(at) != digest and not (at not in digests and at < floor):
            found = f"generation {newest}, with the digest {digests.get(at)} at generation {at}"
            yield Wrong("the history", f"generation {at} with the digest {digest}, which was acknowledged", found)
    if (missing := set(range(floor, newest + 1)) - digests.keys()) and floor <= newest:
        yield Wrong("the generations", f"all from {floor} to {newest}", f"{len(missing)} are missing")
    changes: Counter[int] = Counter()
    for column, sign in ((chunks.c.born, 1), (chunks.c.died, -1)):
        query = sa.select(column, sa.func.count()).where(column.is_not(None)).group_by(column)
        for generation, count in connection.execute(query):
            changes[generation] += sign * count
    totals = dict(zip(range(newest + 1), accumulate(changes[at] for at in range(newest + 1)), strict=True))
    for row in rows:
        if row.id >= floor and row.chunks != totals[row.id]:
            yield Wrong(f"the chunks of generation {row.id}", str(row.chunks), str(totals[row.id]))


def _wrong_spare_vectors(connection: sa.Connection, contract_id: int) -> Iterator[Wrong]:
    """What is wrong with vectors that no living chunk has, but that the next sync or re-embedding would take."""
    used = sa.exists().where(chunks.c.text_hash == vectors.c.text_hash, chunks.c.died.is_(None))
    query = sa.select(vectors, contracts.c.fingerprint).join(contracts)
    query = query.where(sa.or_(vectors.c.contract_id != contract_id, ~used))
    for row in connection.execute(query.execution_options(yield_per=1000)):
        for what, expected, found in wrong_vector(row.vector, row.checksum, int(row.fingerprint["dim"])):
            yield Wrong(f"{what} of the vector {row.text_hash.hex()}", expected, found)


def _look_at_views(folder: Path, look: _Look) -> None:
    catalog = None
    if not look.fatal and not any(finding.file == HEAD for finding in look.findings):
        catalog = Catalog(folder)
    try:
        for name, wrongs in verify_views(folder, catalog, look.generation):
            look.views += 1
            for wrong in wrongs:
                look.findings.append(Finding(name, *wrong))
                look.fatal |= name == FILE
    finally:
        if catalog is not None:
            catalog.close()
