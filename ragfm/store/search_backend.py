"""The seam between search and the indexes of a collection: `SearchBackend`, and the `Predicate` of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from typing import Self

    from ragfm.core.config import Settings
    from ragfm.core.types import Ids, Vectors
    from ragfm.store.catalog import Catalog, Generation
    from ragfm.store.filters import Condition


@dataclass(frozen=True, slots=True)
class Predicate:
    """Which chunks a search may return: those of documents that match a filter and that access groups may see.

    `groups` is None for the owner, who sees everything. Tags and access rights are those of the generation `now`, even
    if an older one is searched. `conditions` says the same in SQL, about the table `documents`.
    """

    filter: str | None
    groups: frozenset[str] | None
    now: int
    conditions: tuple[Condition, ...] = field(compare=False)

    def visible_part(self, catalog: Catalog) -> Catalog:
        """The catalog, without the rows that the groups may not see if the database can hide them."""
        return catalog if self.groups is None else catalog.restricted_to(self.groups)


class SearchBackend(Protocol):
    """The chunks of a collection at one generation, searchable by vectors and by words. Thread-safe.

    The catalog has all chunks and vectors. A backend keeps indexes of them where it likes, which `save` updates and
    `open` opens. Searches see the generation exactly, whatever the state of the indexes: `local` searches chunks that
    its indexes lack exhaustively. Scores are those of the catalog's vectors. All methods that read raise StaleReadError
    once compaction has deleted rows of the generation.

    `ragfm.store.snapshot.Snapshot` is the backend `local`. A backend that only searches vectors in another way can
    extend it, as `pgvector` does. Registered as entry point `ragfm.backends`; `ragfm.testing.check_backend` is the
    contract test.
    """

    generation: Generation

    @classmethod
    def save(
        cls,
        catalog: Catalog,
        settings: Settings,
        *,
        always: bool = False,
        language_changed: Callable[[Generation, str | None], None],
    ) -> bool:
        """Update the indexes to the newest generation if they are outdated, or always. Returns whether it did.

        The caller holds the collection's lock if `catalog` is a CatalogWriter. If not, only indexes of this machine may
        change. `language_changed` is called if the words are in another language than before. Raises CollectionError.
        """

    @classmethod
    def differences(
        cls, catalog: Catalog, settings: Settings, *, repair: bool = False
    ) -> Iterator[tuple[str, str, str, str]]:
        """Compare what is stored outside of the local views with the newest generation of the catalog.

        Returns place, item, expected and actual value of each difference. With `repair`, the caller holds the lock, and
        the differences are corrected. Nothing that is stored is not a difference.
        """

    @classmethod
    def open(cls, catalog: Catalog, generation: Generation, settings: Settings) -> Self:
        """The backend at a generation. Raises CollectionError."""

    def extend(self, generation: Generation) -> Self:
        """The backend at a later generation under the same contract."""

    def prepare(self, earlier: Self) -> None:
        """Do what the first searches would have to do, as far as searches of the earlier generation needed it."""

    def __len__(self) -> int:
        """Number of chunks."""

    @property
    def usable(self) -> bool:
        """False once an index turns out to be damaged."""

    @property
    def outdated(self) -> bool:
        """Whether searches are slow until `save` is called and the newest generation is opened."""

    @property
    def language(self) -> str | None:
        """The language of the words, as ISO 639-1."""

    def matches(self, where: Predicate) -> bool:
        """Whether a chunk meets the predicate."""

    def search(self, query: Vectors, k: int, where: Predicate | None = None) -> tuple[Vectors, Ids]:
        """Cosines and chunk ids of the best `k`, best first, equal ones by id; fewer only if fewer chunks match.

        *Shape:* query (1, dim), results (m,) with m <= k.
        """

    def search_keywords(self, query: str, k: int, where: Predicate | None = None) -> tuple[Vectors, Ids]:
        """BM25 scores and chunk ids of the best `k`, best first; fewer if fewer chunks share a word with the query."""

    def cosines(self, query: Vectors, ids: Ids) -> Vectors:
        """Cosines of these chunks. *Shape:* (1, dim), (n,) -> (n,)."""

    def bm25(self, query: str, ids: Ids) -> Vectors:
        """BM25 scores of these chunks, 0 without a common word. *Shape:* ids, ascending, (n,) -> (n,)."""

    def documents_of(self, ids: Ids) -> tuple[Ids, list[str]]:
        """The id of each chunk's document, and the chunk's context. *Shape:* (n,) -> (n,)."""

    def report_missing_chunks(self, ids: Ids) -> NoReturn:
        """Raise StaleReadError, since not all of these chunks, which a search returned, could be read."""

    def status(self, settings: Settings) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The state of the indexes over vectors and over words, for `ragfm status`."""
