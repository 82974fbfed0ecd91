"""Uploads, as files in the collection's folder: what was acknowledged lies there, whole, before it is indexed.

    uploads/3f9c51d2a07be846/report.pdf         one folder for each, so that nobody learns of another's names
    uploads/3f9c51d2a07be846/.ragfm-access      the groups that may see it, the uploader's own first

The folder is a source of its own, called `.uploads`: `ragfm ingest` without arguments brings it in as any other.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ragfm.core.durable_files import sync_folder
from ragfm.server.api_keys import OWN
from ragfm.store.collection_store import UPLOADS, UPLOADS_SOURCE

__all__ = ["NoRoomError", "Upload", "Uploads"]

_ACCESS = ".ragfm-access"
_ID = re.compile(r"[0-9a-f]{16}")
_LONGEST = 150  # characters of a name
_OVERHEAD = 12 * 2**10  # bytes: a folder, and a file that says who may see it
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was uploaded: its address, the group of the key that it was uploaded with, and the room it takes."""

    uri: str
    owner: str
    bytes: int

    def holds(self, uri: str) -> bool:
        """Whether a document is the upload, or lies in it."""
        return uri == self.uri or uri.startswith(f"{self.uri}/")


class NoRoomError(Exception):
    """An owner's uploads take so many bytes that there is no room for one of `wanted` bytes more."""

    def __init__(self, taken: int, wanted: int) -> None:
        super().__init__(f"{taken:,} bytes are taken, and {wanted:,} more are wanted")
        self.taken, self.wanted = taken, wanted


class Uploads:
    """The uploads of one collection. Thread-safe."""

    def __init__(self, collection: Path) -> None:
        self.folder = collection / UPLOADS
        self._lock = threading.Lock()
        self._known: dict[str, Upload] = {}
        """By number, those that were read: an upload never changes."""
        self._coming: Counter[str] = Counter()
        """By owner, the bytes of those that are being written."""

    def store(self, file: BinaryIO, name: str, groups: list[str], *, most: float = math.inf) -> Upload:
        """Keep a file, for these groups, the uploader's own first. When this returns, no crash can lose it.

        Raises NoRoomError where all that the uploader has would take more than `most` bytes.
        """
        file.seek(0, os.SEEK_END)
        taken = _taken_by(file.tell())
        file.seek(0)
        with self._room(groups[0], taken, most):
            return Upload(self._store(file, name, groups), groups[0], taken)

    def _store(self, file: BinaryIO, name: str, groups: list[str]) -> str:
        self.folder.mkdir(exist_ok=True)
        number, named = secrets.token_hex(8), fit_name(name)
        making = self.folder / f".{number}"
        making.mkdir(mode=0o700)
        try:
            _write(making / _ACCESS, "\n".join(groups).encode())
            with (making / named).open("xb") as kept:
                shutil.copyfileobj(file, kept, 2**20)
                kept.flush()
                os.fsync(kept.fileno())
            sync_folder(making)
            making.rename(self.folder / number)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        sync_folder(self.folder)
        sync_folder(self.folder.parent)
        return f"{UPLOADS_SOURCE}/{number}/{named}"

    @contextmanager
    def _room(self, owner: str, wanted: int, most: float) -> Iterator[None]:
        """Keep room for an upload until it is there."""
        with self._lock:
            taken = self._coming[owner] + sum(upload.bytes for upload in self.of(owner))
            if taken + wanted > most:
                raise NoRoomError(taken, wanted)
            self._coming[owner] += wanted
        try:
            yield
        finally:
            with self._lock:
                self._coming[owner] -= wanted

    def find(self, uri: str) -> Upload | None:
        """The upload that a document is, or lies in."""
        number = number_of(uri)
        found = self._read(self.folder / number) if number else None
        return found if found and found.holds(uri) else None

    def of(self, owner: str) -> Iterator[Upload]:
        """The uploads of a key's own group, in order of address."""
        yield from (upload for upload in self.all() if upload.owner == owner)

    def all(self) -> Iterator[Upload]:
        """All uploads, in order of address."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if _ID.fullmatch(entry.name))
        except FileNotFoundError:
            names = []
        known = self._known
        found = {name: upload for name in names if (upload := known.get(name) or self._read(self.folder / name))}
        self._known = found
        yield from found.values()

    def remove(self, upload: Upload) -> None:
        """Delete an upload's file, for good."""
        going = self.folder / f".{secrets.token_hex(8)}"
        (self.folder / str(number_of(upload.uri))).rename(going)
        sync_folder(self.folder)
        shutil.rmtree(going)

    def clean(self) -> None:
        """Delete what a crash has left half done: nobody was told that it is there, or that it has gone."""
        for folder in self.folder.glob(".*") if self.folder.exists() else ():
            shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path) -> Upload | None:
        try:
            file = next((entry for entry in folder.iterdir() if entry.name != _ACCESS), None)
            owner = (folder / _ACCESS).read_text(encoding="utf-8").split("\n", 1)[0]
            if file is None or not owner.startswith(OWN):
                return None
            return Upload(f"{UPLOADS_SOURCE}/{folder.name}/{file.name}", owner, _taken_by(file.stat().st_size))
        except OSError:  # removed meanwhile
            return None


def _taken_by(size: int) -> int:
    """The room that a file of so many bytes takes, with its folder: many small ones take some, too."""
    return size + _OVERHEAD


def number_of(uri: str) -> str | None:
    """The number of the upload that a document is, or lies in; None where it is none."""
    source, _, rest = uri.partition("/")
    number = rest.partition("/")[0]
    return number if source == UPLOADS_SOURCE and _ID.fullmatch(number) else None


def fit_name(name: str) -> str:
    """A file's name without what a path could be made of; it is never hidden, never too long, never empty."""
    fit = _UNFIT.sub("_", unicodedata.normalize("NFC", name.replace("\\", "/").rsplit("/", 1)[-1]))
    stem, dot, suffix = fit.encode("utf-8", "replace").decode().strip(". ").rpartition(".")
    stem, suffix = (stem, f".{suffix[:20]}") if dot else (suffix, "")
    return f"{stem.strip()[: _LONGEST - len(suffix)] or 'document'}{suffix}"


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
