"""Opens archives in a confined process: it gets the descriptor of an open file, and returns names and contents.

A few archives stay open between calls. Each call carries the data that is needed to open its archive again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import astuple
from typing import Any, BinaryIO

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm_connectors.archives import ARCHIVE_ERRORS, Archive, ArchiveLimitError, Member, open_archive

_MAX_OPEN = 8
_service = ConfinedService(__name__)
_open: OrderedDict[str, Archive] = OrderedDict()  # in the confined process, the archive that was used last at the end


class ConfinedArchive:
    """An archive that is opened in a confined process.

    All methods raise ArchiveLimitError, and ValueError with the reason if the archive is damaged.
    """

    def __init__(self, file: BinaryIO, name: str, size: int, revision: str, max_entries: int) -> None:
        """`file` must stay open as long as this object is used."""
        self._file = file
        self._archive = (os.urandom(8).hex(), name, size, revision, max_entries)

    def members(self) -> list[Member]:
        """The files; if a name occurs twice, only the last one."""
        fields, _ = self._call(None, 0)
        return [Member(*field) for field in fields]

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file. Raises ValueError if it is larger than `max_bytes`."""
        return self._call(name, max_bytes)[1]

    def _call(self, member: str | None, max_bytes: int) -> tuple[Any, bytes]:
        try:
            file = self._file.fileno()
            return _service.call(self._archive, member, max_bytes, file=file, max_bytes=max_bytes)
        except SkipDocument as error:
            raise ArchiveLimitError(error.message) from error
        except ParseError as error:
            raise ValueError(error.message) from error


def handle(
    file: BinaryIO, opened: tuple[str, str, int, str, int], member: str | None, max_bytes: int
) -> tuple[Any, bytes]:
    """List the files of an archive, or read the file `member`. Runs in the confined process."""
    key, name, size, revision, max_entries = opened
    try:
        archive = _open.pop(key, None) or open_archive(file, name, size, revision, max_entries)
        _open[key] = archive
        if len(_open) > _MAX_OPEN:
            _open.popitem(last=False)
        if member is None:
            return [astuple(found) for found in archive.members()], b""
        return None, archive.read(member, max_bytes)
    except ArchiveLimitError as error:
        raise SkipDocument(str(error)) from error
    except MemoryError as error:
        _open.pop(key, None)  # what it had read may be lost
        raise ParseError("unpacking it takes too much memory") from error
    except ARCHIVE_ERRORS as error:
        no_text = isinstance(error, LookupError) or not str(error)
        raise ParseError(f"{type(error).__name__}: {error}" if no_text else str(error)) from error
