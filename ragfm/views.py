"""Views: immutable indexes built from the catalog at one generation, and what a search sees of them.

    views/dense-0000000012/    the index's own files, and manifest.json with their checksums
    View                       a saved or freshly built index, and the generation that it was built at
    Snapshot                   the collection at generation G: the view, an exact tail of what came after it, and the
                               ids of the view that still live

A view can always be rebuilt from the catalog; a damaged one is never searched.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.catalog import Catalog
from ragfm.durable import checksummed, file_checksum, read_checksummed, sync_file, sync_folder, write_durably
from ragfm.errors import CollectionError, DamagedCollectionError
from ragfm.registry import load_plugin

if TYPE_CHECKING:
    from ragfm.types import Ids, VectorIndex, Vectors

FOLDER = "views"
_MANIFEST = "manifest.json"
_ATTEMPTS = 5  # at opening a view while others replace it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """An index and the generation that it was built at; `folder` is None where it is in memory only."""

    index: VectorIndex
    generation: int
    kind: str
    folder: Path | None = None


class Snapshot:
    """The vectors of a collection at one generation. Immutable; a newer generation gets a new snapshot."""

    def __init__(self, catalog: Catalog, view: View, generation: int, previous: Snapshot | None = None) -> None:
        contract_id, contract = catalog.contract()
        dim = int(contract["dim"])
        self.generation = generation
        self.view = view
        since = view.generation
        tail_ids, tail = np.empty(0, dtype=np.int64), np.empty((0, dim), dtype=np.float32)
        dead = tail_ids
        if previous is not None and previous.view is view:  # only what came since is read
            since = previous.generation
            tail_ids, tail, dead = previous._tail_ids, previous._tail, previous._dead  # noqa: SLF001  its own class
        kept = ~np.isin(tail_ids, catalog.dead_ids(since, generation))
        new_ids, new = catalog.chunk_vectors(contract_id, dim, generation, born_after=since)
        self._tail_ids: Ids = np.concatenate([tail_ids[kept], new_ids])
        self._tail: Vectors = np.concatenate([tail[kept], new])
        self._dead: Ids = np.concatenate([dead, catalog.dead_ids(since, generation, born_up_to=view.generation)])

    def search(self, query: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Cosines and chunk ids of the best `k` for one query, best first; fewer where there are fewer.

        *Shape:* query (1, dim), results (m,) with m <= k. `allowed` restricts the result to these ids, which live at
        the snapshot's generation.
        """
        k = min(k, len(self))
        # The view still has what died since: so many more are asked for, and those dropped.
        extra = len(self._dead) if allowed is None else 0
        scores, ids = self.view.index.search(query, max(k + extra, 1), allowed=allowed)
        living = (ids[0] >= 0) & ~np.isin(ids[0], self._dead)
        tail_ids, tail = self._tail_ids, self._tail
        if allowed is not None:
            kept = np.isin(tail_ids, allowed)
            tail_ids, tail = tail_ids[kept], tail[kept]
        all_scores = np.concatenate([scores[0][living], tail @ query[0]])
        all_ids = np.concatenate([ids[0][living], tail_ids])
        order = np.lexsort((all_ids, -all_scores))[:k]
        return all_scores[order], all_ids[order]

    def __len__(self) -> int:
        return len(self.view.index) - len(self._dead) + len(self._tail_ids)

    @property
    def is_view(self) -> bool:
        """Whether nothing came or went since the view was built."""
        return not len(self._dead) and not len(self._tail_ids)


class _OvertakenError(Exception):
    """A writer has replaced what was being read; looking again finds the newer."""


def open_snapshot(root: Path, catalog: Catalog, kind: str, previous: Snapshot | None = None) -> Snapshot:
    """A snapshot of the newest generation; the previous one if that is still it.

    It stands on the newest view that is whole, else on one built in memory; a damaged view is named in a warning.
    Raises DamagedCollectionError where a view is newer than the catalog.
    """
    for _ in range(_ATTEMPTS):
        generation = catalog.generation()
        if previous is not None and previous.generation == generation:
            return previous
        try:
            view = _newest_view(root, catalog, kind, generation, previous.view if previous else None)
        except _OvertakenError:
            continue
        break
    else:
        view = None
    return Snapshot(catalog, view or build_view(catalog, kind, generation), generation, previous)


def build_view(catalog: Catalog, kind: str, generation: int) -> View:
    """An index of all that lives at a generation, built in memory."""
    contract_id, contract = catalog.contract()
    ids, vectors = catalog.chunk_vectors(contract_id, int(contract["dim"]), generation)
    return View(load_plugin("indexes", kind).build(ids, vectors), generation, kind)


def save_view(root: Path, catalog: Catalog, view: View) -> View:
    """Write a view durably beside the older ones, then remove those. Gives the view with its folder.

    Raises CollectionError where it can't be written.
    """
    try:
        return _save(root / FOLDER / f"dense-{view.generation:010d}", catalog, view)
    except OSError as error:
        raise CollectionError(
            f"The documents are in, but the view {root / FOLDER} can't be saved: {error.strerror or error}.",
            "Searches rebuild it in memory meanwhile; the next ingest saves it.",
        ) from error


def _save(folder: Path, catalog: Catalog, view: View) -> View:
    _remove(folder.parent.glob("*.new"))  # left by a writer that was killed
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    temporary.mkdir(parents=True)
    try:
        view.index.save(temporary)
        files: dict[str, str] = {}
        for path in sorted(temporary.iterdir()):
            sync_file(path)
            files[path.name] = file_checksum(path)
        manifest = _identity(catalog, view.generation, view.kind) | {"count": len(view.index), "files": files}
        write_durably(temporary / _MANIFEST, checksummed(manifest))
        _remove([folder])  # one that was damaged
        temporary.replace(folder)
    except OSError:
        _remove([temporary])
        raise
    sync_folder(folder.parent)
    _remove(other for other in folder.parent.iterdir() if other != folder)
    return View(view.index, view.generation, view.kind, folder)


def _remove(folders: Iterable[Path]) -> None:
    """Remove folders; each is renamed first, since a reader takes one that is half gone for damaged."""
    for folder in list(folders):
        if folder.is_dir():
            gone = folder if folder.suffix == ".new" else folder.replace(folder.with_name(f"{folder.name}.gone.new"))
            shutil.rmtree(gone, ignore_errors=True)


def _newest_view(root: Path, catalog: Catalog, kind: str, generation: int, loaded: View | None) -> View | None:
    folders = (root / FOLDER).glob("dense-*") if (root / FOLDER).is_dir() else ()
    for folder in sorted((path for path in folders if path.suffix != ".new"), reverse=True):
        if loaded is not None and loaded.folder == folder:
            return loaded
        try:
            view = _load_view(folder, catalog, kind, generation)
        except FileNotFoundError as error:
            if not folder.exists():
                raise _OvertakenError from error
            _warn(folder, f"{Path(error.filename or _MANIFEST).name} is missing")
            continue
        except (OSError, ValueError) as error:
            _warn(folder, str(error))
            continue
        if view is not None:
            return view
    return loaded


def _load_view(folder: Path, catalog: Catalog, kind: str, generation: int) -> View | None:
    manifest = read_checksummed(folder / _MANIFEST)
    at = manifest["generation"]
    if at > generation:
        if at <= catalog.generation():
            raise _OvertakenError
        raise DamagedCollectionError(
            f"The view {folder} is of generation {at}, but the catalog has only reached {generation}: "
            "commits were lost.",
            "Restore the collection from a backup, or remove its folder and ingest again.",
        )
    if any(manifest[key] != value for key, value in _identity(catalog, at, kind).items()):
        return None  # of another index kind, another embedder, or another collection
    for name, expected in manifest["files"].items():
        found = file_checksum(folder / name)
        if found != expected:
            raise ValueError(f"{name} has the checksum {found}, expected {expected}")
    index = load_plugin("indexes", kind).load(folder)
    if len(index) != manifest["count"]:
        raise ValueError(f"it has {len(index)} vectors, expected {manifest['count']}")
    return View(index, at, kind, folder)


def _identity(catalog: Catalog, generation: int, kind: str) -> dict[str, Any]:
    """What a view must have in common with the catalog that it is searched with."""
    contract_id, _ = catalog.contract()
    return {
        "generation": generation,
        "digest": catalog.generation_digest(generation),
        "contract": contract_id,
        "kind": kind,
    }


def _warn(folder: Path, why: str) -> None:
    _log.warning("The view %s is damaged (%s); rebuilding it from the catalog.", folder, why)
