"""Files in archives as documents of a source; their path is that of the archive followed by their own.

An archive within an archive is opened, an archive within that one is not. Entries that lead out of the archive, links,
devices, hidden, too large and suspiciously compressed entries are listed as skipped, and so is an archive that is
itself a decompression bomb. A damaged archive is an error, so its documents are kept. Access files in an archive apply
as in a folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, TypeAlias

from ragfm.core.access_groups import intersect_groups, path_prefix
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.archives import ARCHIVE_ERRORS, Archive, ArchiveLimitError, Member, is_archive, open_archive
from ragfm_connectors.patterns import PathFilter, join_path

MAX_DEPTH = 2
"""How many levels of archives are opened."""
_Groups: TypeAlias = tuple[str, ...] | None
_OpenArchive: TypeAlias = tuple[Archive, dict[str, Member]]
"""An archive, and its files by path."""
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
_MAX_ACCESS_FILE = 1 << 21


class ArchiveReader:
    """Lists and reads the archives of a folder."""

    def __init__(self, paths: PathFilter, max_bytes: int, *, hidden: bool) -> None:
        self._paths = paths
        self._max_bytes = max_bytes
        self._hidden = hidden
        # The archive that was read last, and one within it, with what identifies their content.
        self._outer: tuple[object, _OpenArchive] | None = None
        self._inner: tuple[object, _OpenArchive] | None = None

    def refs(
        self, file: BinaryIO, name: str, path: str, size: int, revision: str, allow: _Groups, depth: int = 1
    ) -> Iterator[Ref]:
        """The files of the archive at `path` in the source."""
        rules: dict[str, AccessRule] = {}  # by folder
        try:
            archive, members = _open(file, name, size, revision)
            for inner_path, member in members.items():
                folder, _, base_name = inner_path.rpartition("/")
                if base_name == ACCESS_FILE and member.skip:
                    rules[folder] = AccessRule((), f"{ACCESS_FILE}: {member.skip}")
                elif base_name == ACCESS_FILE:
                    rules[folder] = parse_access_file(archive.read(member.name, _MAX_ACCESS_FILE))
        except ArchiveLimitError as error:
            yield Ref(path, skip=f"the archive {error}")
            return
        except ARCHIVE_ERRORS as error:
            yield Ref(path, error=f"the archive cannot be read: {_describe(error)}", allow=allow)
            return
        if not members:
            yield Ref(path, skip="an archive without files")
        for folder, rule in rules.items():
            if rule.problem:
                yield rule.problem_ref(join_path(path, folder) if folder else path)
        for inner_path, member in members.items():
            groups = allow
            for folder, rule in rules.items():
                if inner_path.startswith(path_prefix(folder)):
                    groups = intersect_groups(groups, rule.groups)
            member_path = join_path(path, inner_path)
            nested = is_archive(member_path)
            wanted = self._paths.includes(member_path) or (nested and self._paths.may_contain(member_path))
            if not wanted or member_path.endswith(f"/{ACCESS_FILE}"):
                continue
            skip = member.skip
            if skip is None and member.size > self._max_bytes:
                skip = f"{member.size:,} bytes, the limit is {self._max_bytes:,}"
            is_hidden = any(part.startswith(".") or part in _HIDDEN for part in member_path.split("/"))
            if skip is None and is_hidden and not self._hidden:
                skip = "hidden"
            if skip is None and nested and depth >= MAX_DEPTH:
                skip = f"an archive within {depth} others is not opened"
            if skip is not None:
                yield Ref(member_path, skip=skip)
            elif nested:
                try:
                    data = archive.read(member.name, self._max_bytes)
                except ARCHIVE_ERRORS as error:
                    yield Ref(member_path, error=f"the archive cannot be read: {_describe(error)}", allow=groups)
                    continue
                yield from self.refs(
                    io.BytesIO(data), member_path, member_path, len(data), member.revision, groups, depth + 1
                )
            else:
                yield Ref(member_path, member.revision, allow=groups)

    def fetch(self, file: BinaryIO, status: os.stat_result, name: str, path: str) -> Blob:
        """A file of an archive, by its path within it. Raises ConnectorError if it cannot be read."""
        identity: object = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        try:
            if self._outer is None or self._outer[0] != identity:
                own_file = os.fdopen(os.dup(file.fileno()), "rb")  # stays open for the next call
                self._outer = (identity, _open(own_file, name, status.st_size, ""))
            archive, members = self._outer[1]
            if path not in members:
                parts = path.split("/")
                folders = ("/".join(parts[:end]) for end in range(1, len(parts)))
                inner = next((folder for folder in folders if is_archive(folder) and folder in members), None)
                if inner is None:
                    raise ConnectorError(f"{path!r} is no longer in the archive {name!r}.")
                if self._inner is None or self._inner[0] != (inner, identity):
                    data = archive.read(members[inner].name, self._max_bytes)
                    self._inner = ((inner, identity), _open(io.BytesIO(data), inner, len(data), ""))
                (archive, members), path = self._inner[1], path[len(inner) + 1 :]
            member = members[path]
            data = archive.read(member.name, self._max_bytes)
        except ArchiveLimitError as error:
            raise ConnectorError(f"The archive {name!r} {error}.") from error
        except ARCHIVE_ERRORS as error:
            raise ConnectorError(f"{path!r} in the archive {name!r} cannot be read: {_describe(error)}.") from error
        return Blob(data, None, {"modified": member.modified} if member.modified else {})


def _open(file: BinaryIO, name: str, size: int, revision: str) -> _OpenArchive:
    archive = open_archive(file, name, size, revision)
    members = {}
    for member in archive.members():
        parts = [part for part in member.name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or member.name[:1] in ("/", "\\") or member.name[1:2] == ":":
            member = replace(member, skip=f"its path leads out of the archive: {member.name!r}")
        elif not member.name.isprintable():
            member = replace(member, skip="its name is not printable")
        path = "/".join("__" if part == ".." else part for part in parts)
        printable = "".join(character if character.isprintable() else "\ufffd" for character in path)
        members[printable or "__"] = member
    return archive, members


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) or not str(error) else str(error)
