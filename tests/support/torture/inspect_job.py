"""A job that reads everything in a collection."""

from __future__ import annotations

import logging
import time
from typing import Any

from ragfm import Collection
from ragfm.core.errors import CollectionNotFound, RagfmError
from ragfm.store.tables import text_hash
from support.torture.expected_state import GROUPS
from support.torture.helpers import Report, open_collection


def inspect(report: Report, folder: str) -> None:
    """Report the content of a collection, as a reader and as a writer see it, and its problems."""
    logging.disable(logging.NOTSET)
    problems: list[str] = []
    start = time.monotonic()
    try:
        with open_collection(folder) as collection:  # first of all: opening a collection to write it repairs it
            problems += [f"verify: {finding}" for finding in collection.verify().findings]
        seen = [_read(folder, problems)]
        from ragfm.store import sqlite_database
        from ragfm.store.postgres import postgres_database

        sqlite_database.LOCK_SECONDS = postgres_database.LOCK_SECONDS = 2.0
        with open_collection(folder) as collection, collection._store.writing():
            pass
        seen.append(_read(folder, problems, thorough=False))
    except CollectionNotFound:
        report({"exists": False})
        return
    if seen[0] != seen[1]:
        problems.append(f"a reader sees {seen[0]}, after a writer has opened it {seen[1]}")
    report({"exists": True, **seen[0], "problems": problems, "seconds": time.monotonic() - start})


def verify(report: Report, folder: str) -> None:
    """Report the findings of `verify`, or the type of its error."""
    try:
        with open_collection(folder, dim=32) as collection:
            report({"findings": [str(finding) for finding in collection.verify().findings], "error": None})
    except RagfmError as error:
        report({"findings": [], "error": type(error).__name__, "message": str(error)})


def _read(folder: str, problems: list[str], *, thorough: bool = True) -> dict[str, Any]:
    warnings: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ragfm").addHandler(listener)
    try:
        with open_collection(folder) as collection:
            status = collection.status()
            documents = {info.uri: info for info in collection.documents()}
            texts = {uri: collection.document(uri).text for uri in documents}
            if thorough:
                _check_documents(collection, texts, problems)
            visible = {group: sorted(i.uri for i in collection.as_groups({group}).documents()) for group in GROUPS}
    finally:
        logging.getLogger("ragfm").removeHandler(listener)
    if status.documents != len(documents):
        problems.append(f"status counts {status.documents} documents, {len(documents)} are listed")
    problems += [f"warning: {warning}" for warning in warnings]
    hashes = {uri: text_hash(text).hex() for uri, text in texts.items()}
    return {"documents": hashes, "visible": visible, "generation": status.generation, "dim": status.embedder["dim"]}


def _check_documents(collection: Collection, texts: dict[str, str], problems: list[str]) -> None:
    """No document may be incomplete: its chunks cover its text, and a search finds each of them."""
    from ragfm.store.tables import documents

    catalog = collection._store.catalog
    newest = catalog.at()
    total = 0
    for row in catalog.documents(newest.id):
        ids = catalog.chunk_ids(newest.id, documents.c.id == row.id).tolist()
        rows = catalog.chunk_rows(ids)
        total += len(rows)
        text = texts[row.uri]
        if len(rows) != row.chunk_count:
            problems.append(f"{row.uri} has {len(rows)} chunks, expected {row.chunk_count}")
        left = text
        for chunk, part, _ in sorted(rows.values(), key=lambda item: -item[0].start):
            left = left[: chunk.start] + left[chunk.end :]
            query = f"{chunk.context}\n{part}" if chunk.context else part
            best = [hit for hit in collection.search(query, k=8, mode="dense") if hit.score and hit.score > 0.9999]
            if chunk.id not in [hit.chunk_id for hit in best]:
                problems.append(f"chunk {chunk.id} of {row.uri} is not found by its own text")
            if any(texts[hit.uri][hit.start : hit.end] != hit.text for hit in best):
                problems.append(f"a hit for chunk {chunk.id} of {row.uri} is not a slice of its document")
        if any(line.strip() and not line.startswith("#") for line in left.splitlines()):
            problems.append(f"no chunk of {row.uri} covers {left.strip()[:60]!r}")
    if total != newest.chunks:
        problems.append(f"generation {newest.id} has {total} chunks, expected {newest.chunks}")
    snapshot = collection._store.snapshot()
    if len(snapshot) != total:
        problems.append(f"a search sees {len(snapshot)} chunks, expected {total}")
