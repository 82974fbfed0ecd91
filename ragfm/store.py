"""What an open collection holds: its catalog, its newest snapshot, its embedder, and the right to write."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError

from ragfm.catalog import Catalog
from ragfm.chunk import ChunkSettings
from ragfm.commit import CatalogWriter
from ragfm.config import Settings, load_settings
from ragfm.database import FILE, HEAD
from ragfm.durable import sync_folder
from ragfm.embed import load_embedder
from ragfm.errors import (
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionReadOnlyError,
    DamagedCollectionError,
)
from ragfm.sync import check_contract
from ragfm.views import Snapshot, build_view, open_snapshot, save_view

if TYPE_CHECKING:
    from ragfm.types import Embedder

_log = logging.getLogger(__name__)
LOCK = "LOCK"
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 10.0
"""How long a writer waits for another one to end."""


class Store:
    """The shared inside of all handles on one collection. Nothing is opened before it is needed. Thread-safe."""

    def __init__(self, folder: Path, settings: Settings | None, embedder: str | Embedder | None) -> None:
        self.folder = folder
        self._settings = settings
        self._given = embedder
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._embedder: Embedder | None = None
        self._snapshot: Snapshot | None = None
        self._file: tuple[int, int] | None = None

    @property
    def settings(self) -> Settings:
        """The settings given, else those of `ragfm.toml` beside the folder."""
        with self._lock:
            if self._settings is None:
                self._settings = load_settings(self.folder.parent)
            return self._settings

    @property
    def exists(self) -> bool:
        """Whether there is a collection in the folder. Raises DamagedCollectionError where half of one is."""
        has_head, has_catalog = ((self.folder / name).exists() for name in (HEAD, FILE))
        if has_catalog != has_head:  # unless it was being made just then
            has_head, has_catalog = ((self.folder / name).exists() for name in (HEAD, FILE))
        if has_catalog != has_head:
            missing = HEAD if has_catalog else FILE
            raise DamagedCollectionError(f"{self.folder / missing} is missing.", "Restore it from a backup.")
        return has_catalog

    @property
    def catalog(self) -> Catalog:
        """The catalog, for reading. Raises CollectionNotFound."""
        with self._lock:
            if self._catalog is None:
                if not self.exists:
                    raise CollectionNotFound(
                        f"There is no collection at {self.folder}.",
                        "Make one with `ragfm ingest FOLDER`, or name another with -c.",
                    )
                self._catalog = Catalog(self.folder)
                self._file = _identity(self.folder / FILE)
            return self._catalog

    @property
    def embedder(self) -> Embedder:
        """The embedder, checked against the collection's contract. Raises EmbedderMismatchError."""
        with self._lock:
            if self._embedder is None:
                _, contract = self.catalog.contract()
                embedder = self._load(str(contract["embedder"]))
                check_contract(contract, embedder)
                self._embedder = embedder
            return self._embedder

    @property
    def names_embedder(self) -> bool:
        """Whether the caller or the settings ask for an embedder, rather than leave it to the collection."""
        return self._given is not None or "embedder" in self.settings.model_fields_set

    @property
    def chunk_settings(self) -> ChunkSettings:
        """How documents are split; a size over the embedder's window is the window, and said so."""
        window = self.catalog.contract()[1]["max_tokens"]
        size = self.settings.chunk.size
        if size is not None and size > int(window):
            _log.warning("chunk.size is %d, but the embedder takes %s tokens: chunks have at most those.", size, window)
        return ChunkSettings(size=size, overlap=self.settings.chunk.overlap)

    def snapshot(self) -> Snapshot:
        """The newest generation. A search holds on to the snapshot that it was given."""
        with self._lock:
            if self._catalog is not None and self._file != _identity(self.folder / FILE):
                self.close()  # another collection has taken its place
                self._embedder = None
            self._snapshot = open_snapshot(self.folder, self.catalog, self.settings.index, self._snapshot)
            return self._snapshot

    @contextmanager
    def writing(self) -> Iterator[CatalogWriter]:
        """The catalog for writing, made if there is none, under the lock that there is one of.

        Raises CollectionBusyError, which names the holder, and CollectionReadOnlyError.
        """
        if not self.exists:
            self._create()
        if not os.access(self.folder, os.W_OK):
            raise CollectionReadOnlyError(
                f"The collection {self.folder} can't be written: its folder is read-only.",
                "Searching and asking still work.",
            )
        lock = FileLock(self.folder / LOCK, timeout=LOCK_SECONDS, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise CollectionBusyError(
                f"{self._holder()} is writing to {self.folder}.", "Wait for it to end, then run this again."
            ) from error
        try:
            with contextlib.suppress(OSError):  # it only serves a better message
                self._holder_file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            catalog = CatalogWriter(self.folder)
            try:
                yield catalog
            finally:
                catalog.close()
        finally:
            self._holder_file.unlink(missing_ok=True)
            lock.release()

    def save_view(self, catalog: Catalog) -> None:
        """Bring the saved view up to the newest generation, if it isn't. The caller holds the lock."""
        snapshot = open_snapshot(self.folder, catalog, self.settings.index, self._snapshot)
        if snapshot.view.folder is not None and snapshot.is_view:
            return
        view = snapshot.view if snapshot.is_view else build_view(catalog, self.settings.index, snapshot.generation)
        view = save_view(self.folder, catalog, view)
        with self._lock:
            self._snapshot = Snapshot(catalog, view, view.generation)

    def close(self) -> None:
        """Close the catalog and let go of the snapshot; the next use opens them again."""
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()
            self._catalog = self._snapshot = None

    def _load(self, default: str) -> Embedder:
        asked = self._asked(default)
        return load_embedder(asked) if isinstance(asked, str) else asked

    def _asked(self, default: str) -> str | Embedder:
        """The embedder that the caller gave, else the one that the settings name, else the default."""
        named = self.settings.embedder if "embedder" in self.settings.model_fields_set else default
        return self._given or named

    def _create(self) -> None:
        embedder = self._load(self.settings.embedder)
        contract = dict(embedder.fingerprint)
        asked = self._asked(self.settings.embedder)
        name = asked if isinstance(asked, str) else str(contract["model"])
        # A relative path would mean another folder to who opens the collection from elsewhere.
        contract["embedder"] = str(Path(name).expanduser().absolute()) if Path(name).expanduser().exists() else name
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise CollectionError(
                f"{self.folder} is not empty and holds no collection.", "Name another folder with -c."
            )
        temporary = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.new")
        try:
            temporary.mkdir(parents=True)
            CatalogWriter.create(temporary, contract)
            temporary.rename(self.folder)
            sync_folder(self.folder.parent)
        except (OSError, DBAPIError, CollectionError) as error:
            if self.exists:
                return  # another process was faster
            why = error.strerror if isinstance(error, OSError) else str(getattr(error, "orig", error))
            kind = CollectionReadOnlyError if getattr(error, "errno", None) in _NOT_WRITABLE else CollectionError
            raise kind(f"No collection can be made at {self.folder}: {why}.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._embedder = embedder

    @property
    def _holder_file(self) -> Path:
        return self.folder / f"{LOCK}.holder"

    def _holder(self) -> str:
        try:
            holder: dict[str, Any] = json.loads(self._holder_file.read_text())
        except (OSError, ValueError):
            return "Another process"
        return f"Process {holder['pid']} on {holder['host']}"


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
