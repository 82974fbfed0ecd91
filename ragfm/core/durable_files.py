"""Durable files: write to a temporary file, fsync it, rename it, and fsync the folder.

After a crash, a file has either its old or its new content.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragfm.core.errors import CollectionError


def temporary_path(path: Path) -> Path:
    """A unique path in the same folder, `NAME.XXXXXXXX.new`, to write to before renaming it to `path`.

    The suffix is random: threads share a process id, and in a container it is the same at every start.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")


def write_error(kind: str, out: Path, error: OSError) -> CollectionError:
    """The error to raise if an output file, such as a backup, cannot be written."""
    if out.parent.is_dir():
        hint = "Fix the cause and run the command again."
    else:
        hint = f"Create the folder '{out.parent}', or choose a different one."
    return CollectionError(f"The {kind} '{out}' cannot be written: {error.strerror}.", hint)


def write_durably(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace the content of a file atomically and durably."""
    temporary = temporary_path(path)
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
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
    try:
        values = dict(json.loads(path.read_bytes()))
        expected = values.pop("checksum")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path.name} is damaged") from error
    actual = _checksum(json.dumps(values, sort_keys=True))
    if actual != expected:
        raise ValueError(f"{path.name} has the checksum {actual}, expected {expected}")
    return values


def _checksum(body: str) -> str:
    return blake2b(body.encode(), digest_size=16).hexdigest()
