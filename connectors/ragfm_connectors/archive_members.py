"""Files in archives as documents of a source; their path is that of the archive followed by their own.

An archive within an archive is not opened. Entries that lead out of the archive, links,
devices, hidden, too large and suspiciously compressed entries are listed as skipped, and so is an archive that is
itself a decompression bomb. A damaged archive is an error, so its documents are kept. Access files in an archive apply
as in a folder.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, TypeAlias

from ragfm.core.access_groups import intersect_groups, path_prefix
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.archive_service import ConfinedArchive
from ragfm_connectors.archives import ArchiveLimitError, Member, is_archive
from ragfm_connectors.credentials import credential_by_name
from ragfm_connectors.patterns import PathFilter, join_path

_Groups: TypeAlias = tuple[str, ...] | None
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # also bytes that are not UTF-8
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
_MAX_ACCESS_FILE = 1 << 21
_MAX_OPEN = 8  # archives that stay open, since a sync may read several in turn


class ArchiveReader:
    """Lists and reads the archives of a folder. They are opened in a confined process.

    An archive with more than `max_files` files is skipped. The listing of an archive is kept until the next but one,
    and used again if its file has not changed.
    """

    def __init__(self, paths: PathFilter, max_bytes: int, max_files: int, *, hidden: bool) -> None:
        self._paths = paths
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._hidden = hidden
        self._open: OrderedDict[object, tuple[ConfinedArchive, dict[str, Member]]] = (
            OrderedDict()
        )  # with its files by path
        self._listings: dict[object, list[Ref]] = {}
        self._older_listings: dict[object, list[Ref]] = {}

    def begin_listing(self) -> None:
        """Begin a listing of the folder."""
        self._older_listings, self._listings = self._listings, {}

    def refs(self, file: BinaryIO, name: str, path: str, size: int, revision: str, allow: _Groups) -> list[Ref]:
        """The files of the archive at `path` in the source."""
        key = (path, size, revision, allow)
        refs = self._older_listings.get(key)
        if refs is None:
            archive = ConfinedArchive(file, name, size, revision, self._max_files)
            refs = list(self._list(archive, path, allow))
        if not any(ref.error for ref in refs):
            self._listings[key] = refs
        return refs

    def _list(self, archive: ConfinedArchive, path: str, allow: _Groups) -> Iterator[Ref]:
        rules: dict[str, AccessRule] = {}  # by folder
        try:
            members = _by_path(archive.members())
            for inner_path, member in members.items():
                folder, _, base_name = inner_path.rpartition("/")
                if base_name == ACCESS_FILE and member.skip:
                    rules[folder] = AccessRule((), f"{ACCESS_FILE}: {member.skip}")
                elif base_name == ACCESS_FILE:
                    rules[folder] = parse_access_file(archive.read(member.name, _MAX_ACCESS_FILE))
        except ArchiveLimitError as error:
            yield Ref(path, skip=f"the archive {error}")
            return
        except ValueError as error:
            yield Ref(path, error=f"the archive cannot be read: {error}", allow=allow)
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
            if not self._paths.includes(member_path) or member_path.endswith(f"/{ACCESS_FILE}"):
                continue
            skip = member.skip
            if skip is None and member.size > self._max_bytes:
                skip = f"{member.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)"
            is_hidden = any(part.startswith(".") or part in _HIDDEN for part in member_path.split("/"))
            if skip is None and is_hidden and not self._hidden:
                skip = "hidden"
            if skip is None and not self._paths.selects(member_path):
                skip = credential_by_name(inner_path.rpartition("/")[2])
            if skip is None and is_archive(member_path):
                skip = "an archive within an archive is not opened"
            if skip is not None:
                yield Ref(member_path, skip=skip)
            else:
                yield Ref(member_path, member.revision, allow=groups)

    def fetch(self, file: BinaryIO, status: os.stat_result, name: str, path: str) -> Blob:
        """A file of an archive, by its path within it. Raises ConnectorError if it cannot be read."""
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        try:
            if identity not in self._open:
                duplicate = os.fdopen(os.dup(file.fileno()), "rb")  # which stays open for the next call
                archive = ConfinedArchive(duplicate, name, status.st_size, "", self._max_files)
                self._open[identity] = archive, _by_path(archive.members())
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(identity)
            archive, members = self._open[identity]
            member = members[path]
            data = archive.read(member.name, self._max_bytes)
        except ArchiveLimitError as error:
            raise ConnectorError(f"The archive {name!r} {error}.") from error
        except KeyError as error:
            raise ConnectorError(f"{path!r} is no longer in the archive {name!r}.") from error
        except ValueError as error:
            raise ConnectorError(f"{path!r} in the archive {name!r} cannot be read: {error}.") from error
        return Blob(data, None, {"modified": member.modified} if member.modified else {})


def _by_path(found: list[Member]) -> dict[str, Member]:
    """The files of an archive by path; those that must not be read get a reason."""
    members = {}
    for member in found:
        parts = [part for part in member.name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or member.name[:1] in ("/", "\\") or member.name[1:2] == ":":
            member = replace(member, skip=f"its path leads out of the archive: {member.name!r}")
        elif _UNPRINTABLE.search(member.name):
            member = replace(member, skip="its name is not printable")
        path = "/".join("__" if part == ".." else part for part in parts)
        members[_UNPRINTABLE.sub("\ufffd", path) or "__"] = member
    return members
