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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError

from ragfm.chunking import ChunkSettings
from ragfm.core.config import Settings, load_settings
from ragfm.core.durable_files import beside, sync_folder
from ragfm.core.errors import (
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionReadOnlyError,
    DamagedCollectionError,
    RagfmError,
)
from ragfm.core.registry import make
from ragfm.embedders import load_embedder
from ragfm.store.catalog import Catalog, Generation, OvertakenError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.database import FILE, HEAD, LOST_HEAD
from ragfm.store.embedding_contract import check_contract, make_contract
from ragfm.store.index_selection import choose_kind, default_memory
from ragfm.store.migrations import is_old
from ragfm.store.snapshot import Snapshot, open_snapshot
from ragfm.store.views import FOLDER as VIEWS
from ragfm.store.views import View, save_view

if TYPE_CHECKING:
    from ragfm.core.types import Embedder, Reranker, Scalar

_log = logging.getLogger(__name__)
LOCK = "LOCK"
UPLOADS = "uploads"
"""The folder, within a collection's, of the files that were uploaded to it."""
UPLOADS_SOURCE = ".uploads"
"""Their source's name: hidden, so that no folder of users is called so."""
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 10.0
"""How long a writer waits for another one to end."""
_ATTEMPTS = 5  # at reading while others compact
_SMALL = 5_000  # chunks, whose view is written anew at any change
_LONG_TAIL = 10_000  # chunks after which a search gets slow
_GROWN = 50_000  # chunks that a sync brings in before it first writes a view in its middle
T = TypeVar("T")

_embedders: WeakValueDictionary[str, Embedder] = WeakValueDictionary()
"""By name and contract, those that are in use: collections with the same one share it."""


class Store:
    """The shared inside of all handles on one collection. Nothing is opened before it is needed. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        settings: Settings | None,
        embedder: str | Embedder | None,
        reranker: str | Reranker | None = None,
    ) -> None:
        self.folder = folder
        self._settings = settings
        self._given = embedder
        self._reranker = reranker
        self.language_changed: Callable[[Mapping[str, Scalar], str | None], None] = lambda *_: None
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._embedders: dict[int, Embedder] = {}  # by contract
        self._snapshot: Snapshot | None = None
        self._file: tuple[int, int] | None = None
        self._stands_on: object = None  # state of the folder of views, and contract, that a snapshot was opened for
        self._loading = threading.Lock()
        self._opening: threading.Thread | None = None
        self._grown_from: int | None = None  # chunks when a view was last written

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
        for _ in range(2):  # it may be made just now
            has_head = (self.folder / HEAD).exists()
            has_catalog = (self.folder / FILE).exists() or is_old(self.folder)
            if has_head == has_catalog:
                return has_catalog
        if has_catalog:
            raise DamagedCollectionError(f"{self.folder / HEAD} is missing.", LOST_HEAD)
        raise DamagedCollectionError(
            f"{self.folder / FILE} is missing.", "Restore the collection from a backup, or ingest its sources anew."
        )

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
                if is_old(self.folder):
                    with self.writing():
                        pass  # whoever writes brings it to this version's schema
                self._file = _identity(self.folder / FILE)  # before: what takes its place meanwhile is noticed later
                self._catalog = Catalog(self.folder)
            return self._catalog

    def embedder(self, generation: Generation | None = None) -> Embedder:
        """The embedder of a generation, else of the newest. Raises EmbedderMismatchError where another was given."""
        generation = generation or self.catalog.at()
        with self._loading:  # seconds, in which others go on with what is loaded
            known = self._embedders.get(generation.contract_id)
            if known is None:
                asked = self._asked(str(generation.contract["embedder"]))
                known = _shared_embedder(asked, generation.contract) if isinstance(asked, str) else asked
                check_contract(generation.contract, known)
                self._embedders[generation.contract_id] = known
            return known

    @property
    def reranker(self) -> Reranker | None:
        """The reranker that the caller gave or the settings name, if any. Raises as `registry.make` does."""
        with self._lock:
            named = self._reranker or self.settings.search.reranker
            if isinstance(named, str):
                named = self._reranker = make("rerankers", named)
            return named

    @property
    def names_embedder(self) -> bool:
        """Whether the caller or the settings ask for an embedder, rather than leave it to the collection."""
        return self._given is not None or "embedder" in self.settings.model_fields_set

    def chunk_settings(self, window: int) -> ChunkSettings:
        """How documents are split; a size over the embedder's window, in tokens, is the window, and said so."""
        size = self.settings.chunk.size
        if size is not None and size > int(window):
            _log.warning("chunk.size is %d, but the embedder takes %s tokens: chunks have at most those.", size, window)
        return ChunkSettings(size=size, overlap=self.settings.chunk.overlap)

    def read(self, action: Callable[[Snapshot], T]) -> T:
        """Do something with the newest snapshot; again with a newer one, where compaction has overtaken it."""
        return self.read_catalog(lambda _: action(self.snapshot()))

    def read_catalog(self, action: Callable[[Catalog], T]) -> T:
        """The same with the catalog alone. Where another collection has taken its place, all is of the new one."""
        for _ in range(_ATTEMPTS):
            file = _identity(self.folder / FILE)
            if self._catalog is not None and self._file != file:
                self.close()
            try:
                result = action(self.catalog)
            except OvertakenError:
                continue
            except CollectionError:
                if _identity(self.folder / FILE) == file:
                    raise
                continue
            if _identity(self.folder / FILE) == file:  # else it may be of both: a new connection opens the new file
                return result
        raise CollectionBusyError(f"{self.folder} changes faster than it can be read.", "Run it again.")

    def snapshot(self) -> Snapshot:
        """The newest generation. Raises OvertakenError where another process replaces what is being read.

        The first one is read whole. Later ones add what came and went since, and a newer view or another embedder is
        opened in the background while the older one still serves.
        """
        current = self._snapshot
        newest = self.catalog.at() if current is None else self.catalog.newest(current.generation)
        stands_on = (_state(self.folder / VIEWS), newest.contract_id)
        if current is None or current.generation.id != newest.id or stands_on != self._stands_on or not current.usable:
            with self._lock:
                current = self._snapshot
                if current is None or not current.usable:
                    current = self._snapshot = open_snapshot(
                        self.folder, self.catalog, newest, language=self.settings.language
                    )
                    self._stands_on = stands_on
                else:
                    current = self._follow(current, newest)
                    if stands_on != self._stands_on and self._opening is None:
                        self._stands_on = stands_on
                        self._opening = threading.Thread(target=self._open_newer, name="ragfm-open-view", daemon=True)
                        self._opening.start()
        return current

    def _follow(self, current: Snapshot, newest: Generation) -> Snapshot:
        """The snapshot brought to the newest generation, as far as its embedder goes."""
        try:
            if newest.contract_id != current.generation.contract_id:
                if self.catalog.floor() > current.generation.id:
                    raise OvertakenError
            elif newest.id > current.generation.id:
                self._snapshot = current = current.extend(newest)
        except OvertakenError:
            self._snapshot = None  # it has missed too much, and starts anew
            raise
        return current

    def _open_newer(self) -> None:
        """Open the newest view, and the embedder that it needs, and let them serve from then on."""
        try:
            newest = self.catalog.at()
            if self._embedders:  # else none was needed so far
                self.embedder(newest).embed_queries([""])
            opened = open_snapshot(self.folder, self.catalog, newest, language=self.settings.language)
            with self._lock:
                current = self._snapshot
                if current is not None:
                    later = current.generation
                    behind = later.contract_id == newest.contract_id and later.id > newest.id
                    self._snapshot = opened.extend(later) if behind else opened
        except OvertakenError:
            self._stands_on = None  # looked for again by the next search
        except RagfmError as error:
            _log.warning("%s: what is newer can't be opened, the older generation serves on: %s", self.folder, error)
        finally:
            self._opening = None

    def settle(self) -> None:
        """Wait until what is opened in the background serves."""
        with self._lock:  # else it may not have been started
            opening = self._opening
        if opening is not None:
            opening.join()

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
        except OSError as error:
            raise CollectionError(f"{lock.lock_file} can't be locked: {error.strerror}.", "Run this again.") from error
        try:
            try:
                sync_folder(self.folder.parent)  # whoever has made the folder may not have come to it
            except OSError as error:
                raise CollectionError(
                    f"{self.folder.parent} can't be synced: {error.strerror}.", "Nothing was written. Run this again."
                ) from error
            with contextlib.suppress(OSError):  # it only serves a better message
                self._holder_file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            catalog = CatalogWriter(self.folder)
            try:
                yield catalog
            finally:
                catalog.close()
        finally:
            with contextlib.suppress(OSError):  # the lock itself says whether it is held
                self._holder_file.unlink()
            lock.release()

    def save_view(self, catalog: Catalog, *, always: bool = False) -> None:
        """Write a view of the newest generation where that pays: see `_pays`. The caller holds the lock."""
        newest = catalog.at()
        snapshot = open_snapshot(self.folder, catalog, newest, language=self.settings.language)
        kind, _ = self.kind(newest, snapshot.view)
        if always or self._pays(snapshot, kind):
            grown = snapshot.pending > (len(snapshot.view.index) if snapshot.view else 0)
            language = self.settings.language
            stale = grown or (snapshot.view is not None and snapshot.view.language != language)
            keywords = snapshot.new_keywords() if stale else snapshot.keywords()
            save_view(self.folder, catalog, newest, kind, keywords=keywords, language=language)
            before = snapshot.view.keywords if snapshot.view else None
            if before is None or before.language != keywords.language:
                self.language_changed(newest.contract, keywords.language)
            if self._snapshot is not None:
                self.snapshot()
                self.settle()

    def adopt(self, asked: str | Embedder, embedder: Embedder, contract_id: int) -> None:
        """Go on with the embedder that the collection was switched to."""
        self._given = asked
        self._embedders[contract_id] = embedder

    def save_grown_view(self, catalog: CatalogWriter) -> None:
        """Write a view in the middle of a sync, where the collection has doubled: else readers compare all that is new.

        The caller holds the lock.
        """
        count = catalog.at().chunks
        if self._grown_from is None or count > 2 * self._grown_from + _GROWN:
            if self._grown_from is not None:
                self.save_view(catalog)
            self._grown_from = count

    def _pays(self, snapshot: Snapshot, kind: str) -> bool:
        view = snapshot.view
        if view is None or view.kind != kind or view.language != self.settings.language:
            return True
        least = 0 if len(view.index) < _SMALL else min(len(view.index) // 10, _LONG_TAIL)
        return snapshot.pending > least

    def kind(self, generation: Generation, view: View | None) -> tuple[str, str]:
        """The kind of index that the newest generation should have, and why."""
        asked = self.settings.index
        if asked != "auto":
            return asked, "It is set."
        memory = self.settings.index_memory_mb
        limit = default_memory() if memory is None else memory << 20
        current = view.kind if view else None
        return choose_kind(generation.chunks, int(generation.contract["dim"]), limit, current=current)

    def close(self) -> None:
        """Close the catalog and let go of the snapshot; the next use opens them again."""
        self.settle()
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()
            self._catalog = self._snapshot = self._stands_on = None
            self._embedders = {}

    def _asked(self, default: str) -> str | Embedder:
        """The embedder that the caller gave, else the one that the settings name, else the default."""
        named = self.settings.embedder if "embedder" in self.settings.model_fields_set else default
        return self._given or named

    def _create(self) -> None:
        asked = self._asked(self.settings.embedder)
        embedder = load_embedder(asked) if isinstance(asked, str) else asked
        contract = make_contract(embedder, asked)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise CollectionError(
                f"{self.folder} is not empty and holds no collection.", "Name another folder with -c."
            )
        temporary = beside(self.folder)
        try:
            temporary.mkdir(parents=True)
            CatalogWriter.create(temporary, contract)
            temporary.rename(self.folder)
        except (OSError, DBAPIError, CollectionError) as error:
            if self.exists:
                return  # another process was faster
            why = error.strerror if isinstance(error, OSError) else str(getattr(error, "orig", error))
            kind = CollectionReadOnlyError if getattr(error, "errno", None) in _NOT_WRITABLE else CollectionError
            raise kind(f"No collection can be made at {self.folder}: {why}.", "Name another folder with -c.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._embedders[1] = embedder

    @property
    def _holder_file(self) -> Path:
        return self.folder / f"{LOCK}.holder"

    def _holder(self) -> str:
        try:
            holder: dict[str, Any] = json.loads(self._holder_file.read_text())
        except (OSError, ValueError):
            return "Another process"
        return f"Process {holder['pid']} on {holder['host']}"


def _state(folder: Path) -> object:
    """What is another one when a view was saved or removed."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _shared_embedder(name: str, contract: Mapping[str, Any]) -> Embedder:
    key = json.dumps([name, dict(contract)], sort_keys=True)
    found = _embedders.get(key)
    if found is None:
        found = load_embedder(name)
        with contextlib.suppress(TypeError):  # a plugin's that can't be referred to weakly
            _embedders[key] = found
    return found
