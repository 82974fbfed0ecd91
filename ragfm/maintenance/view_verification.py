"""Checks that the files of views are intact, and that their indexes match the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ragfm.core.durable_files import read_checksummed
from ragfm.core.errors import RagfmError
from ragfm.maintenance.integrity import Discrepancy
from ragfm.store.catalog import Catalog, StaleReadError
from ragfm.store.database import CATALOG_FILE
from ragfm.store.views import FORMAT, MANIFEST, VIEWS_FOLDER, View, damaged_blocks

_BATCH = 4096  # ids per search
_SAMPLE = 32  # vectors whose scores are compared
_EXACT_TOLERANCE, _APPROXIMATE_TOLERANCE = 1e-4, 0.02  # of a score


def verify_views(
    root: Path, catalog: Catalog | None, generation: int | None
) -> Iterator[tuple[str, Iterable[Discrepancy]]]:
    """The name of each view, relative to the collection, and its discrepancies.

    Without a catalog, only the files are checked. A view that is newer than `generation`, the catalog's, is damage of
    the catalog, and is reported under its name.
    """
    folders = sorted((root / VIEWS_FOLDER).iterdir()) if (root / VIEWS_FOLDER).is_dir() else []
    for folder in folders:
        if folder.suffix == ".new":
            continue
        name = f"{VIEWS_FOLDER}/{folder.name}"
        try:
            manifest = read_checksummed(folder / MANIFEST)
            view_generation = int(manifest.get("generation", -1))
            if generation is not None and view_generation > generation:
                expected = f"at least {view_generation}, the generation of the view {name}"
                yield CATALOG_FILE, [Discrepancy("its newest generation", expected, str(generation))]
                continue
            found = [Discrepancy(*damage) for damage in damaged_blocks(folder, manifest.get("files", {}))]
            if not found and catalog is not None and manifest.get("format") == FORMAT:
                view = View(folder, manifest)
                found = list(_check_content(view, str(manifest["digest"]), int(manifest["contract"]), catalog))
            yield name, found
        except FileNotFoundError as error:
            if folder.exists():  # otherwise a writer has just replaced it
                yield name, [Discrepancy(Path(error.filename or MANIFEST).name, "there", "missing")]
        except (OSError, ValueError, RagfmError) as error:
            what = MANIFEST if isinstance(error, ValueError) else "the view"
            yield name, [Discrepancy(what, "intact", str(error))]


def _check_content(view: View, digest: str, contract_id: int, catalog: Catalog) -> Iterator[Discrepancy]:
    """Compare the indexes of a view with the catalog. A view that is no longer used is not compared."""
    try:
        generation = catalog.at(view.generation)
    except StaleReadError:
        return  # it is older than the floor
    if contract_id != generation.contract_id:
        return
    if digest != generation.digest:
        yield Discrepancy("the digest of the history", generation.digest, digest)
        return
    ids = catalog.chunk_ids(generation.id)
    if catalog.floor() > generation.id:
        return
    if len(view.index) != len(ids):
        yield Discrepancy("the number of vectors", str(len(ids)), str(len(view.index)))
    # A search for as many hits as ids are allowed must return all of them.
    dim, missing = int(generation.contract["dim"]), 0
    query = np.full((1, dim), dim**-0.5, dtype=np.float32)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        missing += len(np.setdiff1d(batch, view.index.search(query, len(batch), allowed=batch)[1]))
    if missing:
        yield Discrepancy("the chunks", f"all of generation {generation.id}", f"{missing} are missing")
        return
    sample, vectors = catalog.vectors_of(generation, ids[:: max(1, len(ids) // _SAMPLE)].tolist())
    if not len(sample):
        return
    scores, hits = view.index.search(vectors, len(sample), allowed=sample)
    exact = np.take_along_axis(vectors @ vectors.T, np.searchsorted(sample, hits), axis=1)
    difference = float(np.abs(scores - exact).max())
    tolerance = _EXACT_TOLERANCE if view.index.recall == 1 else _APPROXIMATE_TOLERANCE
    if not difference <= tolerance:  # also true for NaN
        found = f"up to {difference:.4f} off"
        yield Discrepancy("the scores of a sample", f"within {tolerance} of the exact ones", found)
