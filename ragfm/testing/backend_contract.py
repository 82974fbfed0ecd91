"""Contract test of search backends: `ragfm.testing.check_backend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ragfm.core.config import Settings
from ragfm.core.types import Chunk, Document, Ids, Scalar, Vectors
from ragfm.store.catalog import Catalog, Source, StaleReadError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import Store, open_database
from ragfm.store.compaction import compact
from ragfm.store.document_rows import NewDocument
from ragfm.store.filters import parse_filter, visible_to
from ragfm.store.search_backend import Predicate, SearchBackend
from ragfm.store.tables import chunks, text_hash
from ragfm.testing.contract_checks import require

_DIM = 24
_CONTRACT: dict[str, Scalar] = {"model": "check", "weights": "", "dim": _DIM, "embedder": "check"}
_TOLERANCE = 1e-5  # of scores
_RECALL = 0.99
_DOCUMENTS, _CHUNKS = 300, 3  # chunks per document
_SAME = range(20, 60)  # documents whose first chunks have equal vectors
_COLORS = ("red", "green", "blue")
_PREDICATES: tuple[tuple[str | None, frozenset[str] | None], ...] = (
    ("number < 150", None),
    ("number in (7, 40, 41)", None),
    ("number = 7", None),
    ("number < 0", None),
    (None, frozenset()),
    (None, frozenset({"hr"})),
    (None, frozenset({"hr", "board"})),
    ("color = green and not number > 31", frozenset()),
    ("color = green and not number > 200", frozenset({"board", "hr"})),
)


def check_backend(backend: type[SearchBackend], location: str | Path) -> None:
    """Compare the searches of a backend with exhaustive ones. Raises AssertionError with the violation.

    `location` is a folder or an address without a collection, which this creates. Searches must return as many hits as
    match, with their exact scores, and on average 99 % of the best ones; before and after `save`, while documents are
    added, replaced, removed and compacted; with filters and groups; and a snapshot must keep its generation.
    """
    database = open_database(location)
    with database.creating() as new:
        CatalogWriter.create(new, _CONTRACT)
    with database.lock():
        catalog = CatalogWriter(database)
        try:
            _check(backend, catalog, lambda: compact(_Store(backend, location), catalog))
        finally:
            catalog.close()


class _Store(Store):
    """A store with a backend that need not be registered."""

    def __init__(self, backend: type[SearchBackend], location: str | Path) -> None:
        super().__init__(open_database(location), Settings(), None)
        self._backend = backend

    @property
    def backend(self) -> type[SearchBackend]:
        return self._backend


def _check(backend: type[SearchBackend], catalog: CatalogWriter, compacting: Callable[[], object]) -> None:
    settings = Settings()

    def opened() -> SearchBackend:
        return backend.open(catalog, catalog.at(), settings)

    def save() -> None:
        backend.save(catalog, settings, always=True, language_changed=lambda *_: None)
        for difference in backend.differences(catalog, settings):
            raise AssertionError(f"after a save: {difference}")

    empty = opened()
    _check_searches(empty, catalog, "an empty collection")
    source = catalog.save_source(Source("check", "files", "check", "check", allow=()))
    write = partial(_write, catalog, source)
    write(range(_DOCUMENTS), version=0)
    with catalog.write() as connection:  # ids with gaps, beyond 32 bits, and not in the order of documents
        connection.execute(chunks.update().where(chunks.c.id % 2 == 0).values(id=2**40 - chunks.c.id))
    _check_searches(empty.extend(catalog.at()), catalog, "the first documents, before they are saved")
    save()
    first = opened()
    _check_searches(first, catalog, "the first documents")
    _check_words(first, catalog)

    write(range(100), version=1)  # replaced
    write([], removed=range(100, 160))
    write(range(_DOCUMENTS, _DOCUMENTS + 40), version=0)
    later = first.extend(catalog.at())
    later.prepare(first)
    for snapshot in (later, opened()):
        _check_searches(snapshot, catalog, "documents replaced, removed and added since the last save")
    _check_searches(first, catalog, "a snapshot of an earlier generation")
    save()
    second = opened()
    _check_searches(second, catalog, "after a second save")
    _check_words(second, catalog)
    _check_searches(first, catalog, "a snapshot of an earlier generation, after a second save")
    with ThreadPoolExecutor(4) as pool:
        cases = [(first, "the earlier of two snapshots"), (second, "the later of two snapshots")] * 2
        list(pool.map(lambda case: _check_searches(case[0], catalog, f"{case[1]}, in threads"), cases))

    compacting()
    last = opened()
    _check_searches(last, catalog, "after compaction")
    try:
        first.search(_vectors(1, seed=0), _DOCUMENTS * _CHUNKS)
        raise AssertionError("a snapshot of a generation that compaction has deleted must raise StaleReadError")
    except StaleReadError:
        pass
    write([], removed=[*range(100), *range(160, _DOCUMENTS + 40)])
    _check_searches(last.extend(catalog.at()), catalog, "all documents removed")
    _check_searches(last, catalog, "a snapshot before all documents were removed")


def _write(
    catalog: CatalogWriter, source: Source, numbers: Sequence[int], *, version: int = 0, removed: Sequence[int] = ()
) -> None:
    """Commit documents; the vectors of some are equal. A third is for `hr`, another one for `board`."""
    new, added = [], list[tuple[bytes, Vectors]]()
    for number in numbers:
        parts = [f"Part {part} of plan {number}, version {version}. " for part in range(_CHUNKS)]
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        texts = [Chunk(text, start, start + len(text)) for text, start in zip(parts, starts, strict=False)]
        hashes = [text_hash(chunk.embedded_text) for chunk in texts]
        vectors = _vectors(_CHUNKS, seed=1000 * version + number)
        if number in _SAME:
            vectors[0] = _vectors(1, seed=7)[0]
        added += zip(hashes, vectors, strict=True)
        metadata: dict[str, Scalar] = {"number": number, "color": _COLORS[number % 3]}
        document = Document(f"check/{number}", "".join(parts), "text/plain", metadata)
        allow = ((), ("hr",), ("board", "hr"))[number % 3] or None
        new.append(NewDocument(f"{number}", "", f"{number} {version}", "", document, texts, hashes, allow))
    if added:
        catalog.add_vectors(catalog.at().contract_id, [key for key, _ in added], np.stack([row for _, row in added]))
    catalog.commit(source, new, [f"{number}" for number in removed])


def _vectors(count: int, *, seed: int) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, _DIM), dtype=np.float32)
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _predicates(catalog: Catalog) -> list[Predicate | None]:
    now, found = catalog.generation(), list[Predicate | None]([None])
    for text, groups in _PREDICATES:
        conditions = [parse_filter(text).condition] if text else []
        conditions += [] if groups is None else [visible_to(groups)]
        found.append(Predicate(text, groups, now, tuple(conditions)))
    return found


def _check_searches(snapshot: SearchBackend, catalog: Catalog, state: str) -> None:
    """Compare searches by vectors with the exact scores of all chunks of the snapshot's generation."""
    generation = snapshot.generation
    all_ids, all_vectors = catalog.chunk_vectors(generation)
    require(len(snapshot) == len(all_ids), f"{state}: len is {len(snapshot)}, expected {len(all_ids)}")
    queries = np.concatenate([_vectors(1, seed=7), _vectors(2, seed=3), -_vectors(1, seed=41)])
    for where in _predicates(catalog):
        matching = all_ids if where is None else catalog.chunk_ids(generation.id, *where.conditions)
        case = f"{state}, {'no predicate' if where is None else f'filter {where.filter}, groups {where.groups}'}"
        if where is not None:
            require(snapshot.matches(where) == (len(matching) > 0), f"{case}: matches is {snapshot.matches(where)}")
        exact = queries.astype(np.float64) @ all_vectors[np.isin(all_ids, matching)].T.astype(np.float64)
        for k in (1, 10, len(all_ids) + 5):
            shares = []
            for row, query in zip(exact, queries, strict=True):
                scores, ids = snapshot.search(query[np.newaxis], k, where)
                shares.append(_check_hits(scores, ids, k, matching, row.astype(np.float32), f"{case}, k={k}"))
            require(np.mean(shares) >= _RECALL, f"{case}, k={k}: recall is {np.mean(shares):.3f}, below {_RECALL}")
        if len(matching):
            some = np.sort(matching[:: max(1, len(matching) // 7)])
            close = np.allclose(snapshot.cosines(queries[:1], some), exact[0][np.isin(matching, some)], atol=_TOLERANCE)
            require(close, f"{case}: cosines of single chunks are wrong")


def _check_hits(scores: Vectors, ids: Ids, k: int, matching: Ids, exact: Vectors, case: str) -> float:
    """Check one search. Returns the share of the best chunks that it found."""
    wanted = min(k, len(matching))
    require(scores.shape == ids.shape == (wanted,), f"{case}: {len(ids)} hits, expected {wanted}")
    require(scores.dtype == np.float32 and ids.dtype == np.int64, f"{case}: types {scores.dtype} and {ids.dtype}")
    require(len(np.unique(ids)) == len(ids), f"{case}: an id is returned twice")
    require(np.isin(ids, matching).all(), f"{case}: hits do not meet the predicate, or are not of this generation")
    if not wanted:
        return 1.0
    of_hits = exact[np.searchsorted(matching, ids)]
    require(np.allclose(scores, of_hits, rtol=0, atol=_TOLERANCE), f"{case}: scores are not the cosines of the chunks")
    order = np.lexsort((ids, -scores))
    require((order == np.arange(wanted)).all(), f"{case}: hits are not in order of score, equal ones by id")
    if np.ptp(scores) == 0:  # of many equal ones, those with the lowest ids
        equal = matching[np.isclose(exact, scores[0], rtol=0, atol=_TOLERANCE)]
        lowest = np.array_equal(ids, equal[:wanted])
        require(lowest, f"{case}: of equal chunks, {ids} are returned, not the lowest ids {equal[:wanted]}")
    threshold = np.sort(exact)[-wanted] - _TOLERANCE
    return float(np.mean(of_hits >= threshold))


def _check_words(snapshot: SearchBackend, catalog: Catalog) -> None:
    """Searches by words return the chunks that have one, with the scores of `bm25`, and obey the predicate."""
    generation = snapshot.generation
    require(snapshot.language is None or len(snapshot.language) >= 2, f"the language is {snapshot.language!r}")
    for where in _predicates(catalog):
        matching = catalog.chunk_ids(generation.id, *(where.conditions if where else ()))
        case = "words, no predicate" if where is None else f"words, filter {where.filter}, groups {where.groups}"
        for query, k in (("plan", 10), ("part of a plan", len(matching) + 5), ("xyzzy", 3)):
            scores, ids = snapshot.search_keywords(query, k, where)
            wanted = 0 if query == "xyzzy" else min(k, len(matching))
            require(scores.shape == ids.shape == (wanted,), f"{case}, {query!r}: {len(ids)} hits, expected {wanted}")
            require(np.isin(ids, matching).all(), f"{case}, {query!r}: hits do not meet the predicate")
            require((np.diff(scores) <= 0).all(), f"{case}, {query!r}: scores are not in descending order")
            order = np.argsort(ids)
            same = not wanted or np.allclose(snapshot.bm25(query, ids[order]), scores[order], atol=1e-4)
            require(same, f"{case}, {query!r}: `bm25` gives other scores")
