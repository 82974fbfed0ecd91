"""Opens archives in a confined process: it gets the descriptor of an open file, and returns names and contents.

A few archives stay open between calls. Each call carries the data that is needed to open its archive again.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, BinaryIO

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.parsing.sandbox.confined_service import ConfinedService
from ragfm_connectors.archives import ARCHIVE_ERRORS, Archive, ArchiveLimitError, Member, open_archive

_MAX_OPEN = 8
_service = ConfinedService(__name__)
_open: OrderedDict[str, Archive] = OrderedDict()  # in the confined process, the archive that was used last at the end


class ConfinedArchive:
    """An archive, or one within it, that is opened in a confined process.

    All methods raise ArchiveLimitError, and ValueError with the reason if the archive is damaged.
    """

    def __init__(self, file: BinaryIO, name: str, size: int, revision: str, max_entries: int) -> None:
        """`file` must stay open as long as this object is used."""
        self._file = file
        self._outer = (os.urandom(8).hex(), name, size, revision, max_entries)
        self._inner: tuple[str, str, int] | None = None

    def nested(self, member: Member, max_bytes: int) -> ConfinedArchive:
        """The archive that is a file of this one, if it has at most `max_bytes` bytes."""
        archive = ConfinedArchive(self._file, *self._outer[1:])
        archive._outer = self._outer
        archive._inner = (member.name, member.revision, max_bytes)
        return archive

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
            return _service.call(self._outer, self._inner, member, max_bytes, file=file, max_bytes=max_bytes)
        except SkipDocument as error:
            raise ArchiveLimitError(error.message) from error
        except ParseError as error:
            raise ValueError(error.message) from error


def handle(
    file: BinaryIO,
    outer: tuple[str, str, int, str, int],
    inner: tuple[str, str, int] | None,
    member: str | None,
    max_bytes: int,
) -> tuple[Any, bytes]:
    """List the files of an archive, or read the file `member`. Runs in the confined process."""
    key, name, size, revision, max_entries = outer
    try:
        archive = _opened(key, lambda: open_archive(file, name, size, revision, max_entries))
        if inner is not None:
            inner_name, inner_revision, max_inner = inner

            def open_inner() -> Archive:
                data = archive.read(inner_name, max_inner)
                return open_archive(io.BytesIO(data), inner_name, len(data), inner_revision, max_entries)

            archive = _opened(f"{key}/{inner_name}", open_inner)
        if member is None:
            return [astuple(found) for found in archive.members()], b""
        return None, archive.read(member, max_bytes)
    except ArchiveLimitError as error:
        raise SkipDocument(str(error)) from error
    except ARCHIVE_ERRORS as error:
        no_text = isinstance(error, LookupError) or not str(error)
        raise ParseError(f"{type(error).__name__}: {error}" if no_text else str(error)) from error


def _opened(key: str, open_it: Callable[[], Archive]) -> Archive:
    """The archive of a key, opened unless it is open already."""
    archive = _open.pop(key, None) or open_it()
    _open[key] = archive
    if len(_open) > _MAX_OPEN:
        _open.popitem(last=False)
    return archive
