"""Records of JSON, JSON Lines, CSV and Parquet files; each record is a document."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, TypeAlias

from ragfm.core.errors import ConfigError, ConnectorError, SkipDocument, SourceError, needs_extra
from ragfm.core.types import Blob, Ref
from ragfm_connectors.archives import ArchiveLimitError, check_size, check_while_read
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.patterns import join_path
from ragfm_connectors.records import Fields, Record, record_revision

_Records: TypeAlias = Iterator[tuple[int, Record | str]]
"""The position of each record, and the record or its error."""
_RecordReader: TypeAlias = Callable[[BinaryIO, str, int], _Records]
"""Reads an open file, given its encoding and the maximum number of bytes of a record."""
_SUPPORTED = ".json, .jsonl, .ndjson, .csv or .tsv, optionally followed by .gz, or .parquet"
_MAX_EXAMPLES = 3  # of records that cannot be read
_CHUNK = 1 << 16  # bytes in which an array must begin


class JsonlConnector:
    """Records of one file, or of all record files in a folder or glob: JSON, JSON Lines, CSV, TSV, Parquet.

    `id`, `title`, `text`, `metadata` and `media_type` name the fields of a record, see `ragfm_connectors.records`. A
    record without an id is identified by the hash of its content, so it becomes another document when it changes. Each
    listing reads the files record by record. Access files apply as for any file. A JSON file has its records in an
    array, which is read as a whole; in a folder, one without it is skipped.

    As long as a record of a file cannot be read, no record of that file counts as removed.
    """

    fetch_anywhere = True

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        id: str | None = None,
        title: str = "title",
        text: Sequence[str] = ("text",),
        metadata: Sequence[str] | None = None,
        media_type: str = "text/plain",
        encoding: str = "utf-8",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """`encoding` is that of text files, `max_bytes` limits one record. Raises SourceError and ConfigError."""
        self._fields = Fields(id, title, tuple(text), metadata, media_type)
        self._files = FilesConnector(location, include=include, exclude=exclude, archives=False, max_bytes=sys.maxsize)
        self.root = self._files.root
        """The absolute path of the folder or file."""
        self.covers = self._files.covers
        try:
            self._encoding = codecs.lookup(encoding).name
        except LookupError:
            raise ConfigError(f"There is no encoding {encoding!r}.", "The default is utf-8.") from None
        if "\n".encode(self._encoding) != b"\n":
            raise ConfigError(f"The encoding {encoding!r} is not supported for lines.", "Convert the file to UTF-8.")
        self._max_bytes = max_bytes
        self._positions: dict[str, tuple[Ref, int]] = {}  # file and offset
        self._open_records: tuple[object, int, _Records] | None = None  # file identity, last offset, iterator

    def refs(self) -> Iterator[Ref]:
        """All records in order, with a hash of the resulting document as revision. Raises SourceError.

        The path of a record is its id, below the path of its file if the source has several.
        """
        self._positions = {}
        for file in self._files.refs():
            if file.skip is not None or file.error is not None:
                yield file
            elif file.path and _record_reader(file.path) is None:
                yield Ref(file.path, skip=f"not a file of records: {_SUPPORTED}")
            else:
                yield from self._list_records(file)

    def fetch(self, ref: Ref) -> Blob:
        """A record as text. Raises ConnectorError if it is gone or has changed since it was listed."""
        if ref.path not in self._positions:
            list(self.refs())
        if ref.path not in self._positions:
            raise ConnectorError(f"The record {ref.path!r} no longer exists.", "The next ingest removes it.")
        listed, offset = self._positions[ref.path]
        with self._files.open(listed) as file:
            # Records are mostly fetched in order, so the iterator of the last call is used again.
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._open_records
            if known is None or known[0] != identity or known[1] >= offset:
                records = self._read(listed, os.fdopen(os.dup(file.fileno()), "rb"))
            else:
                records = known[2]
            self._open_records = (identity, offset, records)
            record = next((record for at, record in records if at == offset), None)
        if record is not None and not isinstance(record, str):
            blob = self._fields.blob(record)
            if record_revision(blob) == ref.revision:
                return blob
        raise ConnectorError(
            f"The record {ref.path!r} has changed since it was listed.", "The next ingest reads it again."
        )

    def _list_records(self, file: Ref) -> Iterator[Ref]:
        problems: list[str] = []
        try:
            with self._files.open(file) as opened:
                for number, (offset, record) in enumerate(self._read(file, opened), 1):
                    try:
                        if isinstance(record, str):
                            raise ConnectorError(record)
                        blob = self._fields.blob(record)
                        revision, identity = record_revision(blob), self._fields.identity(record)
                        path = join_path(file.path, identity or revision)
                        if path in self._positions:
                            reason = "another record has the same id" if identity else "the same record occurs twice"
                            yield Ref(f"{path}#{number}", skip=reason)  # no id contains a `#`
                        else:
                            self._positions[path] = file, offset
                            yield Ref(path, revision, allow=file.allow)
                    except ConnectorError as error:
                        problems.append(f"record {number:,}: {error.message}")
                        del problems[_MAX_EXAMPLES + 1 :]
        except SkipDocument as error:
            if file.path:
                yield Ref(file.path, skip=error.message)
            else:
                problems.append(f"it is {error.message}.")
        except ConnectorError as error:
            problems.insert(0, error.message)
        if problems:
            more = " …" if len(problems) > _MAX_EXAMPLES else ""
            message = f"not all records can be read: {' '.join(problems[:_MAX_EXAMPLES])}{more}"
            yield Ref(file.path, error=message, allow=file.allow)

    def _read(self, file: Ref, opened: BinaryIO) -> _Records:
        reader = _record_reader(file.path or self.root.name)
        if reader is None:
            raise SourceError(f"{str(self.root)!r} is not a file of records.", f"Its name must end in {_SUPPORTED}.")
        return reader(opened, self._encoding, self._max_bytes)


def _record_reader(name: str) -> _RecordReader | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    match suffixes:
        case [*_, ".jsonl" | ".ndjson"]:
            return _read_json_lines
        case [*_, ".json"]:
            return _read_json_array
        case [*_, ".csv"]:
            return partial(_read_csv, delimiter=",")
        case [*_, ".tsv"]:
            return partial(_read_csv, delimiter="\t")
        case [*_, ".parquet"]:
            return _read_parquet
        case [*_, ".gz"]:
            reader = _record_reader(PurePosixPath(name).stem)
            if reader is not None and reader is not _read_parquet:
                return partial(_read_gzip, reader)
    return None


def _read_gzip(reader: _RecordReader, file: BinaryIO, encoding: str, max_bytes: int) -> _Records:
    try:
        file.seek(0)
        unpacked = check_while_read(gzip.GzipFile(fileobj=file), os.fstat(file.fileno()).st_size)
        yield from reader(unpacked, encoding, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConnectorError(f"the gzip file is damaged: {error}.") from error
    except ArchiveLimitError as error:
        raise ConnectorError(f"the gzip file {error}.") from error


def _read_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The offset of each line, and the line without a byte order mark; an overlong line is cut after the limit."""
    while True:
        offset = file.tell()
        line = file.readline(max_bytes + 1)
        if not line:
            return
        if len(line) > max_bytes:
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        if offset == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield offset, line


def _read_json_lines(file: BinaryIO, encoding: str, max_bytes: int) -> _Records:
    for offset, line in _read_lines(file, max_bytes):
        if len(line) > max_bytes:
            yield offset, f"it is too long; the limit is {max_bytes:,} bytes."
        elif line.strip():
            try:
                record = json.loads(line.decode(encoding))
            except (ValueError, RecursionError) as error:
                yield offset, f"it is not JSON in {encoding}: {error}."
            else:
                yield offset, record if isinstance(record, Mapping) else "it is not a JSON object."


def _read_json_array(file: BinaryIO, encoding: str, max_bytes: int) -> _Records:
    """Raises SkipDocument if the file has no array."""
    data = file.read(max_bytes + 1)
    try:
        if not data[:_CHUNK].decode(encoding, "ignore").lstrip("\ufeff \t\r\n").startswith("["):
            raise SkipDocument("not an array of records")
        if len(data) > max_bytes:
            raise ConnectorError(f"it is too long; the limit for an array is {max_bytes:,} bytes. Use JSON Lines.")
        records = json.loads(data.decode(encoding).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ConnectorError(f"it is not JSON in {encoding}: {error}.") from error
    for number, record in enumerate(records):
        yield number, record if isinstance(record, Mapping) else "it is not a JSON object."


def _read_csv(file: BinaryIO, encoding: str, max_bytes: int, *, delimiter: str) -> _Records:
    csv.field_size_limit(max(csv.field_size_limit(), min(max_bytes, 2**31 - 1)))
    end_offset = 0
    problems: list[str] = []  # of the current row
    row_lines: list[str] = []

    def lines() -> Iterator[str]:
        nonlocal end_offset
        for _, line in _read_lines(file, max_bytes):
            end_offset = file.tell()
            if len(line) > max_bytes:
                problems.append(f"a line is too long; the limit is {max_bytes:,} bytes.")
                line = b"\n"
            try:
                row_lines.append(line.decode(encoding))
            except UnicodeDecodeError as error:
                problems.append(f"it is not in {encoding}: {error}.")
                row_lines.append(line.decode(encoding, "replace"))
            yield row_lines[-1]

    rows = csv.reader(lines(), delimiter=delimiter)
    try:
        header = next(filter(None, rows), [])  # after empty lines
    except csv.Error as error:
        raise ConnectorError(f"its header is not CSV: {error}.") from error
    while True:
        offset = end_offset
        row_lines.clear()
        try:
            row = next(rows, None)
            if len(row_lines) > 1:  # a quotation mark that is not closed takes the records below into this one
                next(csv.reader(row_lines, delimiter=delimiter, strict=True))
        except csv.Error as error:
            row = []
            problems.append(f"it is not CSV: {error}.")
        if row is None:
            return
        if len(row) > len(header):
            problems.append(f"it has {len(row)} fields, the header {len(header)}.")
        if row or problems:
            yield offset, problems[0] if problems else dict(zip(header, row, strict=False))
        problems.clear()


def _read_parquet(file: BinaryIO, *_: object) -> _Records:
    with needs_extra("Reading Parquet files", "parquet"):
        import pyarrow
        import pyarrow.parquet
    number = 0
    try:
        metadata = pyarrow.parquet.read_metadata(file)
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        check_size(sum(group.total_byte_size for group in groups), os.fstat(file.fileno()).st_size)
        # A text that many records share stays in its dictionary, and one record at a time becomes Python objects.
        columns = map(metadata.schema.column, range(metadata.num_columns))
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        with closing(pyarrow.parquet.ParquetFile(file, read_dictionary=texts)) as parquet:
            for batch in parquet.iter_batches(batch_size=256):
                for row in range(batch.num_rows):
                    yield number, batch.slice(row, 1).to_pylist()[0]
                    number += 1
    except (pyarrow.ArrowException, LookupError, OverflowError) as error:  # the latter two for times
        raise ConnectorError(f"the Parquet file is damaged or not supported: {error}.") from error
    except ArchiveLimitError as error:
        raise ConnectorError(f"the Parquet file {error}.") from error
