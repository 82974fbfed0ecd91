"""Export: every document with its text and chunks, as JSON lines or Parquet, all of one generation.

One read transaction is held from the first document to the last, so neither a writer nor a compaction can change what
is exported. Memory does not grow with the collection.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
import sqlalchemy as sa

from ragfm.core.durable_files import beside, sync_folder, unwritable
from ragfm.core.errors import MissingExtraError
from ragfm.maintenance.integrity import LivingDocuments, WholeDocument, Wrong
from ragfm.store.tables import documents

if TYPE_CHECKING:
    from ragfm.store.catalog import Catalog

__all__ = ["ExportReport", "Format", "export"]

Format: TypeAlias = Literal["jsonl", "parquet"]
Progress = Callable[[int, int], None]
"""Is told how many documents of how many are written."""
_GROUP = 16 << 20  # characters and bytes of vectors, about, of a Parquet row group
_SPAN = ("start", "end", "page", "place", "headings", "context")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and of which generation."""

    documents: int
    chunks: int
    generation: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    conditions: Sequence[sa.ColumnElement[bool]]
    vectors: bool
    progress: Progress | None


def export(
    catalog: Catalog,
    out: Path | BinaryIO,
    *,
    format: Format = "jsonl",
    conditions: Sequence[sa.ColumnElement[bool]] = (),
    vectors: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the documents that meet the conditions, in order of uri, to a file or an open binary stream.

    A file is replaced at once, when all is written. Raises DamagedCollectionError for a document that is not whole,
    CollectionError where the file can't be written, MissingExtraError where Parquet needs a library.
    """
    if format not in ("jsonl", "parquet"):
        raise ValueError(f"the format is {format!r}, it must be 'jsonl' or 'parquet'")
    start, wanted = time.monotonic(), _Wanted(conditions, vectors, progress)
    write = _write_jsonl if format == "jsonl" else _parquet_writer()
    if not isinstance(out, Path):
        counts = write(catalog, out, wanted)
    else:
        with _replacing(out) as file:
            counts = write(catalog, file, wanted)
    return ExportReport(*counts, seconds=round(time.monotonic() - start, 3))


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    temporary = beside(out)
    try:
        if out.is_dir():
            raise IsADirectoryError(21, "It is a folder", str(out))
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise unwritable("export", out, error) from error
    finally:
        temporary.unlink(missing_ok=True)


class _Documents:
    """The documents to export, one after the other, and what was counted when all have come."""

    def __init__(self, catalog: Catalog, wanted: _Wanted) -> None:
        self._catalog = catalog
        self._wanted = wanted
        self.documents = self.chunks = self.generation = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.documents, self.chunks, self.generation

    def __iter__(self) -> Iterator[dict[str, Any]]:
        wanted = self._wanted
        living = (documents.c.died.is_(None), *wanted.conditions)
        with self._catalog.read() as connection:
            reader = LivingDocuments(connection, vectors=wanted.vectors)
            self.generation = reader.generation.id
            total = connection.execute(sa.select(sa.func.count()).select_from(documents).where(*living)).scalar_one()
            query = sa.select(documents.c.id).where(*living).order_by(documents.c.uri)
            for document_id in connection.execution_options(yield_per=1000).execute(query).scalars():
                found = reader.read(document_id)
                if isinstance(found, Wrong) or found.wrong:
                    wrong = found if isinstance(found, Wrong) else found.wrong[0]
                    raise self._catalog.damaged(f"{wrong.what}: expected {wrong.expected}, found {wrong.found}")
                self.documents += 1
                self.chunks += len(found.chunks)
                yield _record(found, reader.sources[found.row.source_id].name, wanted.vectors)
                if wanted.progress is not None:
                    wanted.progress(self.documents, total)


def _record(found: WholeDocument, source: str, vectors: bool) -> dict[str, Any]:
    row = found.row
    passages = []
    for span in found.chunks:
        passage = {"chunk_id": span.id, **{name: getattr(span, name) for name in _SPAN}}
        if vectors:
            passage["vector"] = np.frombuffer(found.vectors[span.text_hash], dtype="<f4")
        passages.append(passage)
    return {
        "uri": row.uri,
        "source": source,
        "media_type": row.media_type,
        "metadata": row.metadata,
        "text": row.text,
        "chunks": passages,
    }


def _write_jsonl(catalog: Catalog, file: BinaryIO, wanted: _Wanted) -> tuple[int, int, int]:
    found = _Documents(catalog, wanted)
    for record in found:
        file.write(_line(record))
    return found.counts


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, default=_numbers).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        return json.dumps(record, default=_numbers).encode() + b"\n"


def _numbers(vector: Any) -> list[float]:
    return [float(str(number)) for number in vector]  # as few digits as give the same float32


def _parquet_writer() -> Callable[[Catalog, BinaryIO, _Wanted], tuple[int, int, int]]:
    """The function that writes Parquet. Raises MissingExtraError before anything is written."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Parquet needs the library pyarrow, which is not installed.", "Install it: `pip install 'ragfm[parquet]'`."
        ) from error

    def write(catalog: Catalog, file: BinaryIO, wanted: _Wanted) -> tuple[int, int, int]:
        schema = _schema(pa, wanted.vectors)
        found = _Documents(catalog, wanted)
        waiting, size = list[dict[str, Any]](), 0
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for record in found:
                waiting.append({**record, "metadata": json.dumps(record["metadata"])})
                size += len(record["text"]) + sum(400 + 4 * len(chunk.get("vector", ())) for chunk in record["chunks"])
                if size >= _GROUP:
                    writer.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting, size = [], 0
            writer.write_table(pa.Table.from_pylist(waiting, schema))
        return found.counts

    return write


def _schema(pa: Any, vectors: bool) -> Any:
    """`metadata` is JSON, since its keys differ from document to document."""
    span = {"start": pa.int64(), "end": pa.int64(), "page": pa.int64(), "place": pa.string()}
    chunk = {"chunk_id": pa.int64(), **span, "headings": pa.list_(pa.string()), "context": pa.string()}
    if vectors:
        chunk["vector"] = pa.list_(pa.float32())
    texts = {name: pa.string() for name in ("uri", "source", "media_type", "metadata", "text")}
    return pa.schema({**texts, "chunks": pa.list_(pa.struct(list(chunk.items())))})
