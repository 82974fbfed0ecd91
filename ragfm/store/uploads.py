"""Uploads: what a server needs of their storage, and the storage as files in the collection's folder.

    uploads/3f9c51d2a07be846/report.pdf         a folder for each upload, so that names are not visible to others
    uploads/3f9c51d2a07be846/.ragfm-access      the groups that may see it, the uploader's own group first

An acknowledged upload is stored completely before it is indexed. The uploads are a source named `.uploads`, which
`ragfm ingest` without arguments syncs like any other.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Protocol

from ragfm.core.access_groups import OWN_GROUP_PREFIX
from ragfm.core.durable_files import create_file, sync_folder, write_error

UPLOADS = "uploads"
"""Name of the folder, inside a collection, that holds uploaded files."""
UPLOADS_SOURCE = ".uploads"
"""Name of their source. It starts with a dot, so that no folder of a user has the same name."""
UPLOADS_ADDRESS = "uploads://"
"""Location of the source, if the uploads are in the database. An older ragfm finds no folder there."""
ACCESS_FILE = ".ragfm-access"
_ID = re.compile(r"[0-9a-f]{16}")
_MAX_NAME_BYTES = 200  # of 255 that file systems allow
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,20}\Z")
OVERHEAD_BYTES = 12 * 2**10
"""What each upload takes besides its content: a folder and an access file."""
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
class SliceReport:
    """What the indexing process reports after a slice.

    `failed` are the reasons for uploads that are not indexed, by URI; `waiting` the owners of those that wait for a
    later slice, by id; `began` the time by `monotonic`. `settled` are the states, as they were before the slice, of
    uploads that were pending and are done.
    """

    failed: Mapping[str, str]
    waiting: Mapping[str, str]
    began: float
    settled: Mapping[str, str]


class UploadQuotaError(Exception):
    """An owner's uploads use `used` bytes, and there is no room for `size` more."""

    def __init__(self, used: int, size: int) -> None:
        super().__init__(f"{used:,} bytes are used, and {size:,} more are needed")
        self.used, self.size = used, size


class UploadsWaitingError(Exception):
    """As many uploads of an owner as are allowed wait to be indexed."""


class UploadStore(Protocol):
    """The uploads of one collection: `UploadFolder`, or `UploadTable` for all servers of a database. Thread-safe."""

    shared: bool
    """Whether other servers use it too. Then they have to be polled for work, and one of them has the turn."""
    source: str
    """The location of the source."""

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

    def find(self, uri: str, owner: str) -> Upload | None:
        """The owner's upload that a document is or is part of."""

    def owned_by(self, owner: str) -> Iterable[Upload]:
        """The uploads of a key's own group, in order of URI."""

    def all(self) -> Iterable[Upload]:
        """All uploads in order of URI."""

    def owner_of_path(self, path: str) -> str:
        """The owner of the upload that a path of the source belongs to; empty if there is no such upload."""

    def remove(self, upload: Upload) -> None:
        """Delete an upload's file. Raises FileNotFoundError if it does not exist."""

    def begin(self) -> None:
        """Prepare for work after a start: what a crash left is removed."""

    def work(self) -> tuple[bool, bool]:
        """Whether this server may have to index uploads or deletions, and whether another one has the turn."""

    def turn(self) -> AbstractContextManager[bool]:
        """Held by the process that indexes; False if another one holds it."""

    def pending(self) -> Mapping[str, str]:
        """The uploads and deletions that are not indexed yet, by id, with a state that `settle` compares."""

    def settle(self, report: SliceReport) -> None:
        """Record what a slice has done."""

    def is_pending(self, upload: Upload) -> bool:
        """Whether the upload, or its deletion, is not indexed yet."""


class UploadFolder:
    """The uploads as files. Implements UploadStore; which ones are pending is known to the server's process only."""

    shared = False

    def __init__(self, collection: Path) -> None:
        self.folder = collection / UPLOADS
        self.source = str(self.folder)
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
        """Store a file, see UploadStore."""
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
                with create_file(temporary / ACCESS_FILE) as access:
                    access.write("\n".join(groups).encode())
                    access.flush()
                    os.fsync(access.fileno())
                with create_file(temporary / file_name) as copy:
                    shutil.copyfileobj(file, copy, 2**20)
                    copy.flush()
                    os.fsync(copy.fileno())
                sync_folder(temporary)
                temporary.rename(self.folder / number)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
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
        number = upload_id(uri)
        upload = self._read(self.folder / number) if number else None
        if upload is None or upload.owner != owner:
            return None
        belongs = uri == upload.uri or uri.startswith(f"{upload.uri}/")
        return self._with_error(upload) if belongs else None

    def owned_by(self, owner: str) -> Iterator[Upload]:
        """The uploads of a key's own group, in order of URI."""
        yield from (self._with_error(upload) for upload in self.all() if upload.owner == owner)

    def all(self) -> Iterator[Upload]:
        """All uploads in order of URI."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if _ID.fullmatch(entry.name))
        except FileNotFoundError:
            names = []
        cache, uploads = self._cache, dict[str, Upload]()
        for name in names:
            upload = cache.get(name) or self._read(self.folder / name)
            if upload:
                uploads[name] = upload
        self._cache = uploads
        yield from uploads.values()

    def owner_of_path(self, path: str) -> str:
        """The owner of the upload that a path below the folder belongs to; empty if there is no such upload."""
        number = path.partition("/")[0]
        upload = self._cache.get(number) or self._read(self.folder / number)
        if upload is None:
            return ""
        self._cache[number] = upload
        return upload.owner

    def remove(self, upload: Upload) -> None:
        """Delete an upload's file. Raises FileNotFoundError if it does not exist."""
        removed = self.folder / f".{secrets.token_hex(8)}"
        (self.folder / str(upload_id(upload.uri))).rename(removed)
        sync_folder(self.folder)
        shutil.rmtree(removed)
        with self._lock:
            self._pending[str(upload_id(upload.uri))] = "", monotonic()

    def begin(self) -> None:
        """Delete the remains of uploads and deletions that a crash interrupted before they were acknowledged."""
        for folder in self.folder.glob(".*") if self.folder.exists() else ():
            shutil.rmtree(folder, ignore_errors=True)

    def work(self) -> tuple[bool, bool]:
        """Whether there were uploads, and that no other server has the turn."""
        return self.folder.exists(), False

    def turn(self) -> AbstractContextManager[bool]:
        """Always held: the collection's lock is enough."""
        return nullcontext(True)

    def pending(self) -> Mapping[str, str]:
        """Nothing: the process that indexes does not know, and settles all."""
        return {}

    def settle(self, report: SliceReport) -> None:
        """Record what a slice has done."""
        with self._lock:
            self._failed = report.failed
            later = {number: known for number, known in self._pending.items() if known[1] >= report.began}
            self._pending = {number: (owner, report.began) for number, owner in report.waiting.items()} | later

    def is_pending(self, upload: Upload) -> bool:
        """Whether the upload, or its deletion, is not indexed yet."""
        return upload_id(upload.uri) in self._pending

    def _with_error(self, upload: Upload) -> Upload:
        return replace(upload, error=self._failed.get(upload.uri))

    def _read(self, folder: Path) -> Upload | None:
        try:
            owner = (folder / ACCESS_FILE).read_text(encoding="utf-8").split("\n", 1)[0]
            files = [entry for entry in folder.iterdir() if entry.name != ACCESS_FILE]
            if not files or not owner.startswith(OWN_GROUP_PREFIX):
                return None
            size = files[0].stat().st_size + OVERHEAD_BYTES
            return Upload(f"{UPLOADS_SOURCE}/{folder.name}/{files[0].name}", owner, size)
        except OSError:  # removed by another request
            return None


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
