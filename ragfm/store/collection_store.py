"""Everything an open collection holds: catalog, newest snapshot, embedder, reranker, and the write lock."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from weakref import WeakValueDictionary

from ragfm.chunking import ChunkSettings
from ragfm.core.config import Settings, load_settings
from ragfm.core.errors import (
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionUnavailableError,
    ConfigError,
    RagfmError,
)
from ragfm.core.registry import load_plugin, make
from ragfm.core.types import Embedder, Reranker
from ragfm.embedders import load_embedder
from ragfm.parsing.parsers import ParserChoice
from ragfm.store.catalog import Catalog, Generation, StaleReadError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.database import is_address
from ragfm.store.embedding_contract import check_contract, make_contract
from ragfm.store.search_backend import SearchBackend
from ragfm.store.snapshot import Snapshot, check_language
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_file import HEAD_FILE
from ragfm.store.uploads import UploadFolder
from ragfm.store.views import VIEWS_FOLDER

if TYPE_CHECKING:
    from ragfm.store.database import Database
    from ragfm.store.postgres import PostgresDatabase
    from ragfm.store.upload_table import UploadTable

UploadStore: TypeAlias = "UploadFolder | UploadTable"
_log = logging.getLogger(__name__)
_READ_ATTEMPTS = 5  # while others commit and compact
_MIN_GROWTH = 50_000  # chunks that a sync must add before it saves a view on the way
T = TypeVar("T")

_embedders: WeakValueDictionary[str, Embedder] = WeakValueDictionary()
"""Embedders in use, by name and contract: collections with the same contract share one."""


def open_database(location: str | Path) -> Database:
    """The database of a folder or of an address. Raises ConfigError for an unknown kind of address."""
    scheme, separator, rest = str(location).partition("://")
    if not is_address(location):
        return SqliteDatabase(Path(os.path.abspath(location)))  # noqa: PTH100  without `..`
    if scheme not in ("postgresql", "postgres"):
        raise ConfigError(
            f"The collection '{location}' cannot be opened: '{scheme}://' is not a known kind of address.",
            "Specify a folder, or `postgresql://user@host/database?collection=NAME`.",
        )
    from ragfm.store.postgres import PostgresDatabase

    return PostgresDatabase(f"postgresql{separator}{rest}")


class Store:
    """The state that all handles of a collection share. Everything is opened at its first use. Thread-safe.

    `language_changed(generation, language)` is called after a new view detected a different language.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings | None,
        embedder: str | Embedder | None,
        reranker: str | Reranker | None = None,
    ) -> None:
        self.database = database
        self.language_changed: Callable[[Generation, str | None], None] = lambda *_: None
        self._settings = settings
        self._embedder_option = embedder
        self._reranker = reranker
        self._rerankers: dict[str, Reranker] = {}
        self._lock = threading.RLock()
        self._refresh_lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._catalog_id: object = None  # identity of the database that is open
        self._embedders: dict[int, Embedder] = {}  # by contract
        self._embedder_lock = threading.Lock()
        self._snapshot: SearchBackend | None = None
        self._opened_for: object = None  # the views and the contract for which a snapshot was last opened
        self._opening: threading.Thread | None = None  # opens a newer view or embedder
        self._views_tried = -1  # generation for which an outdated view was last replaced in the background
        self._sync_chunks: int | None = None  # chunks when a sync last saved a view, None before its first commit

    # --- Settings and models -------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings of the caller, else those of the settings file."""
        with self._lock:
            if self._settings is None:
                self._settings = load_settings(self.database.settings_file)
            return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        with self._lock:
            self._settings = settings

    @property
    def parser_choice(self) -> ParserChoice:
        """Which parser reads which format."""
        parse = self.settings.parse
        return ParserChoice(parse.parsers, parse.fallback or "", parse.images)

    def chunk_settings(self, window: int) -> ChunkSettings:
        """Chunk size in tokens. A size above the embedder's window is logged; the window then applies."""
        size = self.settings.chunk.size
        if size is not None and size > int(window):
            _log.warning("chunk.size is %d, but the embedder accepts %s tokens, which is the limit.", size, window)
        return ChunkSettings(size)

    @property
    def names_embedder(self) -> bool:
        """Whether the caller or the settings name an embedder, rather than leave it to the collection."""
        return self._embedder_option is not None or "embedder" in self.settings.model_fields_set

    @property
    def has_own_embedder(self) -> bool:
        """Whether the caller has passed an embedder, which other processes cannot load by its name."""
        return self._embedder_option is not None and not isinstance(self._embedder_option, str)

    def embedder(self, generation: Generation | None = None) -> Embedder:
        """The embedder of a generation, by default the newest. Raises EmbedderMismatchError if another one is set."""
        generation = generation or self.catalog.at()
        loaded = self._embedders.get(generation.contract_id)
        if loaded is not None:
            return loaded  # without the lock: searches go on while another embedder is loaded
        with self._embedder_lock:  # a lock of its own, since loading takes seconds
            embedder = self._embedders.get(generation.contract_id)
            if embedder is None:
                name = self._embedder_or_name(str(generation.contract["embedder"]))
                embedder = _shared_embedder(name, generation.contract) if isinstance(name, str) else name
                check_contract(generation.contract, embedder)
                self._embedders[generation.contract_id] = embedder
            return embedder

    def _embedder_or_name(self, default: str) -> str | Embedder:
        """The embedder of the caller, else the name in the settings, else the default."""
        named = self.settings.embedder if "embedder" in self.settings.model_fields_set else default
        return self._embedder_option or named

    def adopt(self, name: str | Embedder, embedder: Embedder, contract_id: int) -> None:
        """Use the embedder that the collection was switched to. `name` is its name, or the embedder itself."""
        self._embedder_option = name
        self._embedders[contract_id] = embedder

    def reranker(self, name: str | None = None) -> Reranker | None:
        """A reranker by name, by default that of the caller or of the settings; None for `none`.

        Raises the errors of `make`.
        """
        with self._lock:
            reranker = name or self._reranker or self.settings.search.reranker
            if reranker == "none":
                return None
            if isinstance(reranker, str):
                if reranker not in self._rerankers:
                    self._rerankers[reranker] = make("rerankers", reranker)
                return self._rerankers[reranker]
            return reranker

    # --- Reading -------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The local folder of the views."""
        return self.database.folder

    @property
    def exists(self) -> bool:
        """Whether there is a collection. Raises DamagedCollectionError if only a part of it is there."""
        return self.database.exists

    @property
    def catalog(self) -> Catalog:
        """The catalog, for reading. Raises CollectionNotFound."""
        with self._lock:
            if self._catalog is None:
                if not self.exists:
                    inside = Path(self.database.location, ".ragfm")
                    hint = "Create one with `ragfm ingest FOLDER`, or choose a different folder with -c."
                    raise CollectionNotFound(
                        f"There is no collection at '{self.database.location}'.",
                        f"There is one at '{inside}'." if (inside / HEAD_FILE).exists() else hint,
                    )
                self._catalog_id = self.database.identity()  # before: a later replacement is noticed
                self._catalog = Catalog(self.database)
            return self._catalog

    @property
    def backend(self) -> type[SearchBackend]:
        """The search backend of the settings. Raises the errors of `load_plugin`."""
        name = self.settings.backend
        return Snapshot if name == "local" else load_plugin("backends", name)

    def read(self, action: Callable[[SearchBackend], T], oldest: int | None = None) -> T:
        """Call `action` with the newest snapshot; again with a newer one if it raises StaleReadError.

        With `oldest`, a snapshot that is ready will do if it is of that generation or a later one.
        """

        def call(_: Catalog) -> T:
            nonlocal oldest
            current, least, oldest = self._snapshot, oldest, None  # repeated with the newest
            if current is None or least is None or current.generation.id < least or not current.usable:
                return action(self.snapshot())
            return action(current)

        return self.read_catalog(call)

    def refresh(self) -> None:
        """Prepare the snapshot of the newest generation for searches, while an older one serves."""
        with self._refresh_lock:
            with contextlib.suppress(StaleReadError):  # the following read opens it
                current, newest = self._snapshot, self.catalog.at()
                if (
                    current is not None
                    and current.usable
                    and current.generation.contract_id == newest.contract_id
                    and current.generation.id < newest.id
                ):
                    later = current.extend(newest)
                    later.prepare(current)
                    with self._lock:
                        if self._snapshot is current:
                            self._snapshot = later
            self.read(lambda snapshot: snapshot.language if len(snapshot) else None)

    def read_catalog(self, action: Callable[[Catalog], T]) -> T:
        """Call `action` with the catalog; again if it raises StaleReadError.

        If another collection takes its place meanwhile, the result is entirely from the new one.
        """
        for attempt in range(_READ_ATTEMPTS):
            identity = self.database.identity()
            if self._catalog is not None and self._catalog_id != identity:
                self.close()
            try:
                result = action(self.catalog)
            except StaleReadError:
                continue
            except CollectionUnavailableError:
                if attempt:
                    raise
                continue  # the server was restarted: the first failure closes all connections to it
            except CollectionError:
                if self.database.identity() == identity:
                    raise
                continue
            # Otherwise the connections of one read may have opened different files.
            if self.database.identity() == identity:
                return result
        raise CollectionBusyError(
            f"The collection '{self.database.location}' changes faster than it can be read.", "Run the command again."
        )

    def snapshot(self) -> SearchBackend:
        """The snapshot of the newest generation. Raises StaleReadError if another process replaces what is read.

        The first snapshot is opened at once; later ones extend it by what was born and died. If there is a newer view
        or another embedder, it is opened in the background while the current snapshot serves.
        """
        current = self._snapshot
        if current is not None and self.catalog.generation() == current.generation.id:
            newest = current.generation
        else:
            newest = self.catalog.at()
        views = self.folder / VIEWS_FOLDER
        try:
            views_changed: int | None = views.stat().st_mtime_ns
        except FileNotFoundError:
            views_changed = None
        wanted = (views_changed, newest.contract_id)
        if current is not None and current.usable and current.generation.id == newest.id and wanted == self._opened_for:
            return current

        with self._lock:
            current = self._snapshot
            if current is None or not current.usable:
                self._snapshot = self._open_snapshot(newest)
                self._opened_for = wanted
                return self._snapshot
            try:
                if newest.contract_id != current.generation.contract_id:
                    # The old embedder's generation serves until the new embedder is loaded.
                    if self.catalog.floor() > current.generation.id:
                        raise StaleReadError
                elif newest.id > current.generation.id:
                    current = self._snapshot = current.extend(newest)
            except StaleReadError:
                self._snapshot = None  # compaction has passed it: the next attempt opens a new one
                raise
            outdated = self.database.shared and newest.id != self._views_tried and current.outdated
            if (wanted != self._opened_for or outdated) and self._opening is None:
                self._opened_for, self._views_tried = wanted, newest.id
                self._opening = threading.Thread(target=self._open_newer, name="ragfm-open-view", daemon=True)
                self._opening.start()
            return current

    def _open_newer(self) -> None:
        """Open the newest view, and its embedder if one is in use, and let them serve."""
        try:
            newest = self.catalog.at()
            if self._embedders:
                self.embedder(newest).embed_queries([""])  # loads the model
            opened = self._open_snapshot(newest)
            if (current := self._snapshot) is not None:
                opened.prepare(current)
            with self._lock:
                if self._snapshot is not None:
                    serving = self._snapshot.generation
                    behind = serving.contract_id == newest.contract_id and serving.id > newest.id
                    self._snapshot = opened.extend(serving) if behind else opened
        except StaleReadError:
            self._opened_for = None  # the next search tries again
        except RagfmError as error:
            location = self.database.location
            _log.warning("%s: a newer view cannot be opened, the older one stays in use: %s", location, error)
        finally:
            self._opening = None

    def _open_snapshot(self, newest: Generation) -> SearchBackend:
        """A snapshot of the newest generation. If views are this machine's own, an outdated one is replaced first."""
        snapshot = self.backend.open(self.catalog, newest, self.settings)
        if self.database.shared and snapshot.outdated:
            try:
                self.save_view(self.catalog)
            except CollectionError as error:  # searches work without it, more slowly
                _log.warning("%s", error)
            snapshot = self.backend.open(self.catalog, newest, self.settings)
        return snapshot

    def settle(self) -> None:
        """Wait until the view or embedder that is opened in the background serves."""
        with self._lock:  # it may be about to be started
            opening = self._opening
        if opening is not None:
            opening.join()

    def close(self) -> None:
        """Close the catalog and drop the snapshot and the embedders; the next use opens them again."""
        self.settle()
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()
            self._catalog = self._snapshot = self._opened_for = None
            self._embedders = {}

    # --- Writing -------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[CatalogWriter]:
        """The catalog for writing, under the collection's lock. Creates the collection if there is none.

        Raises CollectionBusyError, which names the holder of the lock, CollectionReadOnlyError, and the errors of
        `load_plugin` and ConfigError for settings with which a view could not be saved at the end.
        """
        if self._catalog is not None:  # a read notices if another collection has taken its place
            with contextlib.suppress(CollectionError):
                self.read_catalog(Catalog.generation)
        check_language(self.settings.language)
        if self.settings.index != "auto":
            load_plugin("indexes", self.settings.index)
        _ = self.backend
        if not self.exists:
            name = self._embedder_or_name(self.settings.embedder)
            embedder = load_embedder(name) if isinstance(name, str) else name
            contract = make_contract(embedder, name)
            try:
                with self.database.creating() as database:
                    CatalogWriter.create(database, contract)
                self._embedders[1] = embedder
            except CollectionError:
                if not self.exists:  # otherwise another process was faster
                    raise
        with self.database.lock():
            catalog = CatalogWriter(self.database)
            try:
                yield catalog
            finally:
                catalog.close()

    def open_uploads(self) -> UploadStore:
        """The files that users of a server have uploaded."""
        if self.database.shared:
            from ragfm.store.upload_table import UploadTable

            return UploadTable(cast("PostgresDatabase", self.database))
        return UploadFolder(self.folder)

    # --- Views ---------------------------------------------------------------------------------------------------

    def save_view(self, catalog: Catalog, *, always: bool = False) -> None:
        """Update the indexes to the newest generation if they are outdated, or always. The caller holds the lock."""
        changed = self.backend.save(catalog, self.settings, always=always, language_changed=self.language_changed)
        if changed and self._snapshot is not None and threading.current_thread() is not self._opening:
            self.snapshot()
            self.settle()

    def save_grown_view(self, catalog: CatalogWriter) -> None:
        """Save a view during a sync once the collection has doubled, so that readers need not search a long tail.

        The caller holds the lock.
        """
        count = catalog.at().chunks
        if self._sync_chunks is None or count > 2 * self._sync_chunks + _MIN_GROWTH:
            if self._sync_chunks is not None:
                self.save_view(catalog)
            self._sync_chunks = count


def _shared_embedder(name: str, contract: Mapping[str, Any]) -> Embedder:
    key = json.dumps([name, dict(contract)], sort_keys=True)
    embedder = _embedders.get(key)
    if embedder is None:
        embedder = load_embedder(name)
        with contextlib.suppress(TypeError):  # an embedder of a plugin may not support weak references
            _embedders[key] = embedder
    return embedder
