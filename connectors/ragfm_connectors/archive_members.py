"""The files in archives as documents of a source: listed and fetched by the archive's path and their own.

An archive in an archive is opened, one in that one isn't. What leads out of the archive, is a link, a device, hidden,
too large or packed to be a bomb is listed as skipped, and so is an archive that would be one; a damaged archive is an
error, and its documents stay. `.ragfm-access` files in it hold as in a folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from ragfm.core.access_groups import both
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import FILE as ACCESS
from ragfm_connectors.access_files import parse_access
from ragfm_connectors.archives import DAMAGE, Archive, Member, TooMuch, is_archive, open_archive
from ragfm_connectors.patterns import PathFilter, below

DEPTH = 2
"""How deep archives are opened."""
_Groups: TypeAlias = tuple[str, ...] | None
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True, slots=True)
class _Opened:
    """An archive, and its files by their paths."""

    archive: Archive
    members: dict[str, Member]


class Archives:
    """Lists and reads the archives of a folder."""

    def __init__(self, paths: PathFilter, max_bytes: int, *, hidden: bool) -> None:
        self._paths = paths
        self._max_bytes = max_bytes
        self._hidden = hidden
        self._last: dict[str, tuple[object, _Opened]] = {}  # the archive that was read last, and one within it

    def refs(
        self, file: BinaryIO, name: str, path: str, size: int, revision: str, allow: _Groups, depth: int = 1
    ) -> Iterator[Ref]:
        """What an archive holds, whose own path in the source is `path`."""
        try:
            opened = _open(file, name, size, revision)
            closing = _closing(opened, path)
        except TooMuch as much:
            yield Ref(path, skip=f"the archive {much}")
            return
        except DAMAGE as error:
            yield Ref(path, error=f"the archive can't be read: {_said(error)}", allow=allow)
            return
        if not opened.members:
            yield Ref(path, skip="an archive without files")
        for where, (_, wrong) in closing.items():
            if wrong:
                yield Ref(below(where, ACCESS), error=f"{wrong}, so no group may see what lies beside and below it")
        for inner, member in opened.members.items():
            at = below(path, inner)
            allowed = allow
            for where, (groups, _) in closing.items():
                if at.startswith(f"{where}/" if where else ""):
                    allowed = both(allowed, groups)
            yield from self._member(opened.archive, at, member, allowed, depth)

    def _member(self, archive: Archive, path: str, member: Member, allow: _Groups, depth: int) -> Iterator[Ref]:
        nested = is_archive(path)
        if not (self._paths.takes(path) or (nested and self._paths.may_hold(path))) or path.endswith(f"/{ACCESS}"):
            return
        why = member.skip or self._why_not(path, member)
        if why is None and nested:
            if depth >= DEPTH:
                why = f"an archive within {depth} others is not opened"
            else:
                try:
                    data = archive.read(member.name, self._max_bytes)
                except DAMAGE as error:
                    yield Ref(path, error=f"the archive can't be read: {_said(error)}", allow=allow)
                    return
                yield from self.refs(io.BytesIO(data), path, path, len(data), member.revision, allow, depth + 1)
                return
        yield Ref(path, skip=why) if why else Ref(path, member.revision, allow=allow)

    def _why_not(self, path: str, member: Member) -> str | None:
        if member.size > self._max_bytes:
            return f"{member.size:,} bytes, the limit is {self._max_bytes:,}"
        if not self._hidden and any(part.startswith(".") or part in _HIDDEN for part in path.split("/")):
            return "hidden"
        return None

    def fetch(self, file: BinaryIO, status: os.stat_result, name: str, path: str) -> Blob:
        """A file of an archive, by its path in there. Raises ConnectorError where it can't be had."""
        identity: object = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        try:
            opened = self._known("", identity)
            if opened is None:
                own = os.fdopen(os.dup(file.fileno()), "rb")  # it is read from again when the next one is fetched
                opened = self._keep("", identity, _open(own, name, status.st_size, ""))
            if path not in opened.members:
                outer = next((outer for outer in _prefixes(path) if outer in opened.members), None)
                if outer is None:
                    raise ConnectorError(f"{path!r} is not in the archive {name!r} any more.")
                path = path[len(outer) + 1 :]
                opened = self._known(outer, identity) or self._keep(outer, identity, self._nested(opened, outer))
            member = opened.members[path]
            data = opened.archive.read(member.name, self._max_bytes)
        except TooMuch as much:
            raise ConnectorError(f"The archive {name!r} {much}.") from much
        except DAMAGE as error:
            raise ConnectorError(f"{path!r} in the archive {name!r} can't be read: {_said(error)}.") from error
        return Blob(data, None, {"modified": member.modified} if member.modified else {})

    def _nested(self, opened: _Opened, path: str) -> _Opened:
        data = opened.archive.read(opened.members[path].name, self._max_bytes)
        return _open(io.BytesIO(data), path, len(data), "")

    def _known(self, inner: str, identity: object) -> _Opened | None:
        known = self._last.get("inner" if inner else "")
        return known[1] if known and known[0] == (inner, identity) else None

    def _keep(self, inner: str, identity: object, opened: _Opened) -> _Opened:
        self._last["inner" if inner else ""] = ((inner, identity), opened)
        return opened


def _open(file: BinaryIO, name: str, size: int, revision: str) -> _Opened:
    archive = open_archive(file, name, size, revision)
    return _Opened(archive, {_path(member): member for member in map(_checked, archive.members())})


def _checked(member: Member) -> Member:
    """The same, with a reason to leave it where its name is no path within the archive."""
    why = None
    if ".." in _parts(member.name) or member.name[:1] in ("/", "\\") or member.name[1:2] == ":":
        why = f"its path leads out of the archive: {member.name!r}"
    elif not member.name.isprintable():
        why = "its name can't be read"
    return member if why is None else Member(member.name, member.size, member.revision, member.modified, why)


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _path(member: Member) -> str:
    """A member's path within the archive, with `/` and nothing that means another folder."""
    path = "/".join("__" if part == ".." else part for part in _parts(member.name))
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in path) or "__"


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split("/")
    return (prefix for end in range(1, len(parts)) if is_archive(prefix := "/".join(parts[:end])))


def _closing(opened: _Opened, path: str) -> dict[str, tuple[_Groups, str | None]]:
    """The folders in an archive whose own file says who may see what is in them: whom, and what is wrong with it."""
    closing: dict[str, tuple[_Groups, str | None]] = {}
    for inner, member in opened.members.items():
        folder, _, name = inner.rpartition("/")
        if name == ACCESS:
            access = parse_access(opened.archive.read(member.name, 1 << 21)) if not member.skip else None
            where = below(path, folder) if folder else path
            closing[where] = (access.groups, access.wrong) if access else ((), f"{ACCESS}: {member.skip}")
    return closing


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, LookupError) or not str(error) else str(error)
