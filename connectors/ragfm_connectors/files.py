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
from dataclasses import replace
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from ragfm.core.access_groups import intersect_groups, still_allows
from ragfm.core.errors import ConfigError, ConnectorError, SkipDocument, SourceError
from ragfm.core.identities import Identities
from ragfm.core.output_folder import OUTPUT
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.access_files import ACCESS_FILE, groups_along_path, open_below, read_access_file
from ragfm_connectors.archive_members import ArchiveReader
from ragfm_connectors.archives import MAX_ENTRIES, is_archive
from ragfm_connectors.credentials import credential_by_content, credential_by_name
from ragfm_connectors.patterns import PathFilter, join_path
from ragfm_connectors.posix_access import FileReaders

_log = logging.getLogger(__name__)

_Groups: TypeAlias = tuple[str, ...] | None

_RACY_NS = 2_000_000_000  # the coarsest time stamps in use, those of FAT, are two seconds apart
_COLLECTION_FILES = {"HEAD", "catalog.db"}  # a folder with these is a collection
_SETTINGS_FILES = {"ragfm.toml", "ragfm-confidence.json", "ragfm-tune.json"}
_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


class FilesConnector:
    """All files below a folder, one file, or the files that a glob such as `docs/**/*.md` matches.

    `include` and `exclude` are patterns as in .gitignore, see PathFilter; they do not apply to a single file. Files
    larger than `max_bytes`, hidden files unless `hidden` is set, and special files are listed as skipped.
    Symbolic links are followed within the folder, unless their target is listed already. Collections in the folder are
    left out, and so are folders that `ragfm.core.output_folder` has marked. Zip and tar archives are opened like
    folders unless `archives` is false; those with more than `archive_files` files are skipped, see
    `ragfm_connectors.archive_members`. Files that look like credentials are skipped unless they are the source itself
    or `include` selects them, see `ragfm_connectors.credentials`.

    The access files from the root down to a file determine which groups may see it, see
    `ragfm_connectors.access_files`. For a symbolic link, those on the path to the link and those on the path to its
    target both apply. With `identities`, the path of a mapping file (`ragfm.core.identities`), owner, group, mode and
    POSIX ACL apply, too, see `ragfm_connectors.posix_access`.
    """

    fetch_anywhere = True

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        archives: bool = True,
        archive_files: int = MAX_ENTRIES,
        identities: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises SourceError if there is nothing at `location`, ConfigError for an invalid pattern or mapping file."""
        self.root, glob = _split_glob(os.fspath(location))
        """The absolute path of the folder or file; for a glob, the part before the first wildcard."""
        self.max_bytes = max_bytes
        self.identities = Identities(identities) if identities is not None else None
        """The groups that users and groups of the system stand for; None if these do not matter."""
        if self.identities is not None and not hasattr(os, "getxattr"):
            raise ConfigError("The permissions of files can only be read on Linux.", "Leave out the option identities.")
        self.hidden = hidden
        self.paths = PathFilter(include, exclude, glob)
        self.archives = ArchiveReader(self.paths, max_bytes, archive_files, hidden=hidden) if archives else None

    def covers(self, path: str) -> bool:
        """Whether a file belongs to the source, or anything in a folder may, by the patterns alone."""
        file = self.paths.includes(path)
        return file or (not (self.root / path).is_file() and self.paths.may_contain(path))

    def refs(self) -> Iterator[Ref]:
        """All files, sorted by path, with `size:mtime` as revision. Files of an archive come in the archive's order.

        A folder that cannot be listed, a file that cannot be examined, and an invalid access file yield a Ref with
        `error`. Raises SourceError if the root cannot be listed.
        """
        status = _status(self.root)
        if status is None:
            raise SourceError(f"The file or folder {str(self.root)!r} no longer exists.", "Check the path.")
        listing = _Listing(self)
        refs = listing.folder(status) if stat.S_ISDIR(status.st_mode) else listing.single_file(status)
        # A name that is not UTF-8 may look like another name: the entry without `skip` wins.
        in_order = sorted(refs, key=lambda ref: (listing.containing_archive.get(ref.path, ref.path), ref.skip is None))
        readers = FileReaders()
        for ref in {ref.path: ref for ref in in_order}.values():
            file = listing.containing_archive.get(ref.path, ref.path)
            if self.identities is not None and not ref.skip:
                try:
                    allow = self.identities.groups(readers.of(self._file_path(file)))
                    ref = replace(ref, allow=intersect_groups(ref.allow, allow))
                except (OSError, ValueError) as error:  # ValueError: a name that was listed in a printable form
                    reason = f"its permissions cannot be read: {_reason(error)}"
                    ref = replace(ref, error=ref.error or reason)
            yield ref

    def fetch(self, ref: Ref) -> Blob:
        """The content of a file, with the time `modified` (ISO 8601, UTC) as metadata.

        Raises ConnectorError if the file is gone, unreadable, too large or outside of the root, and if it has been
        closed to a group since it was listed: its new content may be hidden from the group. Raises SkipDocument
        for a credential.
        """
        path, inner_path = self._split_path(ref.path)
        with self.open(Ref(path, allow=ref.allow)) as file:
            status = os.fstat(file.fileno())
            if inner_path and self.archives:
                blob = self.archives.fetch(file, status, self._file_path(path).name, inner_path)
                self._check_content(ref.path, blob.data)
                return blob
            if status.st_size > self.max_bytes:
                raise ConnectorError(f"{str(self._file_path(path))!r} has grown: {_too_large(status, self.max_bytes)}.")
            data = file.read(status.st_size)
        self._check_content(ref.path, data)
        metadata: dict[str, Scalar] = {}
        with contextlib.suppress(ValueError, OverflowError):  # a time stamp beyond the year 9999
            metadata["modified"] = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
        return Blob(data, None, metadata)

    def _check_content(self, path: str, data: bytes) -> None:
        reason = credential_by_content(data)
        if reason and path and not self.paths.selects(path):
            raise SkipDocument(reason)

    @contextlib.contextmanager
    def open(self, ref: Ref) -> Iterator[BufferedReader]:
        """Open a file for the duration of the block. The access files are checked again at its end.

        Raises ConnectorError as `fetch` does, except for the size, and for an OSError in the block.
        """
        path = self._file_path(ref.path)
        try:
            real = Path(os.path.realpath(path, strict=True))
            real_root = os.path.realpath(self.root)
            if not real.is_relative_to(real_root):
                raise ConnectorError(f"{str(path)!r} points outside of {str(self.root)!r}.", "It is not read.")
            with open_below(real_root, real) as file:
                yield file
            allow = _groups_of(os.fspath(self.root), ref.path, real_root, real)  # after the content was read
            if self.identities is not None:
                allow = intersect_groups(allow, self.identities.groups(FileReaders().of(path)))
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise ConnectorError(
                f"{str(path)!r} cannot be read: {_reason(error)}.", "The next ingest tries again."
            ) from error
        if not still_allows(allow, ref.allow):
            raise ConnectorError(
                f"{str(path)!r} has been closed to a group since it was listed.", "The next ingest tries again."
            )

    def _file_path(self, path: str) -> Path:
        return self.root / path if path else self.root

    def _split_path(self, path: str) -> tuple[str, str]:
        """The file that holds an entry, and the path of the entry within it, if that file is an archive."""
        if self.archives is None:
            return path, ""
        if path and is_archive(self.root.name) and self.root.is_file():
            return "", path
        for slash in re.finditer("/", path):
            outer = path[: slash.start()]
            if is_archive(outer) and self._file_path(outer).is_file():
                return outer, path[slash.end() :]
        return path, ""


class _Listing:
    """One walk through a folder. Symbolic links come last, so that they never hide their target's own path."""

    def __init__(self, source: FilesConnector) -> None:
        self._root = os.fspath(source.root)
        self._real_root = Path(os.path.realpath(self._root))
        self._paths, self._archives = source.paths, source.archives
        self._max_bytes, self._hidden = source.max_bytes, source.hidden
        self.containing_archive: dict[str, str] = {}
        """The path of the archive of each entry that lies in one."""
        # Folders to list and a heap of links to follow, each with the groups allowed by the folders above.
        self._folders: list[tuple[str, _Groups]] = []
        self._links: list[tuple[str, _Groups]] = []
        self._listed: set[tuple[int, int]] = set()  # device and inode

    def folder(self, status: os.stat_result) -> Iterator[Ref]:
        if self._archives is not None:
            self._archives.begin_listing()
        self._add_folder("", status, None)
        while self._folders or self._links:
            if self._folders:
                yield from self._list_folder(*self._folders.pop())
            else:
                yield from self._follow_link(*heapq.heappop(self._links))

    def single_file(self, status: os.stat_result) -> Iterator[Ref]:
        if self._real_root.name == ACCESS_FILE:
            yield Ref("", skip="an access file")
            return
        for folder in {os.path.dirname(self._root), str(self._real_root.parent)}:  # noqa: PTH120
            problem = read_access_file(folder).problem
            if problem:
                _log.warning("%s/%s: %s; %s is closed to all groups.", folder, ACCESS_FILE, problem, self._root)
        yield from self._list_file("", status, _groups_of(self._root, "", self._real_root, self._real_root))

    def _absolute(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _opens_archive(self, path: str) -> bool:
        return self._archives is not None and is_archive(path)

    def _add_folder(self, path: str, status: os.stat_result, allow: _Groups) -> None:
        self._listed.add((status.st_dev, status.st_ino))
        self._folders.append((path, allow))

    def _list_folder(self, path: str, allow: _Groups) -> Iterator[Ref]:
        try:
            with os.scandir(self._absolute(path)) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            if not path:
                raise SourceError(
                    f"The folder {self._root!r} cannot be listed: {_reason(error)}.", "Nothing was changed."
                ) from error
            if not isinstance(error, FileNotFoundError):  # not removed just now
                # The rules of the folders above still apply to what lies there.
                yield Ref(path, error=f"the folder cannot be listed: {_reason(error)}", allow=allow)
            return
        is_collection = _COLLECTION_FILES.issubset(names)
        if path and (is_collection or OUTPUT in names):
            return
        if is_collection:
            raise SourceError(f"The folder {self._root!r} is a collection of ragfm.", "Specify a folder of documents.")
        if OUTPUT in names:
            raise SourceError(
                f"The folder {self._root!r} contains output of ragfm.",
                f"Specify a folder of documents. If it is one, remove the file {OUTPUT} from it.",
            )
        # Read after the names: a file that is added to a folder which was just closed must not count as open.
        access = read_access_file(self._absolute(path))
        if access.problem:
            yield access.problem_ref(path)
        elif access.groups == ():
            yield Ref(join_path(path, ACCESS_FILE), skip="it names no group, so the folder is closed to all groups")
        allow = intersect_groups(allow, access.groups)
        for name in names:
            if name == ACCESS_FILE:
                continue
            entry_path = join_path(path, name)
            try:
                status = os.lstat(self._absolute(entry_path))
            except FileNotFoundError:
                continue
            except OSError as error:
                if not self._paths.excludes(entry_path):
                    yield Ref(_printable(entry_path), error=_reason(error), allow=allow)
                continue
            is_folder, is_link = stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
            wanted = not is_folder and self._paths.includes(entry_path)
            if is_folder or is_link or self._opens_archive(entry_path):
                wanted = wanted or self._paths.may_contain(entry_path)
            if not wanted:
                continue
            if name.startswith(".") and not self._hidden:
                folder = self._absolute(entry_path)
                if not (is_folder and all(os.path.lexists(f"{folder}/{file}") for file in _COLLECTION_FILES)):
                    yield Ref(_printable(entry_path), skip="hidden")
            elif _printable(entry_path) != entry_path:
                yield Ref(_printable(entry_path), skip="its name is not UTF-8")
            elif is_folder:
                self._add_folder(entry_path, status, allow)
            elif is_link:
                heapq.heappush(self._links, (entry_path, allow))
            elif name not in _SETTINGS_FILES:
                yield from self._list_file(entry_path, status, allow)

    def _list_file(self, path: str, status: os.stat_result, allow: _Groups) -> Iterator[Ref]:
        file_type = _FILE_TYPES.get(stat.S_IFMT(status.st_mode))
        if file_type is not None:
            yield Ref(path, skip=f"not a regular file but {file_type}")
            return
        absolute = self._absolute(path)
        if self._archives is not None and is_archive(path or self._root):
            self._listed.add((status.st_dev, status.st_ino))
            try:
                revision = _revision(self._real_root, absolute, status)
                with open_below(self._real_root, os.path.realpath(absolute)) as file:
                    refs = self._archives.refs(file, absolute, path, status.st_size, revision, allow)
            except (OSError, ValueError) as error:  # ValueError: it points outside of the folder by now
                yield Ref(path, error=f"the archive cannot be opened: {_reason(error)}", allow=allow)
                return
            self.containing_archive |= dict.fromkeys((ref.path for ref in refs), path)
            yield from refs
        elif path and not self._paths.selects(path) and (reason := credential_by_name(path.rpartition("/")[2])):
            yield Ref(path, skip=reason)
        elif status.st_size > self._max_bytes:
            yield Ref(path, skip=_too_large(status, self._max_bytes))
        else:
            self._listed.add((status.st_dev, status.st_ino))
            yield Ref(path, _revision(self._real_root, absolute, status), allow=allow)

    def _follow_link(self, path: str, allow: _Groups) -> Iterator[Ref]:
        try:
            real = Path(os.path.realpath(self._absolute(path), strict=True))
            status = real.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                yield Ref(path, skip="symbolic link that leads nowhere")
            else:  # its target may still be there
                yield Ref(path, error=f"the symbolic link cannot be followed: {_reason(error)}", allow=allow)
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        container = is_folder or self._opens_archive(path)
        if not (self._paths.may_contain(path) if container else self._paths.includes(path)):
            return
        if not real.is_relative_to(self._real_root):
            yield Ref(path, skip="symbolic link that leaves the folder")
        elif (status.st_dev, status.st_ino) in self._listed:
            yield Ref(path, skip=f"symbolic link to a {'folder' if is_folder else 'file'} already listed")
        elif real.name == ACCESS_FILE:
            yield Ref(path, skip="symbolic link to an access file")
        else:
            target_folder = str(real.parent.relative_to(self._real_root))
            allow = intersect_groups(allow, groups_along_path(str(self._real_root), target_folder))
            if is_folder:
                self._add_folder(path, status, allow)
            else:
                yield from self._list_file(path, status, allow)


def _split_glob(location: str) -> tuple[Path, str]:
    """The folder or file of a location, and the glob pattern below it. A name that exists is never a pattern."""
    if not location or "\0" in location:
        raise SourceError(f"{location!r} is not a path.", "Specify a folder, a file or a glob such as 'docs/**/*.md'.")
    path = Path(os.path.abspath(location))  # noqa: PTH100  resolve() follows links, which would rename the source
    if _printable(str(path)) != str(path):
        raise SourceError(f"The path {_printable(str(path))} is not UTF-8.", "Rename it.")
    if _status(path) is not None:
        return path, ""
    fixed_parts = 0
    for number, part in enumerate(path.parts):
        if re.search(r"[*?[]", part):
            fixed_parts = number
            break
    if not fixed_parts:
        raise SourceError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    root = Path(*path.parts[:fixed_parts])
    status = _status(root)
    if status is None or not stat.S_ISDIR(status.st_mode):
        raise SourceError(f"There is no folder {str(root)!r} to search for {location!r}.", "Check the path.")
    return root, "/".join(path.parts[fixed_parts:])


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{str(path)!r} cannot be accessed: {_reason(error)}.", "Check its permissions.") from error


def _revision(root: Path, path: str, status: os.stat_result) -> str:
    """Size and time of change, and a hash of the content if the file was changed within the last two seconds.

    Such a file can change again within the same tick of the file system's clock. Git calls such an entry racily clean
    (https://git-scm.com/docs/racy-git) and compares the content too.
    """
    revision = f"{status.st_size}:{status.st_mtime_ns}"
    if status.st_mtime_ns > time.time_ns() - _RACY_NS:
        with contextlib.suppress(OSError, ValueError), open_below(root, os.path.realpath(path)) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            return f"{revision}:{digest.hexdigest()}"
    return revision


def _groups_of(root: str, path: str, real_root: str | Path, real: Path) -> _Groups:
    """The groups that may see a file: by the access files on its listed path and on its real path."""
    if not path:  # the file is the source
        folders = (os.path.dirname(root), str(real.parent))  # noqa: PTH120
        return intersect_groups(*(read_access_file(folder).groups for folder in folders))
    folder, real_folder = path.rpartition("/")[0], str(real.parent.relative_to(real_root))
    allow = groups_along_path(root, folder)
    if real_folder == (folder or "."):
        return allow
    return intersect_groups(allow, groups_along_path(str(real_root), real_folder))


def _too_large(status: os.stat_result, limit: int) -> str:
    return f"{status.st_size:,} bytes; the limit is {limit:,} (`files.max_mb`)"


def _printable(path: str) -> str:
    """The path, with an escape sequence for each byte that is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
