"""The kind of vector index that `index = "auto"` selects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ragfm import Settings
from ragfm.store.catalog import Generation
from ragfm.store.snapshot import wanted_kind


def _wanted(count: int, dim: int, current: str | None = None) -> tuple[str, str]:
    view: Any = SimpleNamespace(kind=current) if current else None
    return wanted_kind(Generation(1, "", 1, {"dim": dim}, count), view, Settings())


@pytest.mark.parametrize(
    ("count", "dim", "current", "kind"),
    [
        (0, 384, None, "faiss-flat"),
        (52_000, 384, None, "faiss-flat"),
        (53_000, 384, None, "faiss-hnsw"),
        (15_000, 1024, None, "faiss-flat"),  # more dimensions count as more vectors
        (30_000, 1024, None, "faiss-hnsw"),
        (50_000, 384, "faiss-hnsw", "faiss-hnsw"),  # just below the limit, it stays
        (40_000, 384, "faiss-hnsw", "faiss-flat"),
        (53_000, 384, "faiss-flat", "faiss-hnsw"),
        (50_000, 384, "somebody-else's", "faiss-flat"),
    ],
)
def test_the_size_selects_the_kind(count: int, dim: int, current: str | None, kind: str) -> None:
    assert _wanted(count, dim, current)[0] == kind


def test_the_reason_is_a_sentence_with_numbers() -> None:
    assert _wanted(30_000, 384)[1] == (
        "30,000 vectors of 384 dimensions are few enough for an exhaustive search, in about 2 ms."
    )
    assert wanted_kind(Generation(1, "", 1, {"dim": 8}, 9), None, Settings(index="faiss-hnsw")) == (
        "faiss-hnsw",
        "It is set.",
    )
