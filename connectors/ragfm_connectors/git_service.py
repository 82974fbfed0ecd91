"""Reads the objects of git repositories in a confined process.

Objects are compressed and stored as differences from other objects, so a small pack may unpack to gigabytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from dulwich.config import ConfigFile
from dulwich.errors import FileFormatException, ObjectMissing
from dulwich.object_format import DEFAULT_OBJECT_FORMAT
from dulwich.objects import ObjectID, ShaFile
from dulwich.objectspec import parse_commit
from dulwich.pack import PackData
from dulwich.repo import Repo

from ragfm.core.errors import ParseError
from ragfm.parsing.sandbox.confined_service import ConfinedService

READ_ERRORS = (KeyError, OSError, ValueError, AssertionError, zlib.error, FileFormatException, ObjectMissing)
"""What dulwich raises for damaged repositories."""
_MAX_INDEX = 1 << 28  # bytes


class ConfinedRepository:
    """The objects of a repository. All methods raise ParseError with the reason if they cannot be read."""

    def __init__(self, folder: str, readable: Sequence[str]) -> None:
        """`readable` are the folders in which the repository is stored."""
        self._folder = folder
        self._service = ConfinedService(__name__, readable=readable)

    def tree(self, reference: str) -> ObjectID:
        """The id of the tree of a commit, by the name of a branch or tag, or by hash. Opens the repository again."""
        identity, _ = self._service.call("tree", self._folder, reference, 0)
        return ObjectID(str(identity).encode())

    def read(self, identity: ObjectID, max_bytes: int) -> ShaFile | int:
        """An object, or its size if it has more than `max_bytes` bytes."""
        (kind, size), data = self._service.call(
            "object", self._folder, identity.decode("ascii", "replace"), max_bytes, max_bytes=max_bytes
        )
        if size > max_bytes:
            return int(size)
        try:
            return ShaFile.from_raw_string(int(kind), data)
        except READ_ERRORS as error:
            raise ParseError(f"{type(error).__name__}: {error}") from error

    def index_of(self, pack: BinaryIO) -> bytes:
        """The index of a pack that was fetched."""
        _, index = self._service.call("index", "", "", 0, file=pack.fileno(), max_bytes=_MAX_INDEX)
        return index


class SafeRepo(Repo):
    """A repository of whose configuration only the storage settings are read.

    The other settings name programs and other files, and may have sizes such as `50m`.
    """

    def get_config(self) -> ConfigFile:
        """The storage settings."""
        safe = ConfigFile()
        try:
            with Path(self.commondir(), "config").open("rb") as file:
                config = ConfigFile.from_file(file, file_opener=lambda _: BytesIO())
        except FileNotFoundError:
            return safe
        for name, value in config.items((b"core",)):
            if name.lower() == b"repositoryformatversion":
                safe.set((b"core",), name, value)
        for name, value in config.items((b"extensions",)):
            safe.set((b"extensions",), name, value)
        return safe


def handle(file: BinaryIO | None, action: str, folder: str, argument: str, max_bytes: int) -> tuple[Any, bytes]:
    """Do what a method of ConfinedRepository needs. Runs in the confined process."""
    try:
        if action == "index":
            assert file is not None
            # In its own folder, the process may write.
            with NamedTemporaryFile(dir=".") as index:
                PackData.from_file(file, DEFAULT_OBJECT_FORMAT).create_index_v2(index.name)
                return None, Path(index.name).read_bytes()
        if action == "tree":
            _open.cache_clear()
            return parse_commit(_open(folder), argument.encode()).tree.decode(), b""
        kind, data = _open(folder).object_store.get_raw(ObjectID(argument.encode()))
    except READ_ERRORS as error:
        raise ParseError(f"{type(error).__name__}: {error}") from error
    return [kind, len(data)], data if len(data) <= max_bytes else b""


@lru_cache(maxsize=1)
def _open(folder: str) -> Repo:
    return SafeRepo(folder)
