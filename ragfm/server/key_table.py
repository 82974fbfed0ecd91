"""API keys in the database of a collection, so that all servers of that database accept the same ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from time import monotonic, time
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql import insert

from ragfm.core.errors import CollectionError, CollectionNotFound, ConfigError
from ragfm.server.api_keys import Key, RequestCounter, find_key, hash_secret, new_key, rotated_key
from ragfm.server.json_logging import log_event
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.tables import DATABASE_NOW
from ragfm.store.tables import server_keys as _keys
from ragfm.store.tables import server_rates as _rates

_RETRY_SECONDS = 30.0
"""How long this server counts requests alone after the database could not."""
_ROUNDING = 1e-6  # of the arithmetic with times, in seconds
_log = logging.getLogger(__name__)


def _take_query() -> sa.Select[Any]:
    """Count a request if it is allowed. The row says whether it is, and in how many seconds the allowance was complete.

    Of the key's allowance of a minute, each request takes an interval, which comes back in that time.
    """
    interval, allowance = (sa.bindparam(name, type_=sa.Double) for name in ("interval", "allowance"))
    full = sa.func.greatest(_rates.c.until, DATABASE_NOW) + interval  # when the allowance would be complete again
    taken = (
        insert(_rates)
        .values(name=sa.bindparam("name"), until=DATABASE_NOW + interval)
        .on_conflict_do_update(
            index_elements=[_rates.c.name], set_={"until": full}, where=full - DATABASE_NOW <= allowance
        )
        .returning(_rates.c.name)
        .cte("taken")
    )
    before = sa.select(_rates.c.until - DATABASE_NOW).where(_rates.c.name == sa.bindparam("name")).scalar_subquery()
    return sa.select(sa.exists(sa.select(taken.c.name)), before)


_TAKE = _take_query()  # built once: each request executes it


class KeyTable:
    """The keys of the servers of a collection on PostgreSQL, in its schema. Thread-safe.

    Changes take effect with the next request. All methods raise CollectionError if the database cannot be used.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self._database = PostgresDatabase(address)
        self.path = self._database.location
        self._alone = RequestCounter()  # counts while the database cannot
        self._alone_until = 0.0

    def keys(self) -> tuple[Key, ...]:
        """All keys in order of creation. Raises ConfigError if one is not valid."""
        return self._select(sa.select(_keys.c.key).order_by(_keys.c.id))

    def find(self, secret: str) -> Key | None:
        """The key with this secret, or None. Raises ConfigError if it is not valid."""
        # The database compares hashes of random secrets, so the time it takes tells nothing of use.
        digest = hash_secret(secret)
        is_its_secret = sa.or_(_keys.c.sha256 == digest, _keys.c.key["previous_sha256"].as_string() == digest)
        found = self._select(sa.select(_keys.c.key).where(is_its_secret))
        return found[0] if found and found[0].has_secret(digest) else None

    def add(self, key: Key) -> str:
        """Add a key. Returns its secret, which is not stored. Raises ConfigError if the name is taken."""
        secret, stored = new_key(key)
        if not self._database.exists:
            raise CollectionNotFound(
                f"There is no collection at '{self.path}'.", "Create one with `ragfm ingest FOLDER`."
            )
        with self._database.committing() as connection:
            row = {"name": key.name, "sha256": stored.sha256, "key": stored.model_dump(mode="json")}
            taken = connection.scalar(sa.select(_keys.c.id).where(_keys.c.name == key.name))
            if taken is None:
                connection.execute(_keys.insert(), row)
        if taken is not None:
            raise ConfigError(f"The key {key.name!r} already exists.", "Revoke it first, or use another name.")
        return secret

    def rotate(self, name: str, overlap: timedelta, expires: datetime | None = None) -> str:
        """Replace a key's secret, as `KeyFile.rotate`."""
        secret, rotated = rotated_key(find_key(self.keys(), name, self.path), overlap, expires)
        with self._database.committing() as connection:
            row = {"sha256": rotated.sha256, "key": rotated.model_dump(mode="json")}
            unchanged = sa.and_(_keys.c.name == name, _keys.c.sha256 == rotated.previous_sha256)
            if not connection.execute(_keys.update().where(unchanged).values(row)).rowcount:
                raise ConfigError(f"The key {name!r} was just changed by another process.", "Run the command again.")
        return secret

    def last_used(self) -> Mapping[str, datetime]:
        """When each key was last used, by name."""
        try:
            with self._database.reading() as connection:
                until = {row.name: row.until for row in connection.execute(sa.select(_rates))}
        except CollectionNotFound:  # no key was added yet
            return {}
        used = {}
        for key in self.keys():
            if key.name in until:  # a key that has made many requests at once would be a minute in the future
                at = datetime.fromtimestamp(min(until[key.name] - 60 / key.per_minute, time()), UTC)
                if at >= datetime.fromisoformat(key.created):  # else of an earlier key of that name
                    used[key.name] = at
        return used

    def revoke(self, name: str) -> None:
        """Delete a key. Running servers refuse it from the next request on. Raises ConfigError if there is none."""
        try:
            with self._database.committing() as connection:
                deleted = connection.execute(_keys.delete().where(_keys.c.name == name)).rowcount
        except CollectionNotFound:  # there is no table
            deleted = 0
        if not deleted:
            raise ConfigError(f"There is no key {name!r} in '{self.path}'.", "`ragfm keys list` shows all keys.")

    def take(self, key: Key) -> float:
        """Count a request of the key on any server. Returns 0, or the seconds until the next one.

        While the database cannot count, as for a role that may only read, each server does, and says so in its log.
        """
        if monotonic() < self._alone_until:
            return self._alone.take(key.name, key.per_minute)
        interval, allowance = 60 / key.per_minute, max(1.0, key.per_minute) * 60 / key.per_minute
        request = {"name": key.name, "interval": interval, "allowance": allowance + _ROUNDING}
        try:
            with self._database.committing() as connection:
                allowed, left = connection.execute(_TAKE, request).one()
        except CollectionError as error:
            self._alone_until = monotonic() + _RETRY_SECONDS
            message = f"Each server counts requests alone for {_RETRY_SECONDS:g} s: {error.message}"
            log_event(_log, logging.WARNING, "rates_unshared", message)
            return self._alone.take(key.name, key.per_minute)
        return 0.0 if allowed else max(_ROUNDING, left + interval - allowance)

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
