"""Files in archives as documents of a source; their path is that of the archive followed by their own.

An archive within an archive is opened, an archive within that one is not. Entries that lead out of the archive, links,
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
from itertools import islice
from typing import BinaryIO, TypeAlias

from ragfm.core.access_groups import intersect_groups, path_prefix
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.archive_service import ConfinedArchive
from ragfm_connectors.archives import ArchiveLimitError, Member, is_archive
from ragfm_connectors.credentials import credential_by_name
from ragfm_connectors.patterns import PathFilter, join_path

MAX_DEPTH = 2
"""How many levels of archives are opened."""
_Groups: TypeAlias = tuple[str, ...] | None
_OpenArchive: TypeAlias = tuple[ConfinedArchive, dict[str, Member]]
"""An archive, and its files by path."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # also bytes that are not UTF-8
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")
_MAX_ACCESS_FILE = 1 << 21
_MAX_OPEN = 8  # archives that stay open, since a sync may read several in turn


class ArchiveReader:
    """Lists and reads the archives of a folder. They are opened in a confined process.

    An archive with more than `max_files` files, including those in archives within it, is skipped. The listing of an
    archive is kept until the next but one, and used again if its file has not changed.
    """

    def __init__(self, paths: PathFilter, max_bytes: int, max_files: int, *, hidden: bool) -> None:
        self._paths = paths
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._hidden = hidden
        self._open: OrderedDict[object, _OpenArchive] = OrderedDict()  # by what identifies the content
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
            refs = list(islice(self._list(archive, path, allow, 1), self._max_files + 1))
            if len(refs) > self._max_files:
                refs = [Ref(path, skip=f"the archive has over {self._max_files:,} files, which is the limit")]
        if not any(ref.error for ref in refs):
            self._listings[key] = refs
        return refs

    def _list(self, archive: ConfinedArchive, path: str, allow: _Groups, depth: int) -> Iterator[Ref]:
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
            nested = is_archive(member_path)
            wanted = self._paths.includes(member_path) or (nested and self._paths.may_contain(member_path))
            if not wanted or member_path.endswith(f"/{ACCESS_FILE}"):
                continue
            skip = member.skip
            if skip is None and member.size > self._max_bytes:
                skip = f"{member.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)"
            is_hidden = any(part.startswith(".") or part in _HIDDEN for part in member_path.split("/"))
            if skip is None and is_hidden and not self._hidden:
                skip = "hidden"
            if skip is None and not self._paths.selects(member_path):
                skip = credential_by_name(inner_path.rpartition("/")[2])
            if skip is None and nested and depth >= MAX_DEPTH:
                skip = f"an archive within {depth} others is not opened"
            if skip is not None:
                yield Ref(member_path, skip=skip)
            elif nested:
                yield from self._list(archive.nested(member, self._max_bytes), member_path, groups, depth + 1)
            else:
                yield Ref(member_path, member.revision, allow=groups)

    def fetch(self, file: BinaryIO, status: os.stat_result, name: str, path: str) -> Blob:
        """A file of an archive, by its path within it. Raises ConnectorError if it cannot be read."""
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        try:
            archive, members = self._opened(identity) or self._keep_open(
                identity,
                # The file stays open for the next call.
                ConfinedArchive(os.fdopen(os.dup(file.fileno()), "rb"), name, status.st_size, "", self._max_files),
            )
            if path not in members:
                parts = path.split("/")
                folders = ("/".join(parts[:end]) for end in range(1, len(parts)))
                inner = next((folder for folder in folders if is_archive(folder) and folder in members), None)
                if inner is None:
                    raise ConnectorError(f"{path!r} is no longer in the archive {name!r}.")
                key = (inner, identity)
                nested = archive.nested(members[inner], self._max_bytes)
                archive, members = self._opened(key) or self._keep_open(key, nested)
                path = path[len(inner) + 1 :]
            member = members[path]
            data = archive.read(member.name, self._max_bytes)
        except ArchiveLimitError as error:
            raise ConnectorError(f"The archive {name!r} {error}.") from error
        except KeyError as error:
            raise ConnectorError(f"{path!r} is no longer in the archive {name!r}.") from error
        except ValueError as error:
            raise ConnectorError(f"{path!r} in the archive {name!r} cannot be read: {error}.") from error
        return Blob(data, None, {"modified": member.modified} if member.modified else {})

    def _opened(self, key: object) -> _OpenArchive | None:
        if key in self._open:
            self._open.move_to_end(key)
        return self._open.get(key)

    def _keep_open(self, key: object, archive: ConfinedArchive) -> _OpenArchive:
        opened = self._open[key] = (archive, _by_path(archive.members()))
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return opened


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
