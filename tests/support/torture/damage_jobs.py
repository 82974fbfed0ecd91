"""Jobs for the damage trial: create a realistic collection, and query it."""

from __future__ import annotations

import logging
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragfm import Collection
from ragfm.core.errors import RagfmError
from ragfm.store.tables import text_hash
from support.torture.helpers import WORDS, Report, open_collection, prose

QUERY_COUNT = 20


def furnish(report: Report, folder: str, dim: int = 1536) -> None:
    """Create a collection with two sources, metadata, groups, several versions and dead rows.

    Its vectors, some texts and some metadata are larger than a database page.
    """
    rng, place = random.Random(3), Path(folder)
    collection = open_collection(place / "c", dim=dim)
    for source, count in (("handbook", 150), ("reports", 60)):
        (place / source).mkdir()
        for number in range(count):
            _furnish_document(rng, place / source / f"{number:03}.md", number)
        collection.sync(place / source, tags={"team": source}, allow=["staff"] if source == "reports" else None)
    for number in range(0, 150, 12):
        _furnish_document(rng, place / "handbook" / f"{number:03}.md", number)
    for number in range(5, 150, 20):
        (place / "handbook" / f"{number:03}.md").unlink()
    collection.sync(place / "handbook")
    collection.close()
    report({"files": sorted(str(file.relative_to(place / "c")) for file in (place / "c").rglob("*") if file.is_file())})


def _furnish_document(rng: random.Random, file: Path, number: int) -> None:
    about = " ".join(rng.choices(WORDS, k=1500 if number % 15 == 0 else 8))
    front = f"---\nyear: {2000 + number % 25}\nstatus: {rng.choice(('draft', 'final'))}\nabout: {about}\n---\n"
    file.write_text(front + prose(rng, f"# {file.stem}", 90 if number % 20 == 0 else rng.choice((1, 2, 5))))


def furnish_log(report: Report, folder: str, dim: int = 1536) -> None:
    """The same with a write-ahead log: copied while a writer has it open, as a killed writer leaves it."""
    place, rng = Path(folder), random.Random(4)
    collection = open_collection(place / "c", dim=dim)
    collection.search("anything")  # a reader prevents the checkpoint
    for number in range(3):
        for source in ("handbook", "reports"):
            for file in rng.sample(sorted((place / source).iterdir()), 4):
                _furnish_document(rng, file, number + 1)
            collection.sync(place / source)
    shutil.copytree(place / "c", place / "log")
    report(
        {"files": sorted(str(file.relative_to(place / "log")) for file in (place / "log").rglob("*") if file.is_file())}
    )


def answer(report: Report, folder: str, dim: int = 1536, repair: bool = False) -> None:
    """Run a fixed list of queries, and report the result or error of each, and all warnings."""
    warnings: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ragfm").addHandler(listener)
    logging.getLogger("ragfm").propagate = False
    collection = open_collection(folder, dim=dim)
    results: dict[str, Any] = {}
    for name, ask in _queries(collection).items():
        try:
            results[name] = ask()
        except RagfmError as error:
            results[name] = {"error": type(error).__name__, "message": str(error)}
        except Exception:
            results[name] = {"crash": traceback.format_exc()}
    verification: Any = None
    if repair:
        try:
            verification = str(collection.verify(repair=True))
        except RagfmError as error:
            verification = {"error": type(error).__name__, "message": str(error)}
        warnings.append("repaired")
    report({"results": results, "warnings": warnings, "verification": verification})


def _queries(collection: Collection) -> dict[str, Callable[[], Any]]:
    rng = random.Random(5)
    staff, nobody = collection.as_groups({"staff"}), collection.as_groups(set())
    filters = (None, "year >= 2015", "status = final and team = handbook", "source = reports", "year in (2003, 2007)")

    def hits(handle: Collection, query: str, filter: str | None) -> Callable[[], Any]:
        return lambda: [
            [
                hit.uri,
                hit.chunk_id,
                hit.start,
                hit.end,
                hit.page,
                hit.text,
                hit.context,
                hit.headings,
                f"{hit.score:.6f}",
            ]
            for hit in handle.search(query, k=10, filter=filter)
        ]

    def status() -> Any:
        now = collection.status()
        return [now.documents, now.chunks, now.generation, now.failed, dict(now.embedder), now.sources]

    def texts() -> Any:
        return {info.uri: text_hash(collection.document(info.uri).text).hex() for info in collection.documents()}

    queries: dict[str, Callable[[], Any]] = {
        "status": status,
        "documents": lambda: [repr(info) for info in collection.documents()],
        "texts": texts,
        "staff's documents": lambda: [info.uri for info in staff.documents()],
        "nobody's documents": lambda: [info.uri for info in nobody.documents()],
    }
    for number in range(QUERY_COUNT):
        query = " ".join(rng.choices(WORDS, k=6))
        handle = (collection, collection, staff, nobody)[number % 4]
        queries[f"search {number}"] = hits(handle, query, filters[number % len(filters)])
    return queries
