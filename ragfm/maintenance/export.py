"""Export: every document with its text and chunks, as JSON lines, all of one generation.

One read transaction lasts from the first document to the last, so neither a writer nor a compaction changes what is
exported. Memory does not grow with the collection.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import replaceable_file, sync_folder, temporary_path, write_error
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import Discrepancy, LiveDocuments
from ragfm.store.catalog import Catalog
from ragfm.store.tables import chunks as chunk_table
from ragfm.store.tables import documents

_CHUNK_COLUMNS = ("start", "end", "page", "place", "headings", "context")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Number of exported documents and chunks, and their generation."""

    documents: int
    chunks: int
    generation: int
    seconds: float


def export(
    catalog: Catalog,
    out: Path | BinaryIO,
    *,
    conditions: Sequence[sa.ColumnElement[bool]] = (),
    vectors: bool = False,
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Write the documents that meet the conditions, ordered by uri, to a file or an open binary stream.

    A file is replaced atomically, once everything is written. Reports `Progress("export", documents_done, documents)`.
    Raises DamagedCollectionError for a damaged document, CollectionError if the file cannot be written.
    """
    start = time.monotonic()
    write = partial(_write_documents, catalog, conditions, vectors, progress or ignore_progress)
    if isinstance(out, Path):
        try:
            target = replaceable_file(out)
            temporary = temporary_path(target)
            try:
                with temporary.open("wb") as file:
                    counts = write(file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise write_error("export", out, error) from error
    else:
        counts = write(out)
    seconds = round(time.monotonic() - start, 3)
    return ExportReport(*counts, seconds)


def _write_documents(
    catalog: Catalog,
    conditions: Sequence[sa.ColumnElement[bool]],
    with_vectors: bool,
    progress: ProgressCallback,
    file: BinaryIO,
) -> tuple[int, int, int]:
    """Write the documents to a file. Returns the number of documents and of chunks, and their generation."""
    document_count = chunk_count = 0
    live = (documents.c.died.is_(None), *conditions)
    with catalog.read() as connection:
        reader = LiveDocuments(connection, vectors=with_vectors)
        # A collection without figures is exported without their columns.
        with_figures = connection.scalar(sa.select(sa.exists().where(chunk_table.c.image.is_not(None))))
        total = connection.execute(sa.select(sa.func.count()).select_from(documents).where(*live)).scalar_one()
        query = sa.select(documents.c.id).where(*live).order_by(documents.c.uri)
        for document_id in connection.execute(query.execution_options(yield_per=1000)).scalars():
            document = reader.read(document_id)
            if isinstance(document, Discrepancy):
                raise catalog.damage_error(str(document))
            if document.damage:
                raise catalog.damage_error(str(document.damage[0]))
            row, chunks = document.row, []
            for chunk in document.chunks:
                values = {name: getattr(chunk, name) for name in _CHUNK_COLUMNS}
                if with_figures:
                    values |= {"image": chunk.image, "box": chunk.box}
                if with_vectors:
                    values["vector"] = np.frombuffer(document.vectors[chunk.text_hash], dtype="<f4")
                chunks.append({"chunk_id": chunk.id, **values})
            record = {
                "uri": row.uri,
                "source": reader.sources[row.source_id].name,
                "media_type": row.media_type,
                "metadata": row.metadata,
                "text": row.text,
                "chunks": chunks,
            }
            if with_figures:
                record["images"] = [{"hash": key, "data": data} for key, data in document.images.items()]
            try:
                line = json.dumps(record, ensure_ascii=False, default=_json_value).encode()
            except UnicodeEncodeError:  # half of a surrogate pair, which must be escaped
                line = json.dumps(record, default=_json_value).encode()
            file.write(line + b"\n")
            document_count, chunk_count = document_count + 1, chunk_count + len(chunks)
            progress(Progress("export", document_count, total))
    return document_count, chunk_count, reader.generation.id


def _json_value(value: Any) -> Any:
    """An image as base64, or a vector with the fewest digits that give the same float32."""
    return b64encode(value).decode() if isinstance(value, bytes) else [float(str(number)) for number in value]
