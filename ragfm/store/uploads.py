"""Uploads as files in the collection's folder, and their records.

    uploads/3f9c51d2a07be846/report.pdf         a folder for each upload, so that names are not visible to others
    catalog.db                                  a record of each upload in the table `uploads`, with a checksum

The record decides who may see an upload: the groups in it, the uploader's own group first. If it is missing or
damaged, nobody may.

An acknowledged upload is stored completely before it is indexed. The uploads are a source named `.uploads`, which
`ragfm ingest` without arguments syncs like any other. While an upload is stored or removed, its folder has a hidden
name, `.ID`.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

import sqlalchemy as sa
import xxhash

from ragfm.core.durable_files import create_file, sync_folder, write_error
from ragfm.core.errors import CollectionError, ConnectorError
from ragfm.store.sqlite_driver import sqlite
from ragfm.store.sqlite_file import CATALOG_FILE, open_connection, read_error
from ragfm.store.tables import uploads as uploads_table

UPLOADS = "uploads"
"""Name of the folder, inside a collection, that holds uploaded files."""
UPLOADS_SOURCE = ".uploads"
"""Name of their source. It starts with a dot, so that no folder of a user has the same name."""
UPLOADS_ADDRESS = "uploads://"
"""Location of the source, if the uploads are in the database."""
_ID = re.compile(r"[0-9a-f]{16}")
_MAX_NAME_BYTES = 200  # of 255 that file systems allow
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,20}\Z")
OVERHEAD_BYTES = 12 * 2**10
"""What each upload takes besides its content: a folder and a record."""
_UNSAFE_CHARACTERS = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file. `owner` is the own group of the uploading key, `bytes` its size on disk with its folder.

    `error` is why it is not indexed, if that failed.
    """

    uri: str
    owner: str
    bytes: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """The valid record of an upload: its file's name, the groups that may see it, and the digest of its content.

    The uploader's own group is the first.
    """

    name: str
    groups: tuple[str, ...]
    digest: str


class UploadQuotaError(Exception):
    """An owner's uploads use `used` bytes, and there is no room for `size` more."""

    def __init__(self, used: int, size: int) -> None:
        super().__init__(f"{used:,} bytes are used, and {size:,} more are needed")
        self.used, self.size = used, size


class UploadsWaitingError(Exception):
    """As many uploads of an owner as are allowed wait to be indexed."""


class UploadFolder:
    """The uploads as files. Which ones are pending is known to the server's process only. Thread-safe."""

    shared = False
    """Whether other servers use it too. Then they have to be polled for work, and one of them has the turn."""

    def __init__(self, collection: Path) -> None:
        self._collection = collection
        self.folder = collection / UPLOADS
        self.source = str(self.folder)
        """The location of the source."""
        self._lock = threading.Lock()
        self._cache: dict[str, Upload] = {}  # by id; an upload never changes
        self._reserved: Counter[str] = Counter()  # by owner, bytes of the uploads being written
        self._failed: Mapping[str, str] = {}  # by URI, why an upload is not indexed
        # By id, the owner of each upload that is not indexed completely, and the time from which it was known. The
        # owner of a deletion is empty.
        self._pending: dict[str, tuple[str, float]] = {}

    def store(
        self,
        file: BinaryIO,
        name: str,
        groups: list[str],
        *,
        max_bytes: float = math.inf,
        max_waiting: float = math.inf,
    ) -> Upload:
        """Store a file for these groups, the uploader's own group first. After the return no crash can lose it.

        Raises UploadQuotaError if all uploads of the owner would use more than `max_bytes`, UploadsWaitingError if
        `max_waiting` of them are not indexed yet.
        """
        owner = groups[0]
        file.seek(0, os.SEEK_END)
        size = file.tell() + OVERHEAD_BYTES
        file.seek(0)
        with self._lock:
            if sum(owner == other for other, _ in self._pending.values()) >= max_waiting:
                raise UploadsWaitingError
            used = self._reserved[owner] + sum(upload.bytes for upload in self.owned_by(owner))
            if used + size > max_bytes:
                raise UploadQuotaError(used, size)
            self._reserved[owner] += size
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            number, file_name = secrets.token_hex(8), safe_file_name(name)
            temporary = self.folder / f".{number}"
            temporary.mkdir(mode=0o700)
            try:
                with create_file(temporary / file_name) as copy:
                    shutil.copyfileobj(file, copy, 2**20)
                    copy.flush()
                    os.fsync(copy.fileno())
                sync_folder(temporary)
                file.seek(0)
                values = upload_values(number, file_name, groups, size, content_digest(file))
                self._insert([values])
                temporary.rename(self.folder / number)
            except BaseException:
                self._forget(temporary)
                raise
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise write_error("upload", self.folder, error) from error
        finally:
            with self._lock:
                self._reserved[owner] -= size
        with self._lock:
            self._pending[number] = owner, monotonic()
        return Upload(f"{UPLOADS_SOURCE}/{number}/{file_name}", owner, size)

    def find(self, uri: str, owner: str) -> Upload | None:
        """The owner's upload that a document is or is part of."""
        upload = self._get(upload_id(uri) or "")
        if upload is None or upload.owner != owner:
            return None
        belongs = uri == upload.uri or uri.startswith(f"{upload.uri}/")
        return self._with_error(upload) if belongs else None

    def owned_by(self, owner: str) -> Iterator[Upload]:
        """The uploads of a key's own group, in order of URI."""
        yield from (self._with_error(upload) for upload in self.all() if upload.owner == owner)

    def all(self) -> Iterator[Upload]:
        """All uploads in order of URI."""
        ids = self._ids()
        if set(ids) - self._cache.keys():
            self._cache = {number: upload_of(row) for number, row in self._rows().items() if valid_record(row)}
        known = self._cache
        yield from (known[number] for number in ids if number in known)

    def owner_of_path(self, path: str) -> str:
        """The owner of the upload that a path below the folder belongs to; empty if there is no such upload."""
        upload = self._get(path.partition("/")[0])
        return upload.owner if upload else ""

    def _get(self, number: str) -> Upload | None:
        if number not in self._cache:
            list(self.all())
        return self._cache.get(number) if (self.folder / number).exists() else None

    def records(self) -> dict[str, UploadRecord]:
        """The valid records by id. Nobody may see an upload that is not among them. Raises CollectionError."""
        ids = set(self._ids())
        found = {number: valid_record(row) for number, row in self._rows().items() if number in ids} if ids else {}
        return {number: record for number, record in found.items() if record is not None}

    def differences(self) -> Iterator[tuple[str, str, str, str]]:
        """What differs from the records: the upload, what it is, the expected and the actual value."""
        ids = self._ids()  # before the records, which an upload gets first
        rows = self._rows()
        for number in sorted({*rows, *ids}):
            place, folder, row = f"{UPLOADS}/{number}", self.folder / number, rows.get(number)
            if row is None:
                if folder.exists():
                    yield place, "its record", "there", "missing, so nobody may see it"
                continue
            if (actual := record_checksum(row)) != row["checksum"]:
                yield place, "the checksum of its record", str(row["checksum"]), f"{actual}, so nobody may see it"
                continue
            try:
                with (folder / row["name"]).open("rb") as file:
                    if (actual := content_digest(file)) != row["digest"]:
                        yield place, f"the checksum of {row['name']}", row["digest"], actual
            except OSError as error:
                # Otherwise it is being stored, or was removed meanwhile.
                if not folder.with_name(f".{number}").exists() and number in self._rows():
                    found = "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
                    yield place, Path(error.filename).name, "there", found

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes to the catalog, whoever holds the collection's lock. Raises CollectionError."""
        try:
            with (
                open_connection(self._collection, writable=True) as connection,
                connection.execution_options(begin="BEGIN IMMEDIATE").begin(),
            ):
                yield connection
        except (sa.exc.DatabaseError, sqlite.Error) as error:
            raise write_error("record of an upload", self._collection / CATALOG_FILE, error) from error

    def _rows(self) -> dict[str, Mapping[str, Any]]:
        try:
            with open_connection(self._collection) as connection:
                return {row["id"]: dict(row) for row in connection.execute(sa.select(uploads_table)).mappings()}
        except (sa.exc.DatabaseError, sqlite.Error) as error:
            raise read_error(self._collection, error) from error

    def _ids(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if _ID.fullmatch(entry.name))
        except FileNotFoundError:
            return []

    def copy_records(self, other: UploadFolder) -> None:
        """Add the readable records that another collection, whose uploads were copied here, has of them."""
        known, found = self._rows(), list[Mapping[str, Any]]()
        columns = [uploads_table.c[name] for name in ("id", "owner", "name", "groups", "bytes", "digest", "checksum")]
        for number in self._ids():
            if number not in known:
                with suppress(sa.exc.DatabaseError, sqlite.Error), open_connection(other._collection) as connection:
                    rows = connection.execute(sa.select(*columns).where(uploads_table.c.id == number))
                    found += map(dict, rows.mappings())
        self._insert(found)

    def drop_records(self) -> None:
        """Delete the records of uploads that are not here."""
        if gone := self._rows().keys() - self._ids():
            with self._writing() as connection:
                connection.execute(uploads_table.delete().where(uploads_table.c.id.in_(gone)))

    def _insert(self, records: Sequence[Mapping[str, Any]]) -> None:
        if records:
            rows = [{**values, "created": time.time(), "state": "ready"} for values in records]
            with self._writing() as connection:
                connection.execute(uploads_table.insert(), rows)

    def remove(self, upload: Upload) -> None:
        """Delete an upload's file. Raises FileNotFoundError if it does not exist."""
        number = str(upload_id(upload.uri))
        removed = self.folder / f".{number}"
        (self.folder / number).rename(removed)
        sync_folder(self.folder)
        self._forget(removed)
        with self._lock:
            self._pending[number] = "", monotonic()

    def _forget(self, hidden: Path) -> None:
        """Delete the record and the hidden folder of an upload that is not stored."""
        try:
            with self._writing() as connection:
                number = hidden.name.removeprefix(".")
                connection.execute(uploads_table.delete().where(uploads_table.c.id == number))
        except CollectionError:  # a full disk, for example: its empty folder stays for `remove_leftovers`
            with suppress(OSError):
                for file in hidden.iterdir():
                    file.unlink()
        else:
            shutil.rmtree(hidden, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete the remains of uploads and deletions that a crash interrupted before they were acknowledged."""
        for folder in self.folder.glob(".*") if self.folder.exists() else ():
            self._forget(folder)

    def poll(self) -> tuple[bool, bool]:
        """Whether this server may have to index uploads or deletions, and whether another one has the turn."""
        return self.folder.exists(), False

    def turn(self) -> AbstractContextManager[bool]:
        """Whether this process may index. It always may: the collection's lock is enough."""
        return nullcontext(True)

    def pending(self) -> Mapping[str, str]:
        """The uploads and deletions that are not indexed yet, by id, with a state that `record_slice` compares.

        Empty: the process that indexes does not know them, and settles all.
        """
        return {}

    def record_slice(self, *, failed: Mapping[str, str], waiting: Mapping[str, str], began: float, **_: object) -> None:
        """Record what the indexing process has done in a slice.

        `failed` are the reasons for uploads that are not indexed, by URI; `waiting` the owners of those that wait for a
        later slice, by id; `began` the time by `monotonic`. `settled` are the states, as they were before the slice, of
        uploads that were pending and are done.
        """
        with self._lock:
            self._failed = failed
            later = {number: known for number, known in self._pending.items() if known[1] >= began}
            self._pending = {number: (owner, began) for number, owner in waiting.items()} | later

    def is_pending(self, upload: Upload) -> bool:
        """Whether the upload, or its deletion, is not indexed yet."""
        return upload_id(upload.uri) in self._pending

    def _with_error(self, upload: Upload) -> Upload:
        return replace(upload, error=self._failed.get(upload.uri))


def content_digest(file: BinaryIO) -> str:
    """The digest of the rest of a file."""
    digest = xxhash.xxh3_128()
    while data := file.read(2**20):
        digest.update(data)
    return digest.hexdigest()


def check_content(number: str, digest: str, actual: str) -> None:
    """Raise ConnectorError if the content of an upload does not have its digest."""
    if actual != digest:
        raise ConnectorError(
            f"The upload {number} is damaged: its content has the checksum {actual}, expected {digest}.",
            "Restore it from a backup, or delete it and upload the file again.",
        )


def upload_values(number: str, name: str, groups: Sequence[str], size: int, digest: str) -> dict[str, Any]:
    """The record of an upload, as values of the table `uploads`."""
    values = {"id": number, "owner": groups[0], "name": name, "groups": list(groups), "bytes": size, "digest": digest}
    return values | {"checksum": record_checksum(values)}


def upload_of(row: Mapping[str, Any] | sa.RowMapping) -> Upload:
    """The upload in a row of the table `uploads`."""
    return Upload(f"{UPLOADS_SOURCE}/{row['id']}/{row['name']}", row["owner"], row["bytes"], row["error"])


def valid_record(row: Mapping[str, Any] | sa.RowMapping) -> UploadRecord | None:
    """The record in a row of the table `uploads`; None if it is damaged."""
    if row["checksum"] != record_checksum(row):
        return None
    return UploadRecord(row["name"], tuple(row["groups"]), row["digest"])


def record_checksum(values: Mapping[str, Any] | sa.RowMapping) -> str:
    """The checksum of a record."""
    covered = [values[key] for key in ("id", "owner", "name", "groups", "bytes", "digest")]
    return blake2b(json.dumps(covered).encode(), digest_size=16).hexdigest()


def upload_id(uri: str) -> str | None:
    """The id of the upload that a document is or is part of; None for other documents."""
    source, _, rest = uri.partition("/")
    number = rest.partition("/")[0]
    return number if source == UPLOADS_SOURCE and _ID.fullmatch(number) else None


def safe_file_name(name: str) -> str:
    """A file name without path separators and special characters. It is not hidden, not too long and not empty."""
    base = unicodedata.normalize("NFC", name.replace("\\", "/").rsplit("/", 1)[-1])
    base = _UNSAFE_CHARACTERS.sub("_", base).encode("utf-8", "replace").decode().strip(". ")
    found = _SUFFIX.search(base)
    suffix = found[0] if found else ""
    stem = base.removesuffix(suffix).strip().encode()[: _MAX_NAME_BYTES - len(suffix)].decode("utf-8", "ignore")
    return f"{stem or 'document'}{suffix}"
