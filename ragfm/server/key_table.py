"""API keys in the database of a collection, so that all servers of that database accept the same ones."""

from __future__ import annotations

import sqlalchemy as sa
from pydantic import ValidationError

from ragfm.core.errors import CollectionNotFound, ConfigError
from ragfm.server.api_keys import Key, hash_secret, new_key
from ragfm.store.postgres_database import PostgresDatabase

_METADATA = sa.MetaData()
_keys = sa.Table(
    "server_keys",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("sha256", sa.String, nullable=False, unique=True),
    sa.Column("key", sa.JSON, nullable=False),
)


class KeyTable:
    """The keys of the servers of a collection on PostgreSQL, in its schema. Thread-safe.

    The table is created by the first key, which needs the role that owns the collection; the servers only read it.
    Changes take effect with the next request. All methods raise CollectionError if the database cannot be used.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self._database = PostgresDatabase(address)
        self.path = self._database.location

    def keys(self) -> tuple[Key, ...]:
        """All keys in order of creation. Raises ConfigError if one is not valid."""
        return self._select(sa.select(_keys.c.key).order_by(_keys.c.id))

    def find(self, secret: str) -> Key | None:
        """The key with this secret, or None. Raises ConfigError if it is not valid."""
        # The database compares hashes of random secrets, so the time it takes tells nothing of use.
        found = self._select(sa.select(_keys.c.key).where(_keys.c.sha256 == hash_secret(secret)))
        return found[0] if found else None

    def add(self, key: Key) -> str:
        """Add a key. Returns its secret, which is not stored. Raises ConfigError if the name is taken."""
        secret, stored = new_key(key)
        if not self._database.exists:
            raise CollectionNotFound(
                f"There is no collection at '{self.path}'.", "Create one with `ragfm ingest FOLDER`."
            )
        with self._database.committing() as connection:
            _METADATA.create_all(connection)
            row = {"name": key.name, "sha256": stored.sha256, "key": stored.model_dump(mode="json")}
            taken = connection.scalar(sa.select(_keys.c.id).where(_keys.c.name == key.name))
            if taken is None:
                connection.execute(_keys.insert(), row)
        if taken is not None:
            raise ConfigError(f"The key {key.name!r} already exists.", "Revoke it first, or use another name.")
        return secret

    def revoke(self, name: str) -> None:
        """Delete a key. Running servers refuse it from the next request on. Raises ConfigError if there is none."""
        try:
            with self._database.committing() as connection:
                deleted = connection.execute(_keys.delete().where(_keys.c.name == name)).rowcount
        except CollectionNotFound:  # there is no table
            deleted = 0
        if not deleted:
            raise ConfigError(f"There is no key {name!r} in '{self.path}'.", "`ragfm keys list` shows all keys.")

    def _select(self, query: sa.Select[tuple[object]]) -> tuple[Key, ...]:
        try:
            with self._database.reading() as connection:
                rows = connection.execute(query).scalars().all()
        except CollectionNotFound:  # no key was added yet
            return ()
        try:
            return tuple(Key.model_validate(row) for row in rows)
        except ValidationError as error:
            raise ConfigError(f"A key in '{self.path}' is not valid.", "Revoke it, or update ragfm.") from error
