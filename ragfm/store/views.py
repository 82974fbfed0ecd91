"""Views: immutable indexes of one generation of the catalog.

    views/0000000012/manifest.json    generation, digest of the history, contract, kind, checksums of the files
    views/0000000012/vectors/         files of the vector index; none if a server has the vectors
    views/0000000012/keywords/        files of the keyword index

A view can always be rebuilt from the catalog, and a damaged one is never searched. Views of up to 256 MiB are verified
before they are used. Larger ones are verified in the background; the scores of hits come from the catalog's vectors,
which have checksums of their own, in any case.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import xxhash

from ragfm.core.durable_files import (
    encode_checksummed,
    new_file_mode,
    read_checksummed,
    storage_failure,
    sync_file,
    sync_folder,
    temporary_path,
    write_durably,
)
from ragfm.core.errors import CollectionError, DamagedCollectionError, MissingExtraError, UnknownPluginError
from ragfm.core.registry import load_plugin
from ragfm.core.types import Ids, VectorIndex, Vectors
from ragfm.store.catalog import Catalog, Generation, StaleReadError

VIEWS_FOLDER = "views"
MANIFEST = "manifest.json"
KEYWORD_PLUGIN = "bm25"
EAGER_CHECK_BYTES = 256 << 20
"""Views up to this size are verified before they are used."""
BLOCK_BYTES = 8 << 20
"""Bytes of a file per checksum."""
FORMAT = 3
_log = logging.getLogger(__name__)


class KeywordIndex(Protocol):
    """`ragfm_indexes.bm25.BM25Index`, which this package cannot import."""

    language: str | None

    def updated(self, ids: Ids, texts: Iterable[str], *, removed: Ids | None = None) -> KeywordIndex:
        """A new index with these texts added and the ids in `removed` deleted."""

    def search(self, queries: Sequence[str], k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first. *Shape:* both (n_queries, k)."""

    def save(self, folder: Path) -> None:
        """Write the index as files into an empty folder."""

    def __len__(self) -> int: ...


def language_of(question: str) -> str | None:
    """The language of a question, as ISO 639-1; None if none of its words tells it."""
    language: str | None = load_plugin("keyword_indexes", KEYWORD_PLUGIN).language_of(question)
    return language


class View:
    """A vector index and a keyword index of one generation, memory-mapped from files.

    `kind` and `index` are None if a server has the vectors. `language` is the language that was set for the keyword
    index, None if it was detected. `keywords` is None if a different version of its plugin wrote it. `state` is
    `checking` until all files are verified, then `checked` or `damaged`.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Open a view. Raises OSError, ValueError if it is damaged."""
        self.folder = folder
        self.generation = int(manifest["generation"])
        self.kind: str | None = manifest["kind"]
        self.count = int(manifest["count"])
        """Number of chunks."""
        self.language: str | None = manifest["language"]
        self.files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        self.state: Literal["checking", "checked", "damaged"] = "checking"
        if sum(file["size"] for file in self.files.values()) <= EAGER_CHECK_BYTES:
            damage = self._find_damage()
            if damage is not None:
                raise ValueError(damage)
            self.state = "checked"
        self.index: VectorIndex | None = None
        if self.kind is not None:
            self.index = load_plugin("indexes", self.kind).load(folder / "vectors")
        self.keywords: KeywordIndex | None = None
        try:
            self.keywords = load_plugin("keyword_indexes", KEYWORD_PLUGIN).load(folder / "keywords")
        except ValueError as error:
            _log.warning("%s: rebuilding the keyword index for this process (%s).", folder, error)
        if self.index is not None and len(self.index) != self.count:
            raise ValueError(f"it has {len(self.index)} vectors, expected {self.count}")
        if self.state == "checking":
            threading.Thread(target=self._check, name="ragfm-check-view", daemon=True).start()

    def mark_damaged(self, damage: str) -> None:
        """Log the damage, and never use this view again."""
        if self.state != "damaged":
            self.state = "damaged"
            warn_damaged(self.folder, damage)

    def _find_damage(self) -> str | None:
        damages = damaged_blocks(self.folder, self.files)
        return next((f"{item} is {actual}, expected {expected}" for item, expected, actual in damages), None)

    def _check(self) -> None:
        try:
            damage = self._find_damage()
        except FileNotFoundError:
            return  # a newer view has replaced it; the memory-mapped files stay valid
        except OSError as error:
            damage = str(error)
        if damage is None:
            self.state = "checked"
        else:
            self.mark_damaged(damage)


def damaged_blocks(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Damage of the files of a manifest, as (item, expected value, actual value). Raises OSError."""
    for name, file in files.items():
        size = (folder / name).stat().st_size
        if size != file["size"]:
            yield f"the size of {name}", f"{file['size']} bytes", f"{size} bytes"
            continue
        checksums = zip(block_checksums(folder / name), file["blocks"], strict=True)
        for number, (actual, expected) in enumerate(checksums):
            if actual != expected:
                yield f"the checksum of block {number} of {name}", expected, actual


def block_checksums(path: Path) -> Iterator[str]:
    """The checksum of each block of a file."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield xxhash.xxh3_128_hexdigest(block)


def newest_view(root: Path, catalog: Catalog, generation: Generation) -> View | None:
    """The newest intact view of a collection, None if there is none.

    A damaged one, or one whose plugin is not installed, is logged. Raises StaleReadError if a writer just replaced it,
    DamagedCollectionError if it is newer than the catalog.
    """
    views_folder = root / VIEWS_FOLDER
    try:
        folders = list(views_folder.iterdir()) if views_folder.is_dir() else []
    except OSError as error:
        raise CollectionError(
            f"'{views_folder}' cannot be read: {error.strerror}.", "Run the command again."
        ) from error
    for folder in sorted(_complete(folders), reverse=True):
        try:
            manifest = _read_manifest(folder, catalog, generation)
            if manifest is not None:
                return View(folder, manifest)
        except FileNotFoundError as error:
            if not folder.exists():
                raise StaleReadError from error
            warn_damaged(folder, f"{Path(error.filename or MANIFEST).name} is missing")
        except (OSError, ValueError) as error:
            warn_damaged(folder, str(error))
        except (UnknownPluginError, MissingExtraError) as error:
            _log.warning("The view %s is not used: %s", folder, error)
    return None


def view_bytes(root: Path) -> int:
    """The size of the newest view's files, which a search maps into memory; 0 without a view."""
    newest = max(_complete((root / VIEWS_FOLDER).glob("*")), default=None)
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) if newest else 0


def _complete(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders of views without those that are being written, or were when their writer was killed."""
    return (folder for folder in folders if folder.suffix != ".new")


def _read_manifest(folder: Path, catalog: Catalog, generation: Generation) -> Mapping[str, Any] | None:
    """The manifest of a view, None if it cannot be used: other format, contract or history, or older than the floor."""
    manifest = read_checksummed(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        return None
    view_generation = manifest["generation"]
    if view_generation > generation.id:
        if view_generation <= catalog.generation():
            raise StaleReadError
        raise DamagedCollectionError(
            f"The view '{folder}' is of generation {view_generation}, but the catalog is at generation "
            f"{generation.id}: commits were lost.",
            "Restore the collection from a backup, or remove its folder and ingest again.",
        )
    try:
        if manifest["contract"] == generation.contract_id and manifest["digest"] == catalog.at(view_generation).digest:
            return manifest
    except StaleReadError:  # compaction has deleted that generation, and rows that the view needs
        pass
    return None


def save_view(
    root: Path,
    catalog: Catalog,
    generation: Generation,
    kind: str | None,
    *,
    keywords: KeywordIndex,
    language: str | None,
) -> View:
    """Build a vector index of a generation, and save it durably together with its keyword index.

    With the kind None, only the keyword index is saved. Older views are removed. Raises CollectionError.
    """
    folder = root / VIEWS_FOLDER / f"{generation.id:010d}"
    temporary = temporary_path(folder)
    try:
        mode = root.stat().st_mode & 0o777
        for new in (folder.parent, temporary, temporary / "vectors", temporary / "keywords"):
            new.mkdir(mode, exist_ok=True)
        vectors = generation.chunks
        if kind is not None:
            index = load_plugin("indexes", kind).build(*catalog.chunk_vectors(generation))
            index.save(temporary / "vectors")
            vectors = len(index)
        keywords.save(temporary / "keywords")
        if not vectors == len(keywords) == generation.chunks:
            raise ValueError(f"{vectors} vectors and {len(keywords)} texts for {generation.chunks} chunks")
        files = {}
        for path in sorted(temporary.glob("*/*")):
            path.chmod(path.stat().st_mode & new_file_mode(path.parent))  # a library has created it
            sync_file(path)
            files[path.relative_to(temporary).as_posix()] = file_entry(path)
        for part in ("vectors", "keywords"):
            sync_folder(temporary / part)
        manifest = {
            "format": FORMAT,
            "generation": generation.id,
            "digest": generation.digest,
            "contract": generation.contract_id,
            "kind": kind,
            "language": language,
            "count": generation.chunks,
            "files": files,
        }
        # Load it before it replaces an older view: numpy does not report that the disk was full.
        if kind is not None:
            load_plugin("indexes", kind).load(temporary / "vectors")
        load_plugin("keyword_indexes", KEYWORD_PLUGIN).load(temporary / "keywords")
        write_durably(temporary / MANIFEST, encode_checksummed(manifest))
        remove_views([folder])  # a damaged view of the same generation
        temporary.replace(folder)
        sync_folder(folder.parent)
        remove_views(path for path in folder.parent.iterdir() if path != folder)
        return View(folder, manifest)
    except (OSError, ValueError) as error:
        error_type, why = storage_failure(root, error)
        raise error_type(
            f"The documents are committed, but the view '{root / VIEWS_FOLDER}' cannot be saved: {why}.",
            "Searches work without it, more slowly. The next ingest saves it.",
        ) from error
    finally:
        remove_views([temporary])


def file_entry(path: Path) -> dict[str, Any]:
    """The entry of a file in a manifest: size in bytes, and checksums of its blocks."""
    return {"size": path.stat().st_size, "blocks": list(block_checksums(path))}


def remove_views(folders: Iterable[Path]) -> None:
    """Remove folders of views. Each is renamed first: a reader would take a half-removed view for a damaged one."""
    for folder in list(folders):
        if folder.is_dir():
            if folder.suffix != ".new":
                folder = folder.replace(folder.with_name(f"{folder.name}.gone.new"))
            shutil.rmtree(folder, ignore_errors=True)


def warn_damaged(folder: Path, damage: str) -> None:
    """Log that a view is damaged and not used."""
    _log.warning("The view %s is damaged (%s) and not used. The next ingest rebuilds it.", folder, damage)
