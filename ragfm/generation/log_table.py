"""The answer log as a table of a collection's database, which all its servers and commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ragfm.core.errors import CollectionError, CollectionNotFound, CollectionUnavailableError, LogError
from ragfm.generation.log_entries import JSON_COLUMNS, LogEntry, LogFilter, encode_row, make_entries, timestamp
from ragfm.store.tables import answer_log

if TYPE_CHECKING:
    from ragfm.store.postgres import PostgresDatabase

T = TypeVar("T")


class LogTable:
    """The entries in a database. Implements LogStorage. Thread-safe."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self.path = database.location

    def insert(self, row: Mapping[str, Any]) -> int:
        """Store an entry. Returns its id."""
        # If the first attempt lost its connection after the commit, the second one finds the row.
        query = insert(answer_log).values(_encoded(row)).on_conflict_do_nothing(index_elements=["rating_id"])

        def store() -> int:
            with self._database.committing() as connection:
                connection.execute(query)
                number = sa.select(answer_log.c.id).where(answer_log.c.rating_id == row["rating_id"])
                return int(connection.execute(number).scalar_one())

        return self._run(store)

    def select(self, which: LogFilter) -> list[LogEntry]:
        """The entries that match a filter, oldest first. With `groups`, only those that its policies show to them."""

        def read() -> list[LogEntry]:
            with self._database.reading() as connection:
                if which.groups is not None:
                    self._database.restrict(connection, which.groups)
                return _select(connection, which)

        return self._run(read)

    def change(self, which: LogFilter, values: Callable[[LogEntry], Mapping[str, Any] | None]) -> int:
        """Change the columns that `values` gives for each entry, or delete the entry. Returns how many."""

        def write() -> int:
            with self._database.committing() as connection:
                entries = _select(connection, which, lock=True)
                for entry in entries:
                    row, changed = answer_log.c.id == entry.id, values(entry)
                    if changed is None:
                        connection.execute(answer_log.delete().where(row))
                    else:
                        connection.execute(answer_log.update().where(row).values(_encoded(changed)))
            return len(entries)

        return self._run(write)

    def erase(self) -> None:
        """Let the server write the table to a new file, which needs its owner. WAL and backups keep older states."""
        if not self._run(lambda: self._database.rewrite(answer_log.name)):
            raise LogError(
                f"The entries are deleted, but the files of '{self.path}' still have them: only the table's owner may "
                "rewrite it.",
                "Run the command again as the owner of the collection.",
            )

    def _run(self, action: Callable[[], T]) -> T:
        try:
            try:
                return action()
            except CollectionUnavailableError:  # the server was restarted: the first failure closes old connections
                return action()
        except CollectionNotFound as error:
            raise LogError(
                f"There is no answer log in '{self.path}'.", "The owner of the collection adds it with `ragfm ingest`."
            ) from error
        except CollectionError as error:
            raise LogError(f"The answer log in '{self.path}' cannot be used: {error.message}", error.hint) from error


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without characters that the database refuses. JSON stays decoded."""
    encoded = encode_row(row)
    encoded |= {name: json.loads(encoded[name]) for name in JSON_COLUMNS if isinstance(encoded.get(name), str)}
    return {name: value.replace("\0", "?") if isinstance(value, str) else value for name, value in encoded.items()}


def _select(connection: sa.Connection, which: LogFilter, *, lock: bool = False) -> list[LogEntry]:
    query = sa.select(answer_log).order_by(answer_log.c.id)
    if which.ids:
        query = query.where(answer_log.c.id.in_(which.ids))
    if which.older_than is not None:
        query = query.where(answer_log.c.at < timestamp(datetime.now(UTC) - which.older_than))
    if which.thumbs is not None:
        query = query.where(answer_log.c.thumbs == which.thumbs)
    if which.rating_id is not None:
        query = query.where(answer_log.c.rating_id == which.rating_id)
    rows = connection.execute(query.with_for_update() if lock else query).mappings()
    return list(make_entries(map(dict, rows), which))
