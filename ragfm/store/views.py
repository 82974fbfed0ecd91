"""Views: immutable indexes built from the catalog at one generation.

    views/0000000012/manifest.json    generation, digest of the history, embedding contract, kind, checksums of files
    views/0000000012/vectors/         the vector index's own files
    views/0000000012/keywords/        the keyword index's

A view can always be rebuilt from the catalog; a damaged one is never searched. Up to 256 MiB are checked before a view
is used. Larger ones are checked block by block in the background from opening on; until that is done, hits are scored
again from the catalog's vectors, which have checksums of their own.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ragfm.core.durable_files import beside, checksummed, read_checksummed, sync_file, sync_folder, write_durably
from ragfm.core.errors import CollectionError, DamagedCollectionError
from ragfm.core.registry import load_plugin
from ragfm.store.catalog import Catalog, Generation, OvertakenError

if TYPE_CHECKING:
    from ragfm.core.types import KeywordIndex, VectorIndex

FOLDER = "views"
MANIFEST = "manifest.json"
KEYWORDS = "bm25"
"""The keyword index's plugin."""
CHECKED_FIRST = 256 << 20
"""Bytes of a view up to which it is checked before it is used."""
BLOCK = 8 << 20
"""Bytes of a file that have one checksum."""
FORMAT = 3
_log = logging.getLogger(__name__)


class View:
    """A vector index and a keyword index, mapped from files, and the generation that they were built at.

    `language` is the one that the keyword index was to have, None where it was to find out. `state` is `checking`
    until all of its files were read and found whole, then `checked`, or else `damaged`.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.generation = int(manifest["generation"])
        self.kind = str(manifest["kind"])
        self.language: str | None = manifest["language"]
        self.files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        self.state: Literal["checking", "checked", "damaged"] = "checking"
        if sum(file["size"] for file in self.files.values()) <= CHECKED_FIRST:
            for why in self.damage():
                raise ValueError(why)
            self.state = "checked"
        self.index: VectorIndex = load_plugin("indexes", self.kind).load(folder / "vectors")
        self.keywords = _load_keywords(folder)
        if len(self.index) != manifest["count"]:
            raise ValueError(f"it has {len(self.index)} vectors, expected {manifest['count']}")
        if self.state == "checking":
            threading.Thread(target=self._check, name="ragfm-check-view", daemon=True).start()

    def damage(self) -> Iterator[str]:
        """What is wrong with the files, in words; nothing if they are whole."""
        for what, expected, found in damaged_blocks(self.folder, self.files):
            yield f"{what} is {found}, expected {expected}"

    def blame(self, why: str) -> None:
        """Never search it again, and say why."""
        if self.state != "damaged":
            self.state = "damaged"
            warn_damaged(self.folder, why)

    def _check(self) -> None:
        try:
            why = next(self.damage(), None)
        except FileNotFoundError:
            return  # a newer view has taken its place; what is mapped stays
        except OSError as error:
            why = str(error)
        if why is None:
            self.state = "checked"
        else:
            self.blame(why)


def _load_keywords(folder: Path) -> KeywordIndex | None:
    """The keyword index of a view; None where another version of its plugin wrote it."""
    try:
        index: KeywordIndex = load_plugin("keyword_indexes", KEYWORDS).load(folder / "keywords")
    except ValueError as error:
        _log.warning("%s: the keyword index is built anew for this process (%s).", folder, error)
        return None
    return index


def damaged_blocks(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Which of a manifest's files are not whole: what of them, as expected and as found. Raises OSError."""
    for name, file in files.items():
        size = (folder / name).stat().st_size
        if size != file["size"]:
            yield f"the size of {name}", f"{file['size']} bytes", f"{size} bytes"
            continue
        for number, (found, expected) in enumerate(zip(block_sums(folder / name), file["blocks"], strict=True)):
            if found != expected:
                yield f"the checksum of block {number} of {name}", expected, found


def newest_view(root: Path, catalog: Catalog, generation: Generation) -> View | None:
    """The newest view that is whole, of any kind; None where there is none. A damaged one is named in a warning.

    Raises OvertakenError where a writer has just replaced it, DamagedCollectionError where it is newer than the
    catalog.
    """
    try:
        folders = list((root / FOLDER).iterdir()) if (root / FOLDER).is_dir() else []
    except OSError as error:
        raise CollectionError(f"{root / FOLDER} can't be read: {error.strerror}.", "Run it again.") from error
    for folder in sorted((path for path in folders if path.suffix != ".new"), reverse=True):
        try:
            manifest = _manifest(folder, catalog, generation)
            if manifest is not None:
                return View(folder, manifest)
        except FileNotFoundError as error:
            if not folder.exists():
                raise OvertakenError from error
            warn_damaged(folder, f"{Path(error.filename or MANIFEST).name} is missing")
        except (OSError, ValueError) as error:
            warn_damaged(folder, str(error))
    return None


def save_view(
    root: Path, catalog: Catalog, generation: Generation, kind: str, *, keywords: KeywordIndex, language: str | None
) -> View:
    """Build an index of all vectors that live at a generation, and write it durably with a keyword index of the same.

    Older views are removed. Raises CollectionError where it can't be written.
    """
    folder = root / FOLDER / f"{generation.id:010d}"
    try:
        remove_views(folder.parent.glob("*.new"))  # left by a writer that was killed
        temporary = beside(folder)
        for part in ("vectors", "keywords"):
            (temporary / part).mkdir(parents=True)
        try:
            index = load_plugin("indexes", kind).build(*catalog.chunk_vectors(generation))
            index.save(temporary / "vectors")
            keywords.save(temporary / "keywords")
            if not len(index) == len(keywords) == generation.chunks:
                raise ValueError(f"{len(index)} vectors, {len(keywords)} texts, {generation.chunks} chunks")
            files = {path.relative_to(temporary).as_posix(): _sums(path) for path in sorted(temporary.glob("*/*"))}
            for part in ("vectors", "keywords"):
                sync_folder(temporary / part)
            about = {"kind": kind, "language": language, "count": len(index), "files": files}
            manifest = {**_identity(generation), **about}
            # Read before it takes the place of an older one: numpy doesn't notice that the end of a file got no room.
            load_plugin("indexes", kind).load(temporary / "vectors")
            load_plugin("keyword_indexes", KEYWORDS).load(temporary / "keywords")
            write_durably(temporary / MANIFEST, checksummed(manifest))
            remove_views([folder])  # one that was damaged
            temporary.replace(folder)
        except (OSError, ValueError):
            remove_views([temporary])
            raise
        sync_folder(folder.parent)
        remove_views(other for other in folder.parent.iterdir() if other != folder)
        return View(folder, manifest)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CollectionError(
            f"The documents are in, but the view {root / FOLDER} can't be saved: {why}.",
            "Searches go without it meanwhile, slower; the next ingest saves it.",
        ) from error


def _manifest(folder: Path, catalog: Catalog, generation: Generation) -> Mapping[str, Any] | None:
    """A view's manifest; None where it is of another format, contract or collection, or before compaction."""
    manifest = read_checksummed(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        return None
    at = manifest["generation"]
    if at > generation.id:
        if at <= catalog.generation():
            raise OvertakenError
        raise DamagedCollectionError(
            f"The view {folder} is of generation {at}, but the catalog has only reached {generation.id}: "
            "commits were lost.",
            "Restore the collection from a backup, or remove its folder and ingest again.",
        )
    try:
        if manifest["contract"] == generation.contract_id and manifest["digest"] == catalog.at(at).digest:
            return manifest
    except OvertakenError:  # compaction has removed that generation, and what has died since
        pass
    return None


def _identity(generation: Generation) -> dict[str, Any]:
    """What a view must have in common with the catalog that it is searched with."""
    return {
        "format": FORMAT,
        "generation": generation.id,
        "digest": generation.digest,
        "contract": generation.contract_id,
    }


def _sums(path: Path) -> dict[str, Any]:
    sync_file(path)
    return {"size": path.stat().st_size, "blocks": list(block_sums(path))}


def block_sums(path: Path) -> Iterator[str]:
    """The checksum of each block of a file."""
    import xxhash

    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield xxhash.xxh3_128_hexdigest(block)


def remove_views(folders: Iterable[Path]) -> None:
    """Remove folders; each is renamed first, since a reader takes one that is half gone for damaged."""
    for folder in list(folders):
        if folder.is_dir():
            gone = folder if folder.suffix == ".new" else folder.replace(folder.with_name(f"{folder.name}.gone.new"))
            shutil.rmtree(gone, ignore_errors=True)


def warn_damaged(folder: Path, why: str) -> None:
    """Say that a view is not used, and why."""
    _log.warning("The view %s is damaged (%s); searching without it. The next ingest rebuilds it.", folder, why)
