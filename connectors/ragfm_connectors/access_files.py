"""Who may see the files of a folder: the groups that a file `.ragfm-access` in it names.

One group a line; empty lines don't count, nor does what follows a `#` at the beginning of a line or after a space. The
file holds for its folder and for all that lies below. Where several lie on the way from the source's root to a
document, a group must be in each of them: a folder can close further what the one above left open, never open what
that one has closed. A file that names no group, or that can't be trusted to be read as it was meant, closes its folder
to all groups.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ragfm.core.access_groups import both

FILE = ".ragfm-access"
"""The name of such a file."""
_MOST = 1 << 20  # bytes
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY  # what may be entered need not be readable
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True, slots=True)
class Access:
    """The groups that one file names, None where there is no file, none where it closes; and what is wrong with it."""

    groups: tuple[str, ...] | None = None
    wrong: str | None = None


def read_access(folder: str) -> Access:
    """What the file in a folder says, if there is one."""
    try:
        with open_regular(os.path.join(folder, FILE)) as file:  # noqa: PTH118  a root of `/` has its own slash
            data = file.read(_MOST + 1)
    except FileNotFoundError:
        return Access()
    except OSError as error:
        return Access((), f"it can't be read: {error.strerror or error}")
    return parse_access(data)


def parse_access(data: bytes) -> Access:
    """What the content of such a file says."""
    if len(data) > _MOST:
        return Access((), f"it has more than {_MOST:,} bytes")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return Access((), "it is not UTF-8")
    names = {_COMMENT.sub("", line).strip() for line in lines} - {""}
    odd = next((name for name in sorted(names) if not name.isprintable()), None)
    if odd is not None:
        return Access((), f"{odd!r} can't be the name of a group")
    return Access(tuple(sorted(names)))


def access_on_the_way(root: str, folder: str) -> tuple[str, ...] | None:
    """What the files from the root down to a folder below it, relative to it, say together."""
    groups = read_access(root).groups
    at = root
    for part in Path(folder).parts:
        at = f"{at}/{part}"
        groups = both(groups, read_access(at).groups)
    return groups


def open_regular(path: str | Path) -> BufferedReader:
    """A file opened for reading, if it is one: to open a pipe can hang, and a device can act on it."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise OSError(None, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "it is not a regular file")
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def open_below(root: str | Path, path: str | Path) -> BufferedReader:
    """The same for a file below a folder, both without links: a folder that becomes a link now leads nowhere."""
    parts = Path(path).relative_to(root).parts
    if not parts:
        return open_regular(path)
    at = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        status = os.stat(parts[-1], dir_fd=at, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(None, "it is not a regular file")
        return os.fdopen(os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at), "rb")
    finally:
        os.close(at)
