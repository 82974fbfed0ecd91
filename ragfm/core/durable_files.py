"""Durable files: write to a temporary file, fsync it, rename it, and fsync the folder.

After a crash, a file has either its old or its new content.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from ragfm.core.errors import AccessDeniedError, CollectionError, DiskFullError

_PROBE_BYTES = 64 << 10  # more than SQLite's smallest files have


def temporary_path(path: Path) -> Path:
    """A unique path in the same folder, `NAME.XXXXXXXX.new`, to write to before renaming it to `path`.

    The suffix is random: threads share a process id, and in a container it is the same at every start.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which becomes `path` durably when the block ends. After an error, nothing is left of it."""
    temporary = temporary_path(path)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(0o700)  # it holds the text of all documents
        yield temporary
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_paths(path: Path) -> Iterator[Path]:
    """The existing temporary files and folders of a path, such as those that killed processes left."""
    return path.parent.glob(f"{glob.escape(path.name)}.*.new")


def storage_failure(folder: Path, error: BaseException) -> tuple[type[CollectionError], str]:
    """The type of error to raise for a failed read or write in a folder, and the reason in words.

    `error` is an OSError, an error of SQLite or another library, or one of SQLAlchemy's that has it as `orig`.
    Libraries do not pass on every reason: then a file is written to find out whether there is space and permission.
    """
    cause = getattr(error, "orig", error)
    if "disk is full" in str(cause):
        cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif "readonly" in str(cause):
        cause = OSError(errno.EACCES, str(cause))
    elif not isinstance(cause, OSError) or cause.errno is None:  # numpy's errors have no number
        probe = temporary_path(folder / "probe")
        try:
            with probe.open("xb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            cause = failure
        finally:
            probe.unlink(missing_ok=True)
    number = cause.errno if isinstance(cause, OSError) else None
    why = str(getattr(cause, "strerror", None) or cause)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError, why
    return (AccessDeniedError if number in (errno.EACCES, errno.EPERM, errno.EROFS) else CollectionError), why


def write_error(kind: str, out: Path, error: BaseException) -> CollectionError:
    """The error to raise if an output file, such as a backup, cannot be written."""
    error_type, why = storage_failure(out.parent, error)
    if not out.parent.is_dir():
        hint = f"Create the folder '{out.parent}', or choose a different one."
    elif error_type is DiskFullError:
        hint = "Free space on the disk, or choose a different one, and run the command again."
    else:
        hint = "Fix the cause and run the command again."
    return error_type(f"The {kind} '{out}' cannot be written: {why}.", hint)


def new_file_mode(folder: Path) -> int:
    """The permissions of new files in a folder: those of the folder, so that a private folder has private files."""
    return folder.stat().st_mode & 0o666


def create_file(path: Path, mode: int = 0o600) -> BinaryIO:
    """Create a file, by default one that other users cannot read, whatever the umask. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb")


def replaceable_file(path: Path) -> Path:
    """The file at a path, or the one that a link there names; it may not exist. A rename may replace it.

    Raises OSError for anything else: renaming a file to `/dev/null` would remove the device.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        reason = "It is a folder" if path.is_dir() else "It is not a regular file"
        raise OSError(errno.EINVAL, reason, str(path))
    return path


def write_durably(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Replace the content of a file atomically and durably. `mode` is that of `new_file_mode` by default.

    If the administrator replaces another user's file, it stays that user's.
    """
    path = replaceable_file(path)
    mode = new_file_mode(path.parent) if mode is None else mode
    temporary = temporary_path(path)
    try:
        with create_file(temporary, mode) as file:
            if os.geteuid() == 0 and path.exists():
                owner = path.stat()
                with suppress(OSError):  # not in all containers
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder. A created or renamed file is durable only after this call."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Fsync a file that a library has written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def encode_checksummed(values: Mapping[str, Any]) -> bytes:
    """Encode values as one line of JSON with a `checksum` key over the other keys."""
    body = json.dumps(dict(values), sort_keys=True)
    return json.dumps({**values, "checksum": _checksum(body)}, sort_keys=True).encode() + b"\n"


def read_checksummed(path: Path) -> dict[str, Any]:
    """Read a file written by `encode_checksummed`. Raises ValueError if its checksum does not match."""
    return decode_checksummed(path.read_bytes(), path.name)


def decode_checksummed(data: bytes, name: str) -> dict[str, Any]:
    """Decode what `encode_checksummed` returned. Raises ValueError, which has the `name`, if it does not match."""
    try:
        values = dict(json.loads(data))
        expected = values.pop("checksum")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} is damaged") from error
    actual = _checksum(json.dumps(values, sort_keys=True))
    if actual != expected:
        raise ValueError(f"{name} has the checksum {actual}, expected {expected}")
    return values


def _checksum(body: str) -> str:
    return blake2b(body.encode(), digest_size=16).hexdigest()
