"""Contract test of vector indexes: `ragfm.testing.check_vector_index`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.types import Ids, VectorIndex, Vectors
from ragfm.testing.contract_checks import allowed_ids, check_in_threads, require, require_value_errors, save_and_load

_DIM = 24
_EXACT_TOLERANCE, _APPROXIMATE_TOLERANCE = 1e-5, 0.01  # of scores


def check_vector_index(index_class: type[VectorIndex]) -> None:
    """Compare an index with `queries @ vectors.T` on difficult data. Raises AssertionError with the violation.

    An index with `recall` 1.0 must return exactly the best vectors. Any other must reach its `recall` on 20,000
    clustered vectors with filters of all kinds; its candidates are scored again with their vectors, as a collection
    does.
    """
    data = _TestData.make(index_class.recall)
    ids, vectors = data.ids.copy(), data.vectors.copy()
    index = index_class.build(ids, vectors)
    require(np.array_equal(ids, data.ids) and np.array_equal(vectors, data.vectors), "build changes its input")
    ids[:], vectors[:] = 0, 0  # an index that has not copied them fails the checks below
    _check_searches(index, data)
    # The same numbers in other memory layouts: float64, big-endian, column-major, with gaps.
    layouts: list[tuple[Any, Any]] = [
        (data.ids, data.vectors.astype(np.float64)),
        (data.ids.astype(">i8"), data.vectors.astype(">f4")),
        (data.ids, np.asfortranarray(data.vectors)),
        (np.repeat(data.ids, 2)[::2], np.repeat(data.vectors, 2, axis=0)[::2]),
    ]
    for layout_ids, layout_vectors in layouts:
        _check_hits(index_class.build(layout_ids, layout_vectors), data, 10)
    ids, vectors, queries = data.ids[:4], data.vectors[:4], data.queries
    not_finite = {value: np.where(np.eye(4, _DIM) > 0, value, vectors).astype(np.float32) for value in (np.nan, np.inf)}
    invalid: dict[str, Callable[[], object]] = {
        "a repeated id": lambda: index_class.build(ids[[0, 1, 2, 0]], vectors),
        "a negative id": lambda: index_class.build(np.where(ids == ids[1], -1, ids), vectors),
        "fewer ids than vectors": lambda: index_class.build(ids[:3], vectors),
        "a single vector of shape (dim,)": lambda: index_class.build(ids[:1], vectors[0]),
        "a vector of length 1.01": lambda: index_class.build(ids, vectors * np.float32(1.01)),
        "a vector with NaN": lambda: index_class.build(ids, not_finite[np.nan]),
        "a vector with inf": lambda: index_class.build(ids, not_finite[np.inf]),
        "k = 0": lambda: index.search(queries, 0),
        "k = -1": lambda: index.search(queries, -1),
        "a query with a different dimension": lambda: index.search(queries[:, 1:], 3),
        "a single query of shape (dim,)": lambda: index.search(queries[0], 3),
    }
    require_value_errors(invalid)
    check_in_threads(lambda allowed: _check_hits(index, data, 10, allowed), data.ids)
    _check_saving(index_class, index, data)
    for count in (0, 1, 2):
        few = _TestData(data.ids[:count], data.vectors[:count], data.queries, data.recall)
        small = index_class.build(few.ids, few.vectors)
        _check_searches(small, few)
        _check_saving(index_class, small, few)
    if data.recall < 1:
        _check_recall(index_class)


@dataclass(frozen=True)
class _TestData:
    ids: Ids
    vectors: Vectors
    queries: Vectors
    recall: float

    @classmethod
    def make(cls, recall: float) -> _TestData:
        """Clusters, as approximate indexes need them, with repeated vectors and unsorted ids with large gaps."""
        random = np.random.default_rng(7)
        vectors = random.standard_normal((30, _DIM)).repeat(50, axis=0) + random.normal(0, 0.3, (1500, _DIM))
        vectors[100:120] = vectors[7]
        ids = random.permutation(np.concatenate([2**40 + np.arange(0, 4200, 3), [2**63 - 1], np.arange(99)]))
        queries = np.concatenate([vectors[5:25] + random.normal(0, 0.1, (20, _DIM)), vectors[7:8], -vectors[900:903]])
        return cls(ids.astype(np.int64), _unit(vectors), _unit(queries), recall)


def _unit(vectors: Any) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _check_searches(index: VectorIndex, data: _TestData) -> None:
    """Searches with many values of `k`, of the batch size and of `allowed`."""
    require(len(index) == len(data.ids), f"len is {len(index)}, but the index was built from {len(data.ids)} vectors")
    for k in (1, 10, len(data.ids) + 5):
        _check_hits(index, data, k)
        _check_hits(index, data, k, one_by_one=True)
    for allowed in allowed_ids(data.ids):
        _check_hits(index, data, 10, allowed)
    scores, ids = index.search(data.queries[:0], 4)
    require(scores.shape == ids.shape == (0, 4), f"no queries give shapes {scores.shape} and {ids.shape}")
    wide = np.repeat(data.queries.astype(np.float64), 2, axis=1)[:, ::2]
    _check_hits(index, data, 10, queries=wide)
    _check_hits(index, data, 2, queries=np.zeros((1, _DIM), dtype=np.float32))


def _check_hits(
    index: VectorIndex,
    data: _TestData,
    k: int,
    allowed: Ids | None = None,
    *,
    queries: Any = None,
    one_by_one: bool = False,
) -> None:
    """Compare a search, of all queries at once or `one_by_one`, with the exact scores of the allowed vectors."""
    queries = data.queries if queries is None else queries
    batches = queries[:, np.newaxis] if one_by_one else [queries]
    results = [index.search(batch, k, allowed=allowed) for batch in batches]
    scores, ids = (np.concatenate(part) for part in zip(*results, strict=True))
    case = f"{len(data.ids)} vectors, {len(queries)} queries, k={k}"
    case += "" if allowed is None else f", {len(allowed)} ids allowed"
    require(scores.shape == ids.shape == (len(queries), k), f"{case}: shapes {scores.shape} and {ids.shape}")
    require(scores.dtype == np.float32 and ids.dtype == np.int64, f"{case}: types {scores.dtype} and {ids.dtype}")
    hit = ids != -1
    require((hit[:, 1:] <= hit[:, :-1]).all(), f"{case}: id -1 comes before other ids")
    require(np.isneginf(scores[~hit]).all(), f"{case}: the score of id -1 is not -inf")
    require((scores[:, 1:] <= scores[:, :-1]).all(), f"{case}: scores are not in descending order")
    require(all(len(set(row[row != -1])) == (row != -1).sum() for row in ids), f"{case}: an id is returned twice")
    matching = data.ids if allowed is None else np.intersect1d(data.ids, allowed)
    _check_count(ids, len(matching), case)
    require(np.isin(ids[hit], matching).all(), f"{case}: returned ids are not in the index or not allowed")
    if not len(matching):
        return
    exact = np.asarray(queries, dtype=np.float32) @ data.vectors.T
    order = np.argsort(data.ids)
    columns = order[np.searchsorted(data.ids[order], np.where(hit, ids, data.ids[0]))]
    cosines = np.where(hit, np.take_along_axis(exact, columns, axis=1), -np.inf)
    tolerance = _EXACT_TOLERANCE if data.recall >= 1 else _APPROXIMATE_TOLERANCE
    close = np.isclose(scores, cosines, rtol=0, atol=tolerance)
    require(close.all(), f"{case}: scores {scores[~close][:3]}, but the cosines are {cosines[~close][:3]}")
    wanted = min(k, len(matching))
    threshold = np.sort(exact[:, np.isin(data.ids, matching)], axis=1)[:, -wanted, np.newaxis] - tolerance
    recall = float((cosines >= threshold).sum(axis=1).mean() / wanted)
    require(recall >= data.recall, f"{case}: recall is {recall:.3f}, below {data.recall}")


def _check_count(ids: Ids, available: int, case: str) -> None:
    expected = min(ids.shape[1], available)
    if len(ids):
        hits = int((ids != -1).sum(axis=1).min())
        require(hits >= expected, f"{case}: {hits} hits, expected {expected}")


def _check_recall(index_class: type[VectorIndex]) -> None:
    """The index's share of the true best ten is among its candidates, with filters of all kinds and sizes."""
    k, candidates = 10, 40
    random = np.random.default_rng(11)
    centres = random.standard_normal((200, 2 * _DIM))
    cluster = np.minimum(random.zipf(1.3, 20_000), 200) - 1  # a few large clusters, many small ones
    vectors = _unit(centres[cluster] + random.normal(0, 0.5, (20_000, 2 * _DIM)))
    ids = np.arange(20_000, dtype=np.int64) * 3 + 5
    queries = _unit(vectors[:60] + random.normal(0, 0.05, (60, 2 * _DIM)))
    near = np.argsort(-(vectors @ queries.mean(axis=0)))
    filters = [np.sort(random.permutation(ids)[:count]) for count in (5, 40, 400, 2000, 6000, 12_000, 19_000)]
    filters += [np.sort(ids[near[:count]]) for count in (1000, 8000)]  # vectors near the queries
    filters += [np.sort(ids[near[-count:]]) for count in (1000, 8000, 15_000)]  # vectors far from the queries
    index = index_class.build(ids, vectors)
    for allowed in [None, *filters]:
        rows = np.arange(len(ids)) if allowed is None else np.searchsorted(ids, allowed)
        case = f"20,000 vectors, k={candidates}" + ("" if allowed is None else f", {len(rows)} ids allowed")
        hits = index.search(queries, candidates, allowed=allowed)[1]
        _check_count(hits, len(rows), case)
        exact = queries @ vectors[rows].T
        true = ids[rows[np.argsort(-exact, axis=1, kind="stable")[:, :k]]]
        recall = float(np.mean([np.isin(best, row).mean() for best, row in zip(true, hits, strict=True)]))
        require(recall >= index_class.recall, f"{case}: recall is {recall:.3f}, below {index_class.recall}")


def _check_saving(index_class: type[VectorIndex], index: VectorIndex, data: _TestData) -> None:
    with tempfile.TemporaryDirectory() as name:
        index.save(Path(name))
        first = index_class.load(Path(name))
        loaded = save_and_load(index_class, first)  # a mapped index must be able to save itself
    _check_searches(loaded, data)
    scores, ids = index.search(data.queries, 10)
    for copy in (first, loaded):
        copy_scores, copy_ids = copy.search(data.queries, 10)
        same = np.array_equal(scores, copy_scores) and np.array_equal(ids, copy_ids)
        require(same, "a saved and loaded index gives different results")
