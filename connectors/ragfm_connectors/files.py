"""Files of a folder, a single file, or the files that a glob matches."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from ragfm.core.access_groups import both
from ragfm.core.errors import ConnectorError, SourceError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.access_files import FILE as ACCESS
from ragfm_connectors.access_files import access_on_the_way, open_below, read_access
from ragfm_connectors.archive_members import Archives
from ragfm_connectors.archives import is_archive
from ragfm_connectors.patterns import PathFilter, below

_log = logging.getLogger(__name__)

_Groups: TypeAlias = tuple[str, ...] | None

_RACY = 2_000_000_000  # nanoseconds; the coarsest time stamps in use, those of FAT, are two seconds apart
_COLLECTION = {"HEAD", "catalog.db"}  # by these names a folder is one of ragfm's own
# They lie beside a collection, mostly in the folder of the documents.
_SETTINGS = {"ragfm.toml", "ragfm-adapters.json", "ragfm-confidence.json", "ragfm-tune.json"}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


class FilesConnector:
    """What lies in a folder at any depth, one file, or what a glob such as `docs/**/*.md` matches.

    `include` and `exclude` are patterns as in .gitignore, see PathFilter; they don't apply to a single file. Files of
    more than `max_bytes`, hidden ones unless `hidden` is set, and what is not a regular file are listed as skipped.
    Symbolic links are followed within the folder, to what is not listed already. Collections in the folder are not
    part of it, nor are folders that `ragfm.core.output_folder` has marked. Unless `archives` is false, zip and tar
    archives are as folders: see `ragfm_connectors.archive_members`.

    Who may see a file is what the files `.ragfm-access` say that lie on the way to it, from the root down; see
    `ragfm_connectors.access_files`. Of a file reached by a link, those on the way to the link and to the file both
    hold.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        archives: bool = True,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises SourceError where there is nothing at `location`, ConfigError for a pattern that can't be one."""
        self.root, glob = _root_and_glob(os.fspath(location))
        """The folder, or the file; absolute. Of a glob the part before the first wildcard."""
        self.max_bytes = max_bytes
        self._hidden = hidden
        self._paths = PathFilter(include, exclude, glob)
        self._archives = Archives(self._paths, max_bytes, hidden=hidden) if archives else None

    def refs(self) -> Iterator[Ref]:
        """All files in order of path, with `size:mtime` as revision; those of an archive in its own order.

        Raises SourceError where the root can't be listed.

        A folder that can't be listed has one Ref with `error`, and so has a file that can't be looked at, and a
        `.ragfm-access` that closes its folder because it can't be read or understood.
        """
        status = _status(self.root)
        if status is None:
            raise SourceError(f"There is no file or folder {str(self.root)!r} any more.", "Check the path.")
        listing = _Listing(
            os.fspath(self.root), self._paths, self.max_bytes, hidden=self._hidden, archives=self._archives
        )
        listed = listing.folder(status) if stat.S_ISDIR(status.st_mode) else listing.alone(status)
        # A name that is not UTF-8 may look as another one that is: the last of a path wins, the one without `skip`.
        in_order = sorted(listed, key=lambda ref: (listing.within.get(ref.path, ref.path), ref.skip is None))
        yield from {ref.path: ref for ref in in_order}.values()

    def fetch(self, ref: Ref) -> Blob:
        """A file's bytes, and when it was `modified` (ISO 8601, UTC). The media type is left to its content.

        Raises ConnectorError where the file is gone, unreadable, too large by now, or no longer within the root, and
        where it has been closed to somebody since it was listed: who closes a folder may then put more into it.
        """
        path, inner = self._split(ref.path)
        with self.open(Ref(path, allow=ref.allow)) as file:
            status = os.fstat(file.fileno())
            if inner and self._archives:
                return self._archives.fetch(file, status, self._path(path).name, inner)
            if status.st_size > self.max_bytes:
                raise ConnectorError(f"{str(self._path(path))!r} has grown: {_too_large(status, self.max_bytes)}.")
            data = file.read(status.st_size)
        metadata: dict[str, Scalar] = {}
        with contextlib.suppress(ValueError, OverflowError):  # a time stamp beyond the year 9999
            metadata["modified"] = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
        return Blob(data, None, metadata)

    @contextlib.contextmanager
    def open(self, ref: Ref) -> Iterator[BufferedReader]:
        """A file for reading, for as long as the block lasts; at its end it is seen who may see the file by now.

        Raises ConnectorError as `fetch` does, the size aside, and for an OSError in the block.
        """
        path = self._path(ref.path)
        try:
            real = Path(os.path.realpath(path, strict=True))
            real_root = os.path.realpath(self.root)
            if not real.is_relative_to(real_root):
                raise ConnectorError(f"{str(path)!r} leads out of {str(self.root)!r}.", "It is not read.")
            with open_below(real_root, real) as file:
                yield file
            allow = _access_to(os.fspath(self.root), ref.path, real_root, real)  # read after the content
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise ConnectorError(
                f"{str(path)!r} can't be read: {_reason(error)}.", "The next ingest tries again."
            ) from error
        if both(allow, ref.allow) != both(ref.allow, None):
            raise ConnectorError(
                f"{str(path)!r} has been closed to some who might see it when it was listed.",
                "The next ingest tries again.",
            )

    def _path(self, path: str) -> Path:
        return self.root / path if path else self.root

    def _split(self, path: str) -> tuple[str, str]:
        """The file that has an entry, and the entry's path within it if that file is an archive."""
        if self._archives is None:
            return path, ""
        if path and is_archive(self.root.name) and self.root.is_file():
            return "", path
        for end in (at.start() for at in re.finditer("/", path)):
            if is_archive(path[:end]) and self._path(path[:end]).is_file():
                return path[:end], path[end + 1 :]
        return path, ""


class _Listing:
    """One walk through a folder. Real folders come first: a link never hides the place that it leads to."""

    def __init__(
        self, root: str, paths: PathFilter, max_bytes: int, *, hidden: bool, archives: Archives | None
    ) -> None:
        self._root = root
        self._real_root = Path(os.path.realpath(root))
        self._paths = paths
        self._max_bytes = max_bytes
        self._hidden = hidden
        self._archives = archives
        self.within: dict[str, str] = {}
        """The archive of each entry that lies in one, by their paths."""
        self._folders: list[tuple[str, _Groups]] = []  # each with who may see what lies there, as said further up
        self._links: list[tuple[str, _Groups]] = []  # a heap, of links with who may see what lies in their folders
        self._listed: set[tuple[int, int]] = set()

    def folder(self, status: os.stat_result) -> Iterator[Ref]:
        """All that the root holds."""
        self._later("", status, None)
        while self._folders or self._links:
            if self._folders:
                yield from self._entries(*self._folders.pop())
            else:
                yield from self._link(*heapq.heappop(self._links))

    def alone(self, status: os.stat_result) -> Iterator[Ref]:
        """The one file that the root is."""
        if self._real_root.name == ACCESS:
            yield Ref("", skip="it says who may see the files beside it")
            return
        for folder in {os.path.dirname(self._root), str(self._real_root.parent)}:  # noqa: PTH120
            if wrong := read_access(folder).wrong:
                _log.warning("%s/%s: %s; nobody sees %s.", folder, ACCESS, wrong, self._root)
        yield from self._file("", status, _access_to(self._root, "", self._real_root, self._real_root))

    def _file(self, path: str, status: os.stat_result, allow: _Groups) -> Iterator[Ref]:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:
            yield Ref(path, skip=f"not a regular file but {kind}")
        elif self._opens(path or self._root):
            self._listed.add((status.st_dev, status.st_ino))
            yield from self._archive(path, status, allow)
        elif status.st_size > self._max_bytes:
            yield Ref(path, skip=_too_large(status, self._max_bytes))
        else:
            self._listed.add((status.st_dev, status.st_ino))
            yield Ref(path, _revision(self._real_root, self._at(path), status), allow=allow)

    def _opens(self, path: str) -> bool:
        return self._archives is not None and is_archive(path)

    def _archive(self, path: str, status: os.stat_result, allow: _Groups) -> Iterator[Ref]:
        assert self._archives is not None
        at = self._at(path)
        try:
            revision = _revision(self._real_root, at, status)
            with open_below(self._real_root, os.path.realpath(at)) as file:
                held = list(self._archives.refs(file, at, path, status.st_size, revision, allow))
        except (OSError, ValueError) as error:  # ValueError: it leads out of the folder by now
            yield Ref(path, error=f"the archive can't be opened: {_reason(error)}", allow=allow)
            return
        self.within |= dict.fromkeys((ref.path for ref in held), path)
        yield from held

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _later(self, path: str, status: os.stat_result, allow: _Groups) -> None:
        self._listed.add((status.st_dev, status.st_ino))
        self._folders.append((path, allow))

    def _entries(self, path: str, allow: _Groups) -> Iterator[Ref]:
        try:
            with os.scandir(self._at(path)) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            if not path:
                raise SourceError(
                    f"The folder {self._root!r} can't be listed: {_reason(error)}.", "Nothing was changed."
                ) from error
            if not isinstance(error, FileNotFoundError):  # one that has just been removed is not there, that's all
                # Nothing new is known of what lies there: who could see it still can, as far as the folders above say.
                yield Ref(path, error=f"the folder can't be listed: {_reason(error)}", allow=allow)
            return
        if _COLLECTION.issubset(names):
            if not path:
                raise SourceError(f"The folder {self._root!r} is a collection of ragfm.", "Name a folder of documents.")
            return
        if OUTPUT in names:
            if not path:
                raise SourceError(
                    f"The folder {self._root!r} holds what ragfm has written.",
                    f"Name a folder of documents. If it is one, remove the file {OUTPUT} from it.",
                )
            return
        access = read_access(self._at(path))  # after the names: what is put in after the folder was closed isn't open
        if access.wrong:
            yield Ref(below(path, ACCESS), error=f"{access.wrong}, so no group may see what lies beside and below it")
        elif access.groups == ():
            yield Ref(below(path, ACCESS), skip="it names no group, so none may see what lies beside and below it")
        for name in names:
            if name != ACCESS:
                yield from self._entry(below(path, name), name, both(allow, access.groups))

    def _entry(self, path: str, name: str, allow: _Groups) -> Iterator[Ref]:
        try:
            status = os.lstat(self._at(path))
        except FileNotFoundError:
            return
        except OSError as error:
            if not self._paths.excludes(path):
                yield Ref(_printable(path), error=_reason(error), allow=allow)
            return
        is_folder, is_link = stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
        wanted = not is_folder and self._paths.takes(path)
        if not (wanted or ((is_folder or is_link or self._opens(path)) and self._paths.may_hold(path))):
            return
        if name.startswith(".") and not self._hidden:
            if not (is_folder and all(os.path.lexists(f"{self._at(path)}/{mark}") for mark in _COLLECTION)):
                yield Ref(_printable(path), skip="hidden")
        elif _printable(path) != path:
            yield Ref(_printable(path), skip="its name is not UTF-8")
        elif is_folder:
            self._later(path, status, allow)
        elif is_link:
            heapq.heappush(self._links, (path, allow))
        elif name not in _SETTINGS:
            yield from self._file(path, status, allow)

    def _link(self, path: str, allow: _Groups) -> Iterator[Ref]:
        try:
            real = Path(os.path.realpath(self._at(path), strict=True))
            status = real.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                yield Ref(path, skip="symbolic link that leads nowhere")
            else:  # what lies behind it may still be there
                yield Ref(path, error=f"the symbolic link can't be followed: {_reason(error)}", allow=allow)
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        if not (self._paths.may_hold(path) if is_folder or self._opens(path) else self._paths.takes(path)):
            return
        if not real.is_relative_to(self._real_root):
            yield Ref(path, skip="symbolic link that leaves the folder")
        elif (status.st_dev, status.st_ino) in self._listed:
            yield Ref(path, skip=f"symbolic link to a {'folder' if is_folder else 'file'} already listed")
        elif real.name == ACCESS:
            yield Ref(path, skip="symbolic link to a file that says who may see others")
        else:
            there = real.parent.relative_to(self._real_root)
            allow = both(allow, access_on_the_way(str(self._real_root), str(there)))
            if is_folder:
                self._later(path, status, allow)
            else:
                yield from self._file(path, status, allow)


def _root_and_glob(location: str) -> tuple[Path, str]:
    """What a location covers, and the pattern that the rest of it is. A name that exists is never a pattern."""
    if not location or "\0" in location:
        raise SourceError(f"{location!r} is no path.", "Name a folder, a file or a glob such as 'docs/**/*.md'.")
    path = Path(os.path.abspath(location))  # noqa: PTH100  resolve() would follow links: a source keeps its name
    if _printable(str(path)) != str(path):
        raise SourceError(f"The path {_printable(str(path))} is not UTF-8.", "Rename it.")
    if _status(path) is not None:
        return path, ""
    fixed = next((at for at, part in enumerate(path.parts) if re.search(r"[*?[]", part)), 0)
    root = Path(*path.parts[:fixed])
    if not fixed:
        raise SourceError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    status = _status(root)
    if status is None or not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"There is no folder {str(root)!r} to look for {location!r} in.", "Check the path.")
    return root, "/".join(path.parts[fixed:])


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{str(path)!r} can't be looked at: {_reason(error)}.", "Check its permissions.") from error


def _revision(root: Path, path: str, status: os.stat_result) -> str:
    """Size and time of change; the content too, where the file may change again without the two changing.

    A file that has just been written can be written once more within the same tick of the file system's clock. Git
    calls such an entry racily clean (https://git-scm.com/docs/racy-git) and looks at the content, as done here.
    """
    revision = f"{status.st_size}:{status.st_mtime_ns}"
    if status.st_mtime_ns > time.time_ns() - _RACY:
        with contextlib.suppress(OSError, ValueError), open_below(root, os.path.realpath(path)) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            return f"{revision}:{digest.hexdigest()}"
    return revision


def _access_to(root: str, path: str, real_root: str | Path, real: Path) -> _Groups:
    """Who may see a file, by what is said on the way to it: to the path that it is listed by, and to where it is."""
    if not path:  # the file is the source
        folders = (os.path.dirname(root), str(real.parent))  # noqa: PTH120
        return both(*(read_access(folder).groups for folder in folders))
    folder, real_folder = path.rpartition("/")[0], str(real.parent.relative_to(real_root))
    allow = access_on_the_way(root, folder)
    return allow if real_folder == (folder or ".") else both(allow, access_on_the_way(str(real_root), real_folder))


def _too_large(status: os.stat_result, limit: int) -> str:
    return f"{status.st_size:,} bytes, the limit is {limit:,}"


def _printable(path: str) -> str:
    """A name with a printable stand-in for each byte that is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
