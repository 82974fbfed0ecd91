"""Uploads as files in the collection's folder. An acknowledged upload is stored completely before it is indexed.

    uploads/3f9c51d2a07be846/report.pdf         a folder for each upload, so that names are not visible to others
    uploads/3f9c51d2a07be846/.ragfm-access      the groups that may see it, the uploader's own group first

The folder is a source named `.uploads`, which `ragfm ingest` without arguments syncs like any other.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ragfm.core.durable_files import create_file, sync_folder, write_error
from ragfm.server.api_keys import OWN_GROUP_PREFIX
from ragfm.store.collection_store import UPLOADS, UPLOADS_SOURCE

ACCESS_FILE = ".ragfm-access"
_ID = re.compile(r"[0-9a-f]{16}")
_MAX_NAME_BYTES = 200  # of 255 that file systems allow
_MAX_SUFFIX_BYTES = 20
_OVERHEAD_BYTES = 12 * 2**10  # of the folder and its access file
_UNSAFE_CHARACTERS = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file. `owner` is the own group of the uploading key, `bytes` its size on disk with its folder."""

    uri: str
    owner: str
    bytes: int


class UploadQuotaError(Exception):
    """An owner's uploads use `used` bytes, and there is no room for `size` more."""

    def __init__(self, used: int, size: int) -> None:
        super().__init__(f"{used:,} bytes are used, and {size:,} more are needed")
        self.used, self.size = used, size


class Uploads:
    """The uploads of one collection. Thread-safe."""

    def __init__(self, collection: Path) -> None:
        self.folder = collection / UPLOADS
        self._lock = threading.Lock()
        self._cache: dict[str, Upload] = {}  # by id; an upload never changes
        self._reserved: Counter[str] = Counter()  # by owner, bytes of the uploads being written

    def store(self, file: BinaryIO, name: str, groups: list[str], *, max_bytes: float = math.inf) -> Upload:
        """Store a file for these groups, the uploader's own group first. After the return no crash can lose it.

        Raises UploadQuotaError if all uploads of the owner would use more than `max_bytes`.
        """
        owner = groups[0]
        file.seek(0, os.SEEK_END)
        size = file.tell() + _OVERHEAD_BYTES
        file.seek(0)
        with self._lock:
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
        return Upload(f"{UPLOADS_SOURCE}/{number}/{file_name}", owner, size)

    def find(self, uri: str, owner: str) -> Upload | None:
        """The owner's upload that a document is or is part of."""
        number = upload_id(uri)
        upload = self._read(self.folder / number) if number else None
        if upload is None or upload.owner != owner:
            return None
        return upload if uri == upload.uri or uri.startswith(f"{upload.uri}/") else None

    def owned_by(self, owner: str) -> Iterator[Upload]:
        """The uploads of a key's own group, in order of URI."""
        yield from (upload for upload in self.all() if upload.owner == owner)

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

    def remove_incomplete(self) -> None:
        """Delete the remains of uploads and deletions that a crash interrupted before they were acknowledged."""
        for folder in self.folder.glob(".*") if self.folder.exists() else ():
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path) -> Upload | None:
        try:
            owner = (folder / ACCESS_FILE).read_text(encoding="utf-8").split("\n", 1)[0]
            files = [entry for entry in folder.iterdir() if entry.name != ACCESS_FILE]
            if not files or not owner.startswith(OWN_GROUP_PREFIX):
                return None
            size = files[0].stat().st_size + _OVERHEAD_BYTES
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
    stem, dot, suffix = base.rpartition(".")
    if dot:
        suffix = f".{_first_bytes(suffix, _MAX_SUFFIX_BYTES)}"
    else:
        stem, suffix = suffix, ""
    return f"{_first_bytes(stem.strip(), _MAX_NAME_BYTES - len(suffix.encode())) or 'document'}{suffix}"


def _first_bytes(text: str, limit: int) -> str:
    """The first characters of a text, with up to `limit` bytes in UTF-8."""
    return text.encode()[:limit].decode("utf-8", "ignore")
