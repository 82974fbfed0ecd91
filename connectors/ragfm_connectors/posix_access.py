"""Who may read a file, by its owner, its group, its mode and its POSIX ACL, and by those of the folders above it.

The identities are `user:NAME`, `group:NAME` and `everyone`; a number without a name is `uid:NUMBER` or `gid:NUMBER`.
They are the stricter reading of the rules (man 5 acl), since who is in which group is not known here:

- To count, an identity needs the right to read the file, and to enter each folder from `/` down.
- Groups do not count if a user is refused, and `everyone` not if a user or a group is.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import struct
from pathlib import Path

EVERYONE = "everyone"
_ACL = "system.posix_acl_access"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32  # linux/posix_acl_xattr.h


class FileReaders:
    """The identities that may read files, as of one listing: each folder is examined once."""

    def __init__(self) -> None:
        self._folders: dict[Path, frozenset[str]] = {}

    def of(self, path: str | Path) -> frozenset[str]:
        """The identities that may read a file at a path, and at the path that it leads to. Raises OSError."""
        real = Path(os.path.realpath(path, strict=True))
        listed_in = Path(os.path.realpath(os.path.dirname(path), strict=True))  # noqa: PTH120  keeps a link a link
        return _common(self._of_folder(real.parent), self._of_folder(listed_in), _allowed(real, os.R_OK))

    def _of_folder(self, folder: Path) -> frozenset[str]:
        above = frozenset({EVERYONE})
        for step in (*reversed(folder.parents), folder):
            if step not in self._folders:
                self._folders[step] = _common(above, _allowed(step, os.X_OK))
            above = self._folders[step]
        return above


def _common(*identities: frozenset[str]) -> frozenset[str]:
    """The identities that are in all of these; where everyone is, all are."""
    limits = [names for names in identities if EVERYONE not in names]
    return frozenset.intersection(*limits) if limits else identities[-1]


def _allowed(path: Path, right: int) -> frozenset[str]:
    """The identities that have a right, `os.R_OK` or `os.X_OK`, to a file or folder itself."""
    status = os.lstat(path)
    entries = _entries(path, status)
    mask = next((rights for tag, rights, _ in entries if tag == _MASK), 7)
    users: dict[str, bool] = {}
    groups: dict[str, bool] = {}
    other = False
    for tag, rights, number in sorted(entries, key=lambda entry: entry[0] == _USER_OBJ):  # the owner's counts for them
        if tag == _USER_OBJ:
            users[_name("uid", status.st_uid)] = bool(rights & right)
        elif tag == _USER:
            users[_name("uid", number)] = bool(rights & mask & right)
        elif tag in (_GROUP_OBJ, _GROUP):
            name = _name("gid", status.st_gid if tag == _GROUP_OBJ else number)
            groups[name] = groups.get(name, False) or bool(rights & mask & right)
        elif tag == _OTHER:
            other = bool(rights & right)
    allowed = {name for name, has in users.items() if has}
    if all(users.values()):
        allowed |= {name for name, has in groups.items() if has}
        if other and all(groups.values()):
            allowed.add(EVERYONE)
    return frozenset(allowed)


def _entries(path: Path, status: os.stat_result) -> list[tuple[int, int, int]]:
    """Tag, rights and id of each entry of the ACL; without one, the entries that the mode stands for."""
    try:
        data = os.getxattr(path, _ACL, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        mode = status.st_mode
        return [(_USER_OBJ, mode >> 6 & 7, 0), (_GROUP_OBJ, mode >> 3 & 7, 0), (_OTHER, mode & 7, 0)]
    return list(struct.iter_unpack("<HHI", data[4:]))


def _name(kind: str, number: int) -> str:
    """The identity of a `uid` or `gid`: its name, or the number if it has none."""
    try:
        return f"user:{pwd.getpwuid(number).pw_name}" if kind == "uid" else f"group:{grp.getgrgid(number).gr_name}"
    except KeyError:
        return f"{kind}:{number}"
