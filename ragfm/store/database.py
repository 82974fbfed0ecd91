"""The interface of a collection's database. `SqliteDatabase` and `PostgresDatabase` provide it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from ragfm.core.errors import CollectionError, DamagedCollectionError

LOCK_SECONDS = 10.0
"""How long a writer waits for another one."""


def is_address(location: str | Path) -> bool:
    """Whether a location is the address of a database, not a folder."""
    return "://" in str(location)


class Database(Protocol):
    """The database of one collection, its lock, and the last acknowledged generation.

    `location` is the folder or address that the user opened, `name` its catalog, for messages.
    """

    location: str
    name: str
    shared: bool
    """Whether other machines use the collection. Then each has its own views, and locations of sources are absolute."""

    @property
    def default_name(self) -> str:
        """The name of the collection on a server if its user does not name it."""

    @property
    def loss_hint(self) -> str:
        """What to do if acknowledged commits were lost."""

    @property
    def folder(self) -> Path:
        """The local folder of HEAD and views. Raises CollectionNotFound if the collection does not exist yet."""

    @property
    def settings_file(self) -> Path:
        """The settings file, which may not exist. Sources are named relative to its folder."""

    @property
    def exists(self) -> bool:
        """Whether the collection exists. Raises DamagedCollectionError if only a part of it does."""

    def identity(self) -> object:
        """A value that changes when another collection takes the place of this one."""

    def creating(self) -> AbstractContextManager[Database]:
        """The database in which to create the collection; it takes its place when the block ends."""

    def create(self, fill: Callable[[sa.Connection], tuple[int, str]]) -> None:
        """Create the tables and let `fill` insert their first rows; it returns the generation and its digest."""

    def lock(self) -> AbstractContextManager[None]:
        """Hold the write lock. Raises CollectionBusyError, which names the holder, and CollectionReadOnlyError."""

    def views_lock(self) -> AbstractContextManager[bool]:
        """Held while views are replaced; False if another process holds it."""

    def open_engine(self, *, writable: bool) -> sa.Engine:
        """An engine whose transactions see one state each. Without `writable`, they cannot write."""

    def fetch(
        self, engine: sa.Engine, query: sa.Select[Any], parameters: Mapping[str, Any], groups: frozenset[str] | None
    ) -> Sequence[Any]:
        """The rows of a query that is run often and built once; with groups, those that `restrict` leaves."""

    def restrict(self, connection: sa.Connection, groups: frozenset[str]) -> None:
        """Hide the rows of documents that none of the groups may see until the transaction ends, if possible."""

    def begin_write(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        """A transaction of the holder of the lock; durable when the block ends."""

    def seal(self, connection: sa.Connection, generation: int, written: Sequence[int]) -> None:
        """Store checksums of the rows of documents that a new generation has written, unless pages have checksums."""

    def damaged_rows(self, connection: sa.Connection) -> Iterator[tuple[str, str, str]]:
        """The uris of documents whose row differs from its checksum, with the expected and the actual one."""

    def unprotected_tables(self, connection: sa.Connection) -> list[str]:
        """The tables whose rows `restrict` should hide, but does not, since they have no policy."""

    @property
    def seen(self) -> tuple[int, str] | None:
        """The newest generation that this process has seen, and its digest, if an older database may turn up."""

    def saw(self, generation: int, digest: str) -> None:
        """Remember a generation that was read."""

    def replaced(self, connection: sa.Connection) -> bool:
        """Whether the database that is being read now holds a different collection."""

    def read_head(self) -> Mapping[str, Any] | None:
        """The last acknowledged `generation` and its `digest`, None if none is known here."""

    def write_head(self, generation: int, digest: str) -> None:
        """Record an acknowledged generation, durably."""

    def read_error(self, error: sa.exc.DatabaseError) -> CollectionError:
        """The error to raise for a failed read."""

    def write_error(self, error: sa.exc.DatabaseError) -> CollectionError:
        """The error to raise for a failed write."""

    def damage_error(self, damage: str) -> DamagedCollectionError:
        """The error to raise for damage of the catalog."""

    def size(self, engine: sa.Engine) -> int:
        """The size of the catalog on disk, in bytes."""

    def shrink(self, engine: sa.Engine) -> None:
        """Return free space to the file system."""
