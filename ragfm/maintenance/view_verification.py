"""Whether views are whole, and what a view finds is what the catalog has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragfm.core.durable_files import read_checksummed
from ragfm.core.errors import RagfmError
from ragfm.maintenance.integrity import Wrong
from ragfm.store.catalog import Catalog, OvertakenError
from ragfm.store.database import FILE
from ragfm.store.views import FOLDER, FORMAT, MANIFEST, View, damaged_blocks

if TYPE_CHECKING:
    from ragfm.core.types import Ids, VectorIndex

_BATCH = 4096  # ids that are looked for at once
_SAMPLE = 32  # vectors whose scores are compared
_EXACT, _NEAR = 1e-4, 0.02  # how far a score may be off


def verify_views(root: Path, catalog: Catalog | None, generation: int | None) -> Iterator[tuple[str, Iterable[Wrong]]]:
    """Each view's name in the collection, and what is wrong with it.

    Without a catalog, only its files are checked. A view that is newer than the catalog's generation is damage of the
    catalog, and has its name.
    """
    folders = sorted((root / FOLDER).iterdir()) if (root / FOLDER).is_dir() else []
    for folder in folders:
        if folder.suffix == ".new":
            continue
        name = f"{FOLDER}/{folder.name}"
        try:
            manifest = read_checksummed(folder / MANIFEST)
            at = int(manifest.get("generation", -1))
            if generation is not None and at > generation:
                yield (
                    FILE,
                    [Wrong("its newest generation", f"at least {at}, of which the view {name} is", str(generation))],
                )
                continue
            wrong = [Wrong(*damage) for damage in damaged_blocks(folder, manifest.get("files", {}))]
            if not wrong and catalog is not None and manifest.get("format") == FORMAT:
                wrong = list(
                    _wrong_content(View(folder, manifest), str(manifest["digest"]), int(manifest["contract"]), catalog)
                )
            yield name, wrong
        except FileNotFoundError as error:
            if folder.exists():  # else a writer has just replaced it
                yield name, [Wrong(Path(error.filename or MANIFEST).name, "there", "missing")]
        except (OSError, ValueError, RagfmError) as error:
            yield name, [Wrong(MANIFEST if isinstance(error, ValueError) else "the view", "whole", str(error))]


def _wrong_content(view: View, digest: str, contract_id: int, catalog: Catalog) -> Iterator[Wrong]:
    """What in a view of whole files is not as in the catalog. Nothing of one that is not used any more."""
    try:
        generation = catalog.at(view.generation)
    except OvertakenError:
        return  # compaction has passed it: nobody searches it any more
    if contract_id != generation.contract_id:
        return
    if digest != generation.digest:
        yield Wrong("the digest of the history", generation.digest, digest)
        return
    ids = catalog.chunk_ids(generation.id)
    if catalog.floor() > generation.id:
        return
    if len(view.index) != len(ids):
        yield Wrong("the number of vectors", str(len(ids)), str(len(view.index)))
    missing = _missing(view.index, ids, int(generation.contract["dim"]))
    if missing:
        yield Wrong("the chunks", f"all of generation {generation.id}", f"{missing} are missing")
        return
    sample, rows = catalog.vectors_of(generation, ids[:: max(1, len(ids) // _SAMPLE)].tolist())
    if not len(sample):
        return
    scores, found = view.index.search(rows, len(sample), allowed=sample)
    exact = np.take_along_axis(rows @ rows.T, np.searchsorted(sample, found), axis=1)
    off = float(np.abs(scores - exact).max())
    allowed = _EXACT if view.index.recall == 1 else _NEAR
    if not off <= allowed:
        yield Wrong("the scores of a sample", f"exact to {allowed}", f"up to {off:.4f} off")


def _missing(index: VectorIndex, ids: Ids, dim: int) -> int:
    """How many of the ids an index lacks: all that it has of those allowed are found, whatever the query."""
    query = np.full((1, dim), dim**-0.5, dtype=np.float32)
    missing = 0
    for start in range(0, len(ids), _BATCH):
        part = ids[start : start + _BATCH]
        missing += len(np.setdiff1d(part, index.search(query, len(part), allowed=part)[1]))
    return missing
