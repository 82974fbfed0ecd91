"""Records of JSON Lines, CSV and Parquet files, each a document."""

from __future__ import annotations

import codecs
import csv
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from io import BufferedReader
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, TypeAlias

from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, SourceError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.archives import TooMuch, check_size, gunzip, unpacked
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.records import Fields, Record, revision

_Read: TypeAlias = Iterator[tuple[int, Record | str]]
"""Where each record begins, and the record or what is wrong with it."""
_SUFFIXES = ".jsonl, .ndjson, .csv or .tsv, each with .gz behind it or not, or .parquet"
_EXAMPLES = 3  # of the records that can't be read


class _Place(NamedTuple):
    file: Ref
    position: int


class JsonlConnector:
    """Records of one file, or of all files of records in a folder or glob: JSON Lines, CSV, Parquet.

    `id`, `title`, `text`, `metadata` and `media_type` say which fields are what, see `ragfm_connectors.records`. A
    record without an id is known by the hash of its content: changed, it is another document. Files are read anew at
    each listing, record by record. Who may see a file's records is said by `.ragfm-access`, as for any file.

    While some records of a file can't be read, none of that file is taken for gone.
    """

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
        """`encoding` is that of the text files, `max_bytes` the most of a record. Raises SourceError, ConfigError."""
        self._fields = Fields(id, title, tuple(text), metadata, media_type)
        self._files = FilesConnector(location, include=include, exclude=exclude, max_bytes=sys.maxsize)
        self.root = self._files.root
        """The folder, or the file; absolute."""
        try:
            self._encoding = codecs.lookup(encoding).name
        except LookupError:
            raise ConfigError(f"There is no encoding {encoding!r}.", "The usual one is utf-8.") from None
        if "\n".encode(self._encoding) != b"\n":
            raise ConfigError(f"Lines in {encoding} can't be told apart.", "Convert the file to UTF-8.")
        self._max_bytes = max_bytes
        self._places: dict[str, _Place] = {}
        self._reading: tuple[object, int, _Read] | None = None  # the file that was read last, and how far it is

    def refs(self) -> Iterator[Ref]:
        """All records in order, with a hash of what they are made into as revision. Raises SourceError.

        A record's path is its id, below the file's path where the source has several.
        """
        self._places = {}
        for file in self._files.refs():
            if file.skip is not None or file.error is not None:
                yield file
            elif file.path and _reader(file.path) is None:
                yield Ref(file.path, skip=f"not a file of records: {_SUFFIXES}")
            else:
                yield from self._records(file)

    def fetch(self, ref: Ref) -> Blob:
        """A record as text. Raises ConnectorError where it no longer is what was listed."""
        if ref.path not in self._places:
            list(self.refs())
        place = self._places.get(ref.path)
        if place is None:
            raise ConnectorError(f"There is no record {ref.path!r} any more.", "The next ingest removes it.")
        with self._files.open(place.file) as file:
            record = self._record_at(file, place)
        if not isinstance(record, str):
            blob = self._fields.blob(record)
            if revision(blob) == ref.revision:
                return blob
        raise ConnectorError(f"The record {ref.path!r} has changed since it was listed.", "The next ingest takes it.")

    def _records(self, file: Ref) -> Iterator[Ref]:
        wrong: list[str] = []
        below = f"{file.path}/" if file.path else ""
        try:
            with self._files.open(file) as opened:
                for number, (position, record) in enumerate(self._read(file, opened), 1):
                    try:
                        if isinstance(record, str):
                            raise ConnectorError(record)
                        yield self._ref(_Place(file, position), record, below, number)
                    except ConnectorError as error:
                        wrong.append(f"record {number:,}: {error.message}")
                        del wrong[_EXAMPLES + 1 :]
                        continue
        except ConnectorError as error:
            wrong.insert(0, error.message)
        if wrong:
            more = " …" if len(wrong) > _EXAMPLES else ""
            said = " ".join(wrong[:_EXAMPLES]) + more
            yield Ref(file.path, error=f"not all records can be read: {said}", allow=file.allow)

    def _ref(self, place: _Place, record: Record, below: str, number: int) -> Ref:
        blob = self._fields.blob(record)
        mark = revision(blob)
        identity = self._fields.identity(record)
        path = below + (identity or mark)
        if path in self._places:
            first = "its id is that of another record" if identity else "the same record is there already"
            return Ref(f"{path}#{number}", skip=first)  # no identity has a `#`
        self._places[path] = place
        return Ref(path, mark, allow=place.file.allow)

    def _record_at(self, file: BufferedReader, place: _Place) -> Record | str:
        """A record at its place. Records are mostly fetched in order, so the reading goes on where it stopped."""
        status = os.fstat(file.fileno())
        same = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._reading is None or self._reading[0] != same or self._reading[1] >= place.position:
            self._reading = (same, -1, self._read(place.file, os.fdopen(os.dup(file.fileno()), "rb")))
        self._reading = (same, place.position, self._reading[2])
        return next((record for at, record in self._reading[2] if at == place.position), "it is gone")

    def _read(self, file: Ref, opened: BinaryIO) -> _Read:
        read = _reader(file.path or self.root.name)
        if read is None:
            raise SourceError(f"{str(self.root)!r} is not a file of records.", f"Its name must end in {_SUFFIXES}.")
        return read(opened, self._encoding, self._max_bytes)


def _reader(name: str) -> Callable[[BinaryIO, str, int], _Read] | None:
    match [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]:
        case [*_, ".jsonl" | ".ndjson"]:
            return _json_lines
        case [*_, ".csv"]:
            return partial(_delimited, delimiter=",")
        case [*_, ".tsv"]:
            return partial(_delimited, delimiter="\t")
        case [*_, ".parquet"]:
            return _parquet
        case [*_, ".gz"] if (read := _reader(PurePosixPath(name).stem)) not in (None, _parquet):
            assert read is not None
            return partial(_unzipped, read)
    return None


def _unzipped(read: Callable[[BinaryIO, str, int], _Read], file: BinaryIO, encoding: str, limit: int) -> _Read:
    try:
        yield from read(unpacked(file, gunzip, os.fstat(file.fileno()).st_size), encoding, limit)
    except (EOFError, zlib.error) as error:
        raise ConnectorError(f"the gzip file is damaged: {error}.") from error
    except TooMuch as much:
        raise ConnectorError(f"the gzip file {much}.") from much


def _lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line; of one over the limit, what is over it is left out."""
    while True:
        position = file.tell()
        line = file.readline(limit + 1)
        if not line:
            return
        if len(line) > limit:
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        yield position, line


def _json_lines(file: BinaryIO, encoding: str, limit: int) -> _Read:
    for at, line in _lines(file, limit):
        if at == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > limit:
            yield at, f"it has more than {limit:,} bytes."
        elif line.strip():
            try:
                record = json.loads(line.decode(encoding))
            except (ValueError, RecursionError) as error:
                yield at, f"it is not JSON in {encoding}: {error}."
            else:
                yield at, record if isinstance(record, Mapping) else "it is not a JSON object."


def _delimited(file: BinaryIO, encoding: str, limit: int, *, delimiter: str) -> _Read:
    csv.field_size_limit(max(csv.field_size_limit(), min(limit, 2**31 - 1)))
    ends = [0]
    wrong: list[str] = []

    def lines() -> Iterator[str]:
        for at, line in _lines(file, limit):
            if at == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            ends[0] = file.tell()
            if len(line) > limit:
                wrong.append(f"a line has more than {limit:,} bytes.")
                line = b"\n"
            try:
                yield line.decode(encoding)
            except UnicodeDecodeError as error:
                wrong.append(f"it is not in {encoding}: {error}.")
                yield line.decode(encoding, "replace")

    rows = csv.reader(lines(), delimiter=delimiter)
    header = next(rows, [])
    while True:
        at = ends[0]
        try:
            row = next(rows, None)
        except csv.Error as error:
            row, wrong = [], [*wrong, f"it is not CSV: {error}."]
        if row is None:
            return
        if len(row) > len(header):
            wrong.append(f"it has {len(row)} fields, the header {len(header)}.")
        if row or wrong:
            yield at, wrong[0] if wrong else dict(zip(header, row, strict=False))
        wrong.clear()


def _parquet(file: BinaryIO, *_: object) -> _Read:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("Parquet files need pyarrow.", "Install it: pip install 'ragfm[parquet]'.") from error
    number = 0
    try:
        metadata = pyarrow.parquet.read_metadata(file)
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        check_size(sum(group.total_byte_size for group in groups), os.fstat(file.fileno()).st_size)
        # Texts stay in their dictionary, and records come one at a time: a text that a small file says in each of a
        # million records would else be a million texts.
        columns = map(metadata.schema.column, range(metadata.num_columns))
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        with closing(pyarrow.parquet.ParquetFile(file, read_dictionary=texts)) as parquet:
            for batch in parquet.iter_batches(batch_size=256):
                for at in range(batch.num_rows):
                    yield number, batch.slice(at, 1).to_pylist()[0]
                    number += 1
    except pyarrow.ArrowException as error:
        raise ConnectorError(f"it is not a Parquet file that can be read: {error}.") from error
    except TooMuch as much:
        raise ConnectorError(f"the Parquet file {much}.") from much
