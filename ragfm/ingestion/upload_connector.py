"""The uploads of a collection as a source. Their records decide who may see them, and what their content is.

Files in the collection's database are listed once and then known to all machines. Their content is written to the
machine's cache folder to be read, as the connector `files` and its sandbox read files.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.access_groups import intersect_groups
from ragfm.core.durable_files import write_error
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Connector, Ref
from ragfm.store.uploads import UPLOADS_ADDRESS, check_content, content_digest

if TYPE_CHECKING:
    from ragfm.store.upload_table import UploadTable
    from ragfm.store.uploads import UploadFolder, UploadRecord

_MAX_KEPT_BYTES = 2**30  # of contents in the cache folder, which members of archives are read from in turns
_LEFTOVER_SECONDS = 86_400
_log = logging.getLogger(__name__)


class UploadFolderConnector:
    """The uploads in a folder, which `files` lists and reads."""

    def __init__(self, uploads: UploadFolder, files: Connector) -> None:
        self._uploads, self._files = uploads, files
        self.root = files.root
        self._records: Mapping[str, UploadRecord] = {}
        self._intact: set[str] = set()  # uploads whose content has matched its digest

    def refs(self) -> Iterator[Ref]:
        """The files of all uploads, with the groups of their records."""
        return _restricted(self._files.refs(), self._uploads.records)

    def fetch(self, ref: Ref) -> Blob:
        """The content of a file. Raises ConnectorError, also if it is not the content that was uploaded."""
        number = ref.path.partition("/")[0]
        if number not in self._intact:
            if number not in self._records:
                self._records = self._uploads.records()
            record = self._records.get(number)
            if record is not None:
                with (self._uploads.folder / number / record.name).open("rb") as file:
                    check_content(number, record.digest, content_digest(file))
            self._intact.add(number)
        return self._files.fetch(ref)


class UploadConnector:
    """The uploads of a table. `files` builds a connector for the folder of an upload; `listed_with` names its limits.

    Contents are written to a folder in `cache`, which is removed with the connector.
    """

    root = UPLOADS_ADDRESS

    def __init__(self, table: UploadTable, cache: Path, files: Callable[[Path], Connector], listed_with: str) -> None:
        self._table, self._cache, self._make_files, self._listed_with = table, cache, files, listed_with
        self._folder: Path | None = None
        self._opened: OrderedDict[str, tuple[Connector, int]] = OrderedDict()  # by id, with the size in bytes

    def refs(self) -> Iterator[Ref]:
        """The files of all uploads, in order of their ids, with the groups of their records."""
        return _restricted(self._refs(), self._table.records)

    def _refs(self) -> Iterator[Ref]:
        listings = self._table.listings(self._listed_with)
        for number in self._opened.keys() - listings.keys():  # deleted
            self._remove(number)
        for number, known in listings.items():
            if known is not None:
                yield from known
                continue
            try:
                listed = list(self._files_of(number).refs())
            except FileNotFoundError:  # deleted meanwhile
                continue
            except ConnectorError as error:
                yield Ref(number, error=str(error))
                continue
            refs = [replace(ref, path=f"{number}/{ref.path}" if ref.path else number) for ref in listed]
            if not any(ref.error for ref in refs):
                self._table.keep_listing(number, self._listed_with, refs)
            yield from refs

    def fetch(self, ref: Ref) -> Blob:
        """The content of a file. Raises ConnectorError, and SkipDocument for a credential."""
        number, _, path = ref.path.partition("/")
        try:
            return self._files_of(number).fetch(replace(ref, path=path))
        except FileNotFoundError as error:
            raise ConnectorError(f"The upload {number} was deleted.", "The next sync removes it.") from error

    def _files_of(self, number: str) -> Connector:
        """A connector for the folder of an upload, which is written if it is not there."""
        if number not in self._opened:
            try:
                folder = self._contents() / number
                folder.mkdir(mode=0o700)
                try:
                    self._table.write_to(folder, number)
                except BaseException:
                    shutil.rmtree(folder)
                    raise
            except FileNotFoundError:
                raise
            except OSError as error:
                raise write_error("upload", self._cache, error) from error
            size = sum(path.stat().st_size for path in folder.iterdir())
            self._opened[number] = self._make_files(folder), size
            while len(self._opened) > 1 and sum(size for _, size in self._opened.values()) > _MAX_KEPT_BYTES:
                self._remove(next(iter(self._opened)))
        self._opened.move_to_end(number)
        return self._opened[number][0]

    def _contents(self) -> Path:
        """The folder of the contents, with a folder for each upload."""
        if self._folder is None:
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self._cache.iterdir():  # of processes that were killed
                with contextlib.suppress(FileNotFoundError):  # another process may be removing it
                    if old.stat().st_mtime < time.time() - _LEFTOVER_SECONDS:
                        shutil.rmtree(old, ignore_errors=True)
            self._folder = Path(tempfile.mkdtemp(dir=self._cache))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _remove(self, number: str) -> None:
        del self._opened[number]
        shutil.rmtree(self._contents() / number, ignore_errors=True)


def _restricted(refs: Iterable[Ref], records: Callable[[], Mapping[str, UploadRecord]]) -> Iterator[Ref]:
    """The entries, which only the groups in the record of their upload may see; without a valid one, nobody."""
    known, missing = records(), set[str]()
    for ref in refs:
        number = ref.path.partition("/")[0]
        if number not in known and number not in missing and ref.skip is None:
            known = records()  # it may have been stored since
            if number not in known:
                missing.add(number)
                _log.warning("The upload %s has no valid record, so nobody may see it (`ragfm verify`).", number)
        record = known.get(number)
        yield replace(ref, allow=intersect_groups(ref.allow, record.groups if record else ()))
