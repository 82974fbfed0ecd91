"""Export: every document with its text and chunks, as JSON lines or Parquet, all of one generation.

One read transaction lasts from the first document to the last, so neither a writer nor a compaction changes what is
exported. Memory does not grow with the collection.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import replaceable_file, sync_folder, temporary_path, write_error
from ragfm.core.errors import MissingExtraError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.maintenance.integrity import Discrepancy, LiveDocuments
from ragfm.store.catalog import Catalog
from ragfm.store.tables import chunks as chunk_table
from ragfm.store.tables import documents

Format: TypeAlias = Literal["jsonl", "parquet"]
_ROW_GROUP_SIZE = 16 << 20  # approximate, in characters of text plus bytes of vectors
_CHUNK_COLUMNS = ("start", "end", "page", "place", "headings", "context")
_HAS_FIGURES = sa.select(sa.exists().where(chunk_table.c.image.is_not(None)))


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
    format: Format = "jsonl",
    conditions: Sequence[sa.ColumnElement[bool]] = (),
    vectors: bool = False,
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Write the documents that meet the conditions, ordered by uri, to a file or an open binary stream.

    A file is replaced atomically, once everything is written. Reports `Progress("export", documents_done, documents)`.
    Raises DamagedCollectionError for a damaged document, CollectionError if the file cannot be written,
    MissingExtraError if pyarrow is missing.
    """
    if format not in ("jsonl", "parquet"):
        raise ValueError(f"the format is {format!r}; it must be 'jsonl' or 'parquet'")
    if format == "parquet":
        try:
            import pyarrow  # noqa: F401  checked before a file is created
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "Parquet requires the library pyarrow, which is not installed.",
                "Install it: `pip install -e '.[parquet]'` in ragfm's source folder.",
            ) from error
    start = time.monotonic()
    records = _Records(catalog, conditions, vectors, progress or ignore_progress)
    write = _write_jsonl if format == "jsonl" else _write_parquet
    if isinstance(out, Path):
        try:
            target = replaceable_file(out)
            temporary = temporary_path(target)
            try:
                with temporary.open("wb") as file:
                    write(records, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        except OSError as error:
            raise write_error("export", out, error) from error
    else:
        write(records, out)
    seconds = round(time.monotonic() - start, 3)
    return ExportReport(records.documents, records.chunks, records.generation, seconds)


class _Records:
    """Iterates over the documents as records, and counts them."""

    def __init__(
        self, catalog: Catalog, conditions: Sequence[sa.ColumnElement[bool]], vectors: bool, progress: ProgressCallback
    ) -> None:
        self._catalog = catalog
        self._conditions = conditions
        self._progress = progress
        self.vectors = vectors
        self.documents = self.chunks = self.generation = 0
        with catalog.read() as connection:  # a collection without figures is exported without their columns
            self.images = bool(connection.scalar(_HAS_FIGURES))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        live = (documents.c.died.is_(None), *self._conditions)
        with self._catalog.read() as connection:
            reader = LiveDocuments(connection, vectors=self.vectors)
            self.generation = reader.generation.id
            total = connection.execute(sa.select(sa.func.count()).select_from(documents).where(*live)).scalar_one()
            query = sa.select(documents.c.id).where(*live).order_by(documents.c.uri)
            for document_id in connection.execute(query.execution_options(yield_per=1000)).scalars():
                document = reader.read(document_id)
                if isinstance(document, Discrepancy):
                    raise self._catalog.damage_error(str(document))
                if document.damage:
                    raise self._catalog.damage_error(str(document.damage[0]))
                row, chunks = document.row, []
                for chunk in document.chunks:
                    values = {name: getattr(chunk, name) for name in _CHUNK_COLUMNS}
                    if self.images:
                        values |= {"image": chunk.image, "box": chunk.box}
                    if self.vectors:
                        values["vector"] = np.frombuffer(document.vectors[chunk.text_hash], dtype="<f4")
                    chunks.append({"chunk_id": chunk.id, **values})
                self.documents += 1
                self.chunks += len(chunks)
                figures = [{"hash": key, "data": data} for key, data in document.images.items()]
                yield {
                    "uri": row.uri,
                    "source": reader.sources[row.source_id].name,
                    "media_type": row.media_type,
                    "metadata": row.metadata,
                    "text": row.text,
                    "chunks": chunks,
                    **({"images": figures} if self.images else {}),
                }
                self._progress(Progress("export", self.documents, total))


def _write_jsonl(records: _Records, file: BinaryIO) -> None:
    for record in records:
        try:
            line = json.dumps(record, ensure_ascii=False, default=_json_value).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which must be escaped
            line = json.dumps(record, default=_json_value).encode()
        file.write(line + b"\n")


def _json_value(value: Any) -> Any:
    """An image as base64, or a vector with the fewest digits that give the same float32."""
    return b64encode(value).decode() if isinstance(value, bytes) else [float(str(number)) for number in value]


def _write_parquet(records: _Records, file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chunk = {
        "chunk_id": pa.int64(),
        "start": pa.int64(),
        "end": pa.int64(),
        "page": pa.int64(),
        "place": pa.string(),
        "headings": pa.list_(pa.string()),
        "context": pa.string(),
    }
    if records.vectors:
        chunk["vector"] = pa.list_(pa.float32())
    figures = {}
    if records.images:
        chunk |= {"image": pa.string(), "box": pa.list_(pa.float64())}
        figures["images"] = pa.list_(pa.struct([("hash", pa.string()), ("data", pa.binary())]))
    # `metadata` is JSON, since documents have different keys.
    texts = {name: pa.string() for name in ("uri", "source", "media_type", "metadata", "text")}
    schema = pa.schema({**texts, "chunks": pa.list_(pa.struct(list(chunk.items()))), **figures})

    rows: list[Mapping[str, Any]] = []
    size = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for record in records:
            rows.append({**record, "metadata": json.dumps(record["metadata"])})
            size += len(record["text"]) + sum(400 + 4 * len(chunk.get("vector", ())) for chunk in record["chunks"])
            size += sum(len(image["data"]) for image in record.get("images", ()))
            if size >= _ROW_GROUP_SIZE:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
        writer.write_table(pa.Table.from_pylist(rows, schema))
