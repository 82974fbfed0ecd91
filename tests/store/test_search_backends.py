from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm.core.registry import load_plugin
from ragfm.store.snapshot import Snapshot
from ragfm.testing import check_backend


def test_local_keeps_the_contract_in_a_folder(tmp_path: Path) -> None:
    check_backend(load_plugin("backends", "local"), tmp_path / "collection")


@pytest.mark.slow
def test_local_keeps_the_contract_on_postgresql(address: str) -> None:
    check_backend(Snapshot, address)


@pytest.mark.slow
@pytest.mark.usefixtures("_pgvector")
@pytest.mark.parametrize("few", [20, 4_000])
def test_pgvector_keeps_the_contract(few: int, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm_backends.pgvector_backend._FEW", few)  # above it, searches use the index
    check_backend(load_plugin("backends", "pgvector"), address)


class Unfiltered(Snapshot):
    def search(self, query: Any, k: int, where: Any = None) -> Any:
        return super().search(query, k)


class FilteredAfterwards(Snapshot):
    def search(self, query: Any, k: int, where: Any = None) -> Any:
        scores, ids = super().search(query, k)
        kept = np.isin(ids, self._allowed_by(where)[0])
        return scores[kept], ids[kept]


class WithoutGroups(Snapshot):
    def search(self, query: Any, k: int, where: Any = None) -> Any:
        return super().search(query, k, where if where is None or where.filter else None)


class WithDeadChunks(Snapshot):
    def extend(self, generation: Any) -> Any:
        later = super().extend(generation)
        later._dead = later._dead[:0]
        return later


class WithoutTail(Snapshot):
    def search(self, query: Any, k: int, where: Any = None) -> Any:
        self._tail_ids, self._tail = self._tail_ids[:0], self._tail[:0]
        return super().search(query, min(k, len(self)), None)


class HalfPrecision(Snapshot):
    def search(self, query: Any, k: int, where: Any = None) -> Any:
        scores, ids = super().search(query, k, where)
        return scores.astype(np.float16).astype(np.float32), ids


class Newest(Snapshot):
    """Searches the newest generation instead of its own."""

    def search(self, query: Any, k: int, where: Any = None) -> Any:
        newest = self._catalog.at()
        current = self if newest.id == self.generation.id else self.extend(newest)
        return Snapshot.search(current, query, k, where)


class WordsUnfiltered(Snapshot):
    def search_keywords(self, query: str, k: int, where: Any = None) -> Any:
        return super().search_keywords(query, k)


@pytest.mark.parametrize(
    ("backend", "violation"),
    [
        (Unfiltered, "do not meet the predicate"),
        (FilteredAfterwards, "hits, expected"),
        (WithoutGroups, "groups frozenset"),
        (WithDeadChunks, "since the last save"),
        (WithoutTail, "before they are saved"),
        (HalfPrecision, "scores are not the cosines"),
        (Newest, "an earlier generation"),
        (WordsUnfiltered, "words, filter"),
    ],
)
def test_the_contract_notices_a_violation(backend: type[Snapshot], violation: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=violation):
        check_backend(backend, tmp_path / "collection")
