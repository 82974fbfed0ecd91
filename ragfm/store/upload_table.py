"""Uploads in the database of a collection, which all its servers share.

The bytes are rows of about a megabyte. A deletion remains as a row until a sync has removed the documents.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
import xxhash

from ragfm.core.durable_files import create_file
from ragfm.core.errors import AccessDeniedError
from ragfm.core.types import Ref
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.postgres.lease import UPLOADS_TURN
from ragfm.store.tables import stored_ref, upload_parts, uploads
from ragfm.store.uploads import (
    OVERHEAD_BYTES,
    UPLOADS,
    UPLOADS_ADDRESS,
    UPLOADS_SOURCE,
    Upload,
    UploadQuotaError,
    UploadRecord,
    UploadsWaitingError,
    check_content,
    content_digest,
    record_checksum,
    safe_file_name,
    upload_id,
    upload_of,
    upload_values,
    valid_record,
)

_PART_BYTES = 2**20
_QUEUED, _READY, _FAILED, _REMOVED = "queued", "ready", "failed", "removed"
_PENDING = uploads.c.state.in_((_QUEUED, _REMOVED))


class UploadTable:
    """The uploads of a collection on PostgreSQL. Thread-safe. All methods raise CollectionError."""

    shared = True
    source = UPLOADS_ADDRESS

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._owners: dict[str, str] = {}  # by id
        self._checked = False  # whether the server keeps what it acknowledges

    def store(
        self,
        file: BinaryIO,
        name: str,
        groups: list[str],
        *,
        max_bytes: float = math.inf,
        max_waiting: float = math.inf,
    ) -> Upload:
        """Store a file, as `UploadFolder.store`. The limits hold for the uploads to all servers."""
        if not self._checked:
            self._database.check_server()
            self._checked = True
        owner = groups[0]
        file.seek(0, os.SEEK_END)
        size = file.tell() + OVERHEAD_BYTES
        file.seek(0)
        queued = sa.func.count().filter(uploads.c.state == _QUEUED)
        sums = sa.select(sa.func.coalesce(sa.func.sum(uploads.c.bytes), 0).label("used"), queued.label("queued"))
        with self._database.committing() as connection:
            # One upload of an owner after the other, so that they cannot exceed the limits together.
            lock = sa.func.hashtextextended(f"ragfm uploads {self._database.default_name} {owner}", 0)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
            sums = sums.where(uploads.c.owner == owner, uploads.c.state != _REMOVED)
            owned = connection.execute(sums).one()
            if owned.queued >= max_waiting:
                raise UploadsWaitingError
            if owned.used + size > max_bytes:
                raise UploadQuotaError(int(owned.used), size)
            number, file_name = secrets.token_hex(8), safe_file_name(name)
            values = upload_values(number, file_name, groups, size, content_digest(file))
            insert_upload(connection, values, file, created=time.time())
        return Upload(f"{UPLOADS_SOURCE}/{number}/{file_name}", owner, size)

    def find(self, uri: str, owner: str) -> Upload | None:
        """The owner's upload that a document is or is part of."""
        found = self._select(owner, uploads.c.id == upload_id(uri))
        return next((upload for upload in found if uri == upload.uri or uri.startswith(f"{upload.uri}/")), None)

    def owned_by(self, owner: str) -> list[Upload]:
        """The uploads of a key's own group, in order of URI."""
        return self._select(owner)

    def all(self) -> list[Upload]:
        """All uploads in order of URI."""
        return self._select(None)

    def _select(self, owner: str | None, *conditions: sa.ColumnElement[bool]) -> list[Upload]:
        conditions = (uploads.c.state != _REMOVED, *conditions)
        with self._database.reading() as connection:
            if owner is not None:
                self._database.restrict(connection, frozenset({owner}))
                conditions = (*conditions, uploads.c.owner == owner)
            rows = [row for row in self._rows(connection, *conditions) if valid_record(row) is not None]
        self._owners.update((row["id"], row["owner"]) for row in rows)
        return [upload_of(row) for row in rows]

    def _rows(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Sequence[sa.RowMapping]:
        """Rows without their listing, in order of their ids."""
        columns = [column for column in uploads.c if column.name != "listing"]
        return connection.execute(sa.select(*columns).where(*conditions).order_by(uploads.c.id)).mappings().all()

    def records(self) -> dict[str, UploadRecord]:
        """The valid records by id. Nobody may see an upload that is not among them."""
        with self._database.reading() as connection:
            rows = self._rows(connection, uploads.c.state != _REMOVED)
        found = {row["id"]: valid_record(row) for row in rows}
        return {number: record for number, record in found.items() if record is not None}

    def differences(self) -> Iterator[tuple[str, str, str, str]]:
        """What differs from the records: the upload, what it is, the expected and the actual value."""
        try:
            with self._database.reading() as connection:
                for row in self._rows(connection, uploads.c.state != _REMOVED):
                    place, digest = f"{UPLOADS}/{row['id']}", row["digest"]
                    if valid_record(row) is None:
                        found = f"{record_checksum(row)}, so nobody may see it"
                        yield place, "the checksum of its record", str(row["checksum"]), found
                        continue
                    actual = xxhash.xxh3_128()
                    for data in _parts(connection, row["id"]):
                        actual.update(data)
                    if actual.hexdigest() != digest:
                        yield place, f"the checksum of {row['name']}", digest, actual.hexdigest()
        except AccessDeniedError:  # this role may not read them
            return

    def owner_of_path(self, path: str) -> str:
        """The owner of the upload that a path of the source belongs to; empty if there is no such upload."""
        number = path.partition("/")[0]
        if number not in self._owners:
            self._select(None, uploads.c.id == number)
        return self._owners.get(number, "")

    def remove(self, upload: Upload) -> None:
        """Delete an upload's content. Raises FileNotFoundError if it does not exist."""
        number = upload_id(upload.uri)
        with self._database.committing() as connection:
            row = sa.and_(uploads.c.id == number, uploads.c.state != _REMOVED)
            if not connection.execute(uploads.update().where(row).values(state=_REMOVED, listing=None)).rowcount:
                raise FileNotFoundError(upload.uri)
            connection.execute(upload_parts.delete().where(upload_parts.c.upload_id == number))

    def remove_leftovers(self) -> None:
        """Nothing: an interrupted transaction leaves no rows."""

    def poll(self) -> tuple[bool, bool]:
        """Whether this server can index what is pending, and whether another one has the turn."""
        with self._database.reading() as connection:
            pending = bool(connection.scalar(sa.select(sa.exists(sa.select(uploads.c.id).where(_PENDING)))))
            taken = pending and self._database.turn_is_taken(connection, UPLOADS_TURN)
            return pending and self._database.may_write(connection), taken

    def turn(self) -> AbstractContextManager[bool]:
        """A lease of the process that indexes; False if another one holds it."""
        return self._database.turn(UPLOADS_TURN)

    def pending(self) -> Mapping[str, str]:
        """The states of uploads and deletions that are not indexed yet, by id."""
        with self._database.reading() as connection:
            return {
                row.id: row.state
                for row in connection.execute(sa.select(uploads.c.id, uploads.c.state).where(_PENDING))
            }

    def record_slice(self, *, failed: Mapping[str, str], settled: Mapping[str, str], **_: object) -> None:
        """Record what a slice has done, as `UploadFolder.record_slice`. What was deleted meanwhile remains pending."""
        removed = [number for number, state in settled.items() if state == _REMOVED]
        queued = [number for number in settled if number not in removed]
        errors = {upload_id(uri): error for uri, error in failed.items()}
        with self._database.committing() as connection:
            if removed:
                gone = sa.and_(uploads.c.id.in_(removed), uploads.c.state == _REMOVED)
                connection.execute(uploads.delete().where(gone))
            changed = uploads.update().where(uploads.c.id == sa.bindparam("number"), uploads.c.state != _REMOVED)
            states = [(number, errors.get(number)) for number in queued]
            if states:
                connection.execute(
                    changed.values(state=sa.bindparam("new_state"), error=sa.bindparam("new_error")),
                    [{"number": n, "new_state": _FAILED if e else _READY, "new_error": e} for n, e in states],
                )

    def is_pending(self, upload: Upload) -> bool:
        """Whether the upload, or its deletion, is not indexed yet."""
        query = sa.select(sa.exists(sa.select(uploads.c.id).where(uploads.c.id == upload_id(upload.uri), _PENDING)))
        with self._database.reading() as connection:
            return bool(connection.scalar(query))

    # --- For the source and for copies ---------------------------------------------------------------------------

    def listings(self, listed_with: str) -> dict[str, Sequence[Ref] | None]:
        """The files of each upload by its id, None if they were not listed with this version and these limits."""
        query = sa.select(uploads.c.id, uploads.c.listing, uploads.c.listed_with).where(uploads.c.state != _REMOVED)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(uploads.c.id)).all()
        return {row.id: [*map(stored_ref, row.listing)] if row.listed_with == listed_with else None for row in rows}

    def keep_listing(self, number: str, listed_with: str, refs: Sequence[Ref]) -> None:
        """Store the files of an upload, so that only one process has to look into an archive."""
        values = {"listing": [asdict(ref) for ref in refs], "listed_with": listed_with}
        with self._database.committing() as connection:
            row = sa.and_(uploads.c.id == number, uploads.c.state != _REMOVED)
            connection.execute(uploads.update().where(row).values(values))

    def write_to(self, folder: Path, number: str) -> None:
        """Write the content of an upload to a folder.

        Raises FileNotFoundError if it is gone, ConnectorError if it is damaged.
        """
        with self._database.reading() as connection:
            row = next(iter(self._rows(connection, uploads.c.id == number)), None)
            if row is None or row["state"] == _REMOVED:
                raise FileNotFoundError(number)
            digest = xxhash.xxh3_128()
            with create_file(folder / row["name"]) as file:
                for data in _parts(connection, number):
                    digest.update(data)
                    file.write(data)
        check_content(number, row["digest"], digest.hexdigest())
        os.utime(folder / row["name"], (row["created"], row["created"]))


def insert_upload(connection: sa.Connection, values: Mapping[str, Any], file: BinaryIO, *, created: float) -> None:
    """Insert an upload: its record, see `upload_values`, and the whole content of a file."""
    connection.execute(uploads.insert().values(**values, created=created, state=_QUEUED))
    file.seek(0)
    count = 0
    while data := file.read(_PART_BYTES):
        connection.execute(upload_parts.insert(), {"upload_id": values["id"], "number": count, "data": data})
        count += 1


def _parts(connection: sa.Connection, number: str) -> Iterator[bytes]:
    """The content of an upload in parts."""
    parts = sa.select(upload_parts.c.data).where(upload_parts.c.upload_id == number).order_by(upload_parts.c.number)
    yield from connection.execute(parts.execution_options(stream_results=True, max_row_buffer=2)).scalars()
