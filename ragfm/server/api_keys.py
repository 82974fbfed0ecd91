"""Keys: who may ask the server, and what they may see.

The file holds a hash of each key, never a key. Keys are 256 random bits, so a plain SHA-256 can't be searched through.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import ConfigError

__all__ = ["OWN", "Key", "KeyFile", "keys_beside"]

OWN = "key:"
"""What the name of the group begins with that a key has for itself: it sees its own uploads by it."""
PREFIX = "ragfm-"
_MOST_BYTES = 10 * 2**20
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_GROUP = r"^[^\s#,][^\n\r#,]{0,99}$"


class Key(BaseModel):
    """What a key may do. `collections` are those that it may ask, None for all that are served.

    `per_minute` is how many requests it may make, `uploads_mb` what its uploads to a collection may take together. Who
    has a key of this name again later has its uploads again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME)
    sha256: str = ""
    collections: tuple[str, ...] | None = None
    groups: tuple[Annotated[str, StringConstraints(pattern=_GROUP)], ...] = ()
    per_minute: float = Field(600, gt=0)
    uploads_mb: float = Field(1000, ge=0)
    created: str = ""

    @field_validator("groups")
    @classmethod
    def _nobodys_own(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if any(group.startswith(OWN) or not group.isprintable() for group in groups):
            raise ValueError(f"a group can't begin with {OWN!r}, nor have signs that can't be printed")
        return groups

    @property
    def own_group(self) -> str:
        """The group that no other key has."""
        return f"{OWN}{self.name}"

    @property
    def sees(self) -> frozenset[str]:
        """The groups of the handle that it gets."""
        return frozenset({*self.groups, self.own_group})

    def may_ask(self, collection: str) -> bool:
        """Whether a collection is one of its own."""
        return self.collections is None or collection in self.collections


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...] = ()


def keys_beside(collection: str | Path) -> Path:
    """The file of keys of a collection's folder: `.ragfm` has `.ragfm-keys.json` beside it."""
    folder = Path(os.path.abspath(collection))  # noqa: PTH100  without `..`
    return folder.with_name(f"{folder.name}-keys.json")


class KeyFile:
    """The keys in a file. What another process changes in it holds at once. Thread-safe.

    All methods raise ConfigError where the file can't be read: then nobody has a key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._stands_on: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def keys(self) -> tuple[Key, ...]:
        """All keys, in the order in which they were made."""
        with self._lock:
            try:
                status = self.path.stat()
            except FileNotFoundError:
                return ()
            except OSError as error:
                raise ConfigError(f"The keys in {self.path} can't be read: {error.strerror}.") from error
            stands_on = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stands_on != self._stands_on:
                self._keys = self._read()
                self._stands_on = stands_on
            return self._keys

    def find(self, secret: str) -> Key | None:
        """The key that somebody has shown. Takes as long whether there is one or not."""
        shown, found = _hash(secret), None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, shown):
                found = key
        return found

    def add(self, key: Key) -> str:
        """Make a key; gives the secret, which is kept nowhere. Raises ConfigError where there is one of its name."""
        secret = PREFIX + secrets.token_urlsafe(32)
        with FileLock(f"{self.path}.lock"):
            keys = self.keys()
            if any(other.name == key.name for other in keys):
                raise ConfigError(f"There is a key {key.name!r} already.", "Revoke it first, or take another name.")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._write([*keys, key.model_copy(update={"sha256": _hash(secret), "created": now})])
        return secret

    def revoke(self, name: str) -> None:
        """Take a key away; a running server refuses it from its next request on. Raises ConfigError for none."""
        with FileLock(f"{self.path}.lock"):
            keys = self.keys()
            if all(key.name != name for key in keys):
                raise ConfigError(f"There is no key {name!r} in {self.path}.", "`ragfm keys list` shows all.")
            self._write([key for key in keys if key.name != name])

    def _read(self) -> tuple[Key, ...]:
        try:
            with self.path.open("rb") as file:
                return _File.model_validate_json(file.read(_MOST_BYTES)).keys
        except (OSError, ValidationError) as error:
            raise ConfigError(f"The keys in {self.path} can't be read.", "Mend the file, or make new keys.") from error

    def _write(self, keys: list[Key]) -> None:
        write_durably(self.path, _File(keys=tuple(keys)).model_dump_json(indent=1).encode(), mode=0o600)


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
