from __future__ import annotations

import os
from pathlib import Path

import pytest

from ragfm.core.registry import plugins
from ragfm.store.index_selection import choose_kind, default_memory, index_bytes

GB = 10**9


@pytest.mark.parametrize(
    ("count", "memory", "kind"),
    [
        (0, 4 * GB, "faiss-flat"),
        (52_000, 4 * GB, "faiss-flat"),
        (53_000, 4 * GB, "faiss-hnsw"),
        (50_000, 50_000_000, "faiss-hnsw"),  # flat is fast enough, but takes 77 MB
        (1_000_000, 4 * GB, "faiss-hnsw"),
        (1_000_000, 800_000_000, "faiss-hnsw"),
        (1_000_000, 600_000_000, "faiss-ivf"),
        (50_000_000, 4 * GB, "faiss-ivf"),
    ],
)
def test_size_and_memory_choose_the_kind(count: int, memory: int, kind: str) -> None:
    assert choose_kind(count, 384, memory)[0] == kind
    assert kind in plugins("indexes")


def test_more_dimensions_count_as_more_vectors() -> None:
    assert choose_kind(15_000, 1024, 4 * GB)[0] == "faiss-flat"
    assert choose_kind(30_000, 1024, 4 * GB)[0] == "faiss-hnsw"


def test_the_reason_is_a_sentence_with_numbers() -> None:
    assert choose_kind(30_000, 384, 4 * GB)[1] == (
        "30,000 vectors of 384 dimensions are few enough for an exhaustive search, in about 2 ms."
    )
    assert choose_kind(1_000_000, 384, 4 * GB)[1] == (
        "1,000,000 vectors of 384 dimensions are too many for an exhaustive search; their graph takes 668 MB of 4.0 GB."
    )
    assert choose_kind(1_000_000, 384, GB // 2)[1] == (
        "A graph of 1,000,000 vectors of 384 dimensions takes 668 MB of at most 500 MB; faiss-ivf takes 406 MB."
    )
    assert "also above the limit" in choose_kind(1_000_000, 384, GB // 5)[1]


def test_a_collection_around_a_limit_keeps_its_kind() -> None:
    assert choose_kind(50_000, 384, 4 * GB, current="faiss-hnsw")[0] == "faiss-hnsw"
    assert "already" in choose_kind(50_000, 384, 4 * GB, current="faiss-hnsw")[1]
    assert choose_kind(40_000, 384, 4 * GB, current="faiss-hnsw")[0] == "faiss-flat"
    assert choose_kind(53_000, 384, 4 * GB, current="faiss-flat")[0] == "faiss-hnsw"  # growing is not put off
    assert choose_kind(1_000_000, 384, 700_000_000, current="faiss-ivf")[0] == "faiss-ivf"
    assert choose_kind(1_000_000, 384, GB, current="faiss-ivf")[0] == "faiss-hnsw"
    assert choose_kind(50_000, 384, 4 * GB, current="faiss-ivf")[0] == "faiss-hnsw"  # one step at a time
    assert choose_kind(30_000, 384, 4 * GB, current="faiss-ivf")[0] == "faiss-flat"
    assert choose_kind(50_000, 384, 4 * GB, current="somebody-else's")[0] == "faiss-flat"


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw", "faiss-ivf"])
def test_estimated_size_matches_the_files(kind: str, tmp_path: Path) -> None:
    import numpy as np

    from ragfm.core.registry import load_plugin

    vectors = np.random.default_rng(0).standard_normal((5000, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    load_plugin("indexes", kind).build(np.arange(5000), vectors).save(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == pytest.approx(index_bytes(kind, 5000, 64), rel=0.1)


def test_default_memory_is_at_most_a_quarter() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < default_memory() <= physical // 4
