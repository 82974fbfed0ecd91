"""Access files: a file `.ragfm-access` names the groups that may see the files of its folder and of all folders below.

The file has one group per line. Empty lines are ignored, and so are comments: a `#` at the start of a line or after
whitespace, and what follows it. If there are several access files on the path from the source's root to a document, a
group must be in each of them: a folder can restrict access further, never extend it. A file that names no group, or
that cannot be read, closes its folder to all groups.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ragfm.core.access_groups import intersect_groups
from ragfm.core.types import Ref
from ragfm_connectors.patterns import join_path

ACCESS_FILE = ".ragfm-access"
"""The name of an access file."""
_MAX_BYTES = 1 << 20
_OPEN_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # a folder may be entered without being readable
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True, slots=True)
class AccessRule:
    """The groups that an access file allows, None if there is no file; `problem` says why it cannot be read."""

    groups: tuple[str, ...] | None = None
    problem: str | None = None

    def problem_ref(self, folder: str) -> Ref:
        """The entry that reports a problem of the access file in a folder."""
        return Ref(join_path(folder, ACCESS_FILE), error=f"{self.problem}, so the folder is closed to all groups")


def read_access_file(folder: str) -> AccessRule:
    """The rule of the access file in a folder."""
    try:
        with open_regular_file(os.path.join(folder, ACCESS_FILE)) as file:  # noqa: PTH118  `/` ends in a slash
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return AccessRule()
    except OSError as error:
        return AccessRule((), f"it cannot be read: {error.strerror or error}")
    return parse_access_file(data)


def parse_access_file(data: bytes) -> AccessRule:
    """The rule of an access file with this content."""
    if len(data) > _MAX_BYTES:
        return AccessRule((), f"it has more than {_MAX_BYTES:,} bytes")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return AccessRule((), "it is not UTF-8")
    groups = sorted({_COMMENT.sub("", line).strip() for line in lines} - {""})
    for group in groups:
        if not group.isprintable():
            return AccessRule((), f"{group!r} is not a valid group name")
    return AccessRule(tuple(groups))


def groups_along_path(root: str, folder: str) -> tuple[str, ...] | None:
    """The groups allowed by all access files from the root down to a folder, given relative to the root."""
    path = root
    groups = read_access_file(path).groups
    for part in Path(folder).parts:
        path = f"{path}/{part}"
        groups = intersect_groups(groups, read_access_file(path).groups)
    return groups


def open_regular_file(path: str | Path, folder: int | None = None) -> BufferedReader:
    """Open a regular file for reading; with the descriptor of a folder, one in it.

    Raises OSError for others: opening a pipe can hang, a device can act on it.
    """
    status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(None, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "it is not a regular file")
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")


def open_below(root: str | Path, path: str | Path) -> BufferedReader:
    """Open a regular file below a folder. No symbolic link is followed, even if a folder has just become one."""
    parts = Path(path).relative_to(root).parts
    if not parts:
        return open_regular_file(path)
    folder = os.open(root, _OPEN_FOLDER)
    try:
        for part in parts[:-1]:
            child = os.open(part, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = child
        return open_regular_file(parts[-1], folder)
    finally:
        os.close(folder)
