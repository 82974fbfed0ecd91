"""What an error of the server means."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from ragfm.core.errors import (
    AccessDeniedError,
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionReadOnlyError,
    CollectionUnavailableError,
    DamagedCollectionError,
    DiskFullError,
)

_TYPES: Mapping[str, type[CollectionError]] = {
    "25006": CollectionReadOnlyError,  # read_only_sql_transaction
    "42501": AccessDeniedError,  # insufficient_privilege
    "42P01": CollectionNotFound,  # undefined_table
    "53100": DiskFullError,  # disk_full
    "XX001": DamagedCollectionError,  # data_corrupted
    "XX002": DamagedCollectionError,  # index_corrupted
    "40001": CollectionBusyError,  # serialization_failure: on a standby, a conflict with recovery
    "40P01": CollectionBusyError,  # deadlock_detected
}


def failure(error: sa.exc.DBAPIError) -> tuple[type[CollectionError], str]:
    """The type of error to raise, and the reason in one line."""
    state = getattr(error.orig, "sqlstate", None) or ""
    # libpq's second line asks "Is the server running …?", which the hint of the error does, too.
    primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)  # without the statement
    why = " ".join((primary or str(error.orig)).partition("\n\tIs the server")[0].split()).rstrip(".")
    # Classes of states: 08 connection exception, 28 authorization, 3D unknown database, 57 server is shut down.
    unknown = not state and not isinstance(error, sa.exc.DataError)  # psycopg itself refuses a NUL
    if error.connection_invalidated or unknown or state[:2] in ("08", "28", "3D", "57"):
        return CollectionUnavailableError, why
    return _TYPES.get(state, CollectionError), why
