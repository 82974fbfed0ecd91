"""A snapshot whose vectors are searched by a server, such as pgvector or Milvus.

The server has a row for each vector or chunk, which writers add. Chunks without a row are the tail of the snapshot, so
results do not depend on how complete the server is. Words are searched as by the backend `local`, and scores are
computed from the catalog's vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ragfm.core.config import Settings
from ragfm.core.types import Ids, Vectors
from ragfm.store.catalog import Catalog, Generation
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.snapshot import Snapshot
from ragfm.store.tables import chunks


class VectorServerSnapshot(Snapshot, ABC):
    """The chunks of a collection at one generation, with their vectors on a server. Thread-safe."""

    views_have_vectors = False
    kind: ClassVar[str]
    place: ClassVar[str]
    """Where the vectors are, in words."""

    @classmethod
    def save(
        cls,
        catalog: Catalog,
        settings: Settings,
        *,
        always: bool = False,
        language_changed: Callable[[Generation, str | None], None],
    ) -> bool:
        """Update the rows of the server, if the caller holds the lock, and save the words as `local` does."""
        updated = cls._update_rows(catalog, settings) if isinstance(catalog, CatalogWriter) else 0
        saved = super().save(catalog, settings, always=always, language_changed=language_changed)
        return saved or updated > 0

    @classmethod
    @abstractmethod
    def _update_rows(cls, catalog: CatalogWriter, settings: Settings) -> int:
        """Bring the rows to the newest generation. Returns the number of new or changed ones."""

    @property
    @abstractmethod
    def _has_rows(self) -> bool:
        """Whether the server had rows of this embedding contract when the snapshot was opened."""

    @abstractmethod
    def _without_row(self, generation: Generation, after: int) -> Ids:
        """The chunks at a generation, born after another one, that the server cannot find."""

    def _read_born(self, generation: Generation) -> tuple[Ids, Ids, Vectors]:
        catalog, after = self._catalog, self.generation.id
        born = catalog.chunk_ids(generation.id, chunks.c.born > after)
        if self.is_start:
            after = -1  # the server may lack older vectors than the words of the view
        if not self._has_rows:
            return born, *catalog.chunk_vectors(generation, born_after=after)
        missing = np.setdiff1d(self._without_row(generation, after), self._tail_ids)
        return born, *catalog.vectors_of(generation, missing.tolist())

    def status(self, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The state of the server's rows and of the keyword index."""
        vectors, words = super().status(settings)
        missing = len(self._tail_ids)
        state = {
            "kind": self.kind if self._has_rows else None,
            "wanted": self.kind,
            "why": f"The backend {self.kind} is set: vectors are searched in {self.place}.",
            "generation": self.generation.id,
            "vectors": len(self) - missing,
            "pending": missing,
            "state": f"in {self.place}" if self._has_rows else "none",
            "saved": self._has_rows,
        }
        return {**vectors, **state}, words
