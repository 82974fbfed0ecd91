"""Files that survive a crash whole: written beside, fsynced, renamed, and the folder fsynced."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ragfm.core.errors import CollectionError


def beside(path: Path) -> Path:
    """A name beside a path, to write under before it is renamed, that nobody else uses.

    A process id would not do: threads share it, and in a container it is the same at every start.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")


def unwritable(what: str, out: Path, error: OSError) -> CollectionError:
    """What to raise where the file of a backup, or the like, can't be written."""
    hint = "Mend the cause." if out.parent.is_dir() else f"Make the folder {out.parent}, or name another."
    return CollectionError(f"The {what} {out} can't be written: {error.strerror}.", hint)


def write_durably(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace a file's content at once: a crash leaves the old content or the new one, never a mixture."""
    temporary = beside(path)
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
    """Make the names in a folder durable; a rename is not before that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable that somebody else has written."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def checksummed(values: Mapping[str, Any]) -> bytes:
    """Values as one line of JSON that carries its own checksum."""
    body = json.dumps(dict(values), sort_keys=True)
    return json.dumps({**values, "checksum": _checksum(body)}, sort_keys=True).encode() + b"\n"


def read_checksummed(path: Path) -> dict[str, Any]:
    """What `checksummed` wrote. Raises ValueError, naming expected and found, where the checksum is another."""
    try:
        values = dict(json.loads(path.read_bytes()))
        expected = values.pop("checksum")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path.name} is not whole") from error
    found = _checksum(json.dumps(values, sort_keys=True))
    if found != expected:
        raise ValueError(f"{path.name} has the checksum {found}, expected {expected}")
    return values


def _checksum(body: str) -> str:
    return blake2b(body.encode(), digest_size=16).hexdigest()
