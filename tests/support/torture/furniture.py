"""Jobs that make a collection of realistic shape, and ask it everything."""

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
from ragfm.store.catalog import text_hash
from support.torture.light import WORDS, Tell, open_collection, prose

QUERIES = 20


def furnish(tell: Tell, folder: str, dim: int = 1536) -> None:
    """A collection of realistic shape: two sources, metadata, groups, versions and rows that have gone.

    Its vectors, some of its texts and some of its metadata are larger than a page of the database.
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
    tell({"files": sorted(str(file.relative_to(place / "c")) for file in (place / "c").rglob("*") if file.is_file())})


def _furnish_document(rng: random.Random, file: Path, number: int) -> None:
    about = " ".join(rng.choices(WORDS, k=1500 if number % 15 == 0 else 8))
    front = f"---\nyear: {2000 + number % 25}\nstatus: {rng.choice(('draft', 'final'))}\nabout: {about}\n---\n"
    file.write_text(front + prose(rng, f"# {file.stem}", 90 if number % 20 == 0 else rng.choice((1, 2, 5))))


def furnish_log(tell: Tell, folder: str, dim: int = 1536) -> None:
    """The same with a write-ahead log: copied while its writer is at it, as a kill would leave it."""
    place, rng = Path(folder), random.Random(4)
    collection = open_collection(place / "c", dim=dim)
    collection.search("anything")  # a reader keeps the log from being folded in
    for number in range(3):
        for source in ("handbook", "reports"):
            for file in rng.sample(sorted((place / source).iterdir()), 4):
                _furnish_document(rng, file, number + 1)
            collection.sync(place / source)
    shutil.copytree(place / "c", place / "log")
    tell(
        {"files": sorted(str(file.relative_to(place / "log")) for file in (place / "log").rglob("*") if file.is_file())}
    )


def answer(tell: Tell, folder: str, dim: int = 1536, repair: bool = False) -> None:
    """The same questions to a collection as ever: what each gives, or the error that it ends in; and all warnings."""
    warnings: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ragfm").addHandler(listener)
    logging.getLogger("ragfm").propagate = False
    collection = open_collection(folder, dim=dim)
    results: dict[str, Any] = {}
    for name, ask in _questions(collection).items():
        try:
            results[name] = ask()
        except RagfmError as error:
            results[name] = {"error": type(error).__name__, "message": str(error)}
        except Exception:
            results[name] = {"crash": traceback.format_exc()}
    report: Any = None
    if repair:
        try:
            report = [str(problem) for problem in [collection.verify(repair=True)]]
        except RagfmError as error:
            report = {"error": type(error).__name__, "message": str(error)}
        warnings.append("repaired")
    tell({"results": results, "warnings": warnings, "report": report})


def _questions(collection: Collection) -> dict[str, Callable[[], Any]]:
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
        said = collection.status()
        return [said.documents, said.chunks, said.generation, said.failed, dict(said.embedder), said.sources]

    def texts() -> Any:
        return {info.uri: text_hash(collection.document(info.uri).text).hex() for info in collection.documents()}

    asked: dict[str, Callable[[], Any]] = {
        "status": status,
        "documents": lambda: [repr(info) for info in collection.documents()],
        "texts": texts,
        "staff's documents": lambda: [info.uri for info in staff.documents()],
        "nobody's documents": lambda: [info.uri for info in nobody.documents()],
    }
    for number in range(QUERIES):
        query = " ".join(rng.choices(WORDS, k=6))
        handle = (collection, collection, staff, nobody)[number % 4]
        asked[f"search {number}"] = hits(handle, query, filters[number % len(filters)])
    return asked
