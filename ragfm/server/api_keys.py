"""API keys: access to collections and groups, scopes, and limits per key.

The key file holds a hash of each key, never a key. Keys are 256 random bits, so a plain SHA-256 resists guessing.
"""

from __future__ import annotations

import hmac
import math
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal, TypeAlias, get_args

from filelock import FileLock
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from ragfm.core.access_groups import OWN_GROUP_PREFIX
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import ConfigError

_SECRET_PREFIX = "ragfm-"  # noqa: S105  not a secret
_MAX_FILE_BYTES = 10 * 2**20
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_GROUP = r"^[^\s#,][^\n\r#,]{0,99}$"
_MAX_BUCKETS = 10_000
_TOUCH_SECONDS = 60.0  # between two records of the same key's use
Scope: TypeAlias = Literal["read", "write", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""`write` is for uploads and deletions, `metrics` for the metrics of the server, `read` for all else.

Both `metrics` and `read` are for the questions of all keys, see `log_routes`."""


class Key(BaseModel):
    """The rights and limits of a key.

    `collections` are the collections that it may use, None for all. `per_minute` limits its requests, `uploads_mb` the
    total size of its uploads to a collection. Uploads belong to the name: a later key of the same name has them again.
    The key has no rights from `expires` on. After a rotation, the previous secret is valid until `previous_until`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=_NAME)
    sha256: str = ""
    collections: tuple[str, ...] | None = None
    groups: tuple[Annotated[str, StringConstraints(pattern=_GROUP)], ...] = ()
    per_minute: float = Field(600, gt=0)
    uploads_mb: float = Field(1000, ge=0)
    created: str = ""
    scopes: tuple[Scope, ...] = ("read", "write")
    expires: AwareDatetime | None = None
    previous_sha256: str | None = None
    previous_until: AwareDatetime | None = None

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: tuple[str, ...]) -> tuple[str, ...]:
        if any(group.startswith(OWN_GROUP_PREFIX) or not group.isprintable() for group in groups):
            raise ValueError(f"a group cannot begin with {OWN_GROUP_PREFIX!r} or contain unprintable characters")
        return groups

    @property
    def is_owner(self) -> bool:
        """Whether it may see the questions of all keys, and label citations."""
        return "metrics" in self.scopes

    @property
    def own_group(self) -> str:
        """The group that only this key has."""
        return f"{OWN_GROUP_PREFIX}{self.name}"

    @property
    def visible_groups(self) -> frozenset[str]:
        """All groups whose documents the key sees, its own included."""
        return frozenset({*self.groups, self.own_group})

    @property
    def expired(self) -> bool:
        """Whether the key has no rights any more."""
        return self.expires is not None and datetime.now(UTC) >= self.expires

    def has_secret(self, digest: str) -> bool:
        """Whether this is the hash of its secret, or of its previous one. The time does not depend on the result."""
        overlaps = self.previous_until is not None and datetime.now(UTC) < self.previous_until
        previous = hmac.compare_digest(self.previous_sha256 or "", digest)
        return hmac.compare_digest(self.sha256, digest) | (previous & overlaps)

    def may_use(self, collection: str) -> bool:
        """Whether the key has access to a collection."""
        return self.collections is None or collection in self.collections


class User(Key):
    """The rights and limits of somebody who signed in: a key without a secret, which is stored nowhere.

    The name has a colon, which that of no key has. `label` is what the page calls the user.
    """

    name: str
    label: str = ""


_FILE_CONTENT = TypeAdapter(dict[Literal["keys"], tuple[Key, ...]])


def default_key_path(collection: str | Path) -> Path:
    """The key file of a collection's folder: `.ragfm-keys.json` next to `.ragfm`."""
    folder = Path(os.path.abspath(collection))  # noqa: PTH100  Path.resolve would follow links
    return folder.with_name(f"{folder.name}-keys.json")


class RequestCounter:
    """Counts requests by key or address to this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Token buckets by name, with the requests of one minute, refilled continuously: those left, and since when.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, per_minute: float) -> float:
        """Count a request. Returns 0, or the seconds until the next one if there are more than `per_minute`."""
        with self._lock:
            now, full = monotonic(), max(1.0, per_minute)
            left, updated = self._buckets.get(name, (full, now))
            left = min(full, left + (now - updated) * per_minute / 60)
            if left < 1:
                return (1 - left) * 60 / per_minute
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets.clear()
            self._buckets[name] = (left - 1, now)
            return 0.0


class KeyFile:
    """The keys in a file. Changes by other processes take effect at once. Thread-safe.

    All methods raise ConfigError if the file cannot be read. Then no key is valid.
    """

    remote = False
    """Whether the methods wait for another machine."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file_version: tuple[int, int, int] | None = None  # inode, modification time and size of the last read
        self._keys: tuple[Key, ...] = ()
        self._counter = RequestCounter()
        # A file per key, whose time is that of its last use: several servers write them without a lock.
        self._used_folder = self.path.with_name(f"{self.path.name}.used")
        self._touched: dict[str, float] = {}  # when this process did so, by name of the key

    def keys(self) -> tuple[Key, ...]:
        """All keys in order of creation."""
        with self._lock:
            try:
                status = self.path.stat()
                version = (status.st_ino, status.st_mtime_ns, status.st_size)
                if version != self._file_version:
                    with self.path.open("rb") as file:
                        self._keys = _FILE_CONTENT.validate_json(file.read(_MAX_FILE_BYTES)).get("keys", ())
                    self._file_version = version
            except FileNotFoundError:
                return ()
            except OSError as error:
                raise ConfigError(f"The key file '{self.path}' cannot be read: {error.strerror}.") from error
            except ValidationError as error:
                hint = "Repair the file, or delete it and create new keys."
                raise ConfigError(f"The key file '{self.path}' is not valid.", hint) from error
            return self._keys

    def find(self, secret: str) -> Key | None:
        """The key with this secret, or None. The time does not depend on the result."""
        digest, result = hash_secret(secret), None
        for key in self.keys():
            if key.has_secret(digest):
                result = key
        return result

    def take(self, key: Key) -> float:
        """Count a request of a key. Returns 0, or the seconds until the next one if there are too many a minute."""
        if not isinstance(key, User) and monotonic() >= self._touched.get(key.name, -math.inf) + _TOUCH_SECONDS:
            self._touched[key.name] = monotonic()
            with suppress(OSError):  # the files may be read-only for the server, such as a mounted secret
                self._used_folder.mkdir(mode=0o700, exist_ok=True)
                (self._used_folder / key.name).touch(mode=0o600)
        return self._counter.take(key.name, key.per_minute)

    def add(self, key: Key) -> str:
        """Add a key. Returns its secret, which is not stored. Raises ConfigError if the name is taken."""
        secret, stored = new_key(key)
        with FileLock(f"{self.path}.lock", mode=0o600):
            keys = self.keys()
            if any(other.name == key.name for other in keys):
                raise ConfigError(f"The key {key.name!r} already exists.", "Revoke it first, or use another name.")
            self._write([*keys, stored])
        return secret

    def rotate(self, name: str, overlap: timedelta, expires: datetime | None = None) -> str:
        """Replace a key's secret and return the new one. The old one stays valid during the overlap.

        Raises ConfigError if there is no such key.
        """
        with FileLock(f"{self.path}.lock", mode=0o600):
            keys = self.keys()
            secret, rotated = rotated_key(find_key(keys, name, self.path), overlap, expires)
            self._write([rotated if key.name == name else key for key in keys])
        return secret

    def revoke(self, name: str) -> None:
        """Delete a key. A running server refuses it from the next request on. Raises ConfigError if there is none."""
        with FileLock(f"{self.path}.lock", mode=0o600):
            keys = self.keys()
            find_key(keys, name, self.path)
            self._write([key for key in keys if key.name != name])

    def last_used(self) -> Mapping[str, datetime]:
        """When each key was last used, to the minute, by name."""
        used = {}
        for key in self.keys():
            with suppress(OSError):
                at = datetime.fromtimestamp((self._used_folder / key.name).stat().st_mtime, UTC)
                if at >= datetime.fromisoformat(key.created):  # else of an earlier key of that name
                    used[key.name] = at
        return used

    def _write(self, keys: list[Key]) -> None:
        write_durably(self.path, _FILE_CONTENT.dump_json({"keys": tuple(keys)}, indent=1), mode=0o600)


def find_key(keys: tuple[Key, ...], name: str, path: str | Path) -> Key:
    """The key of that name. Raises ConfigError if there is none at the path."""
    for key in keys:
        if key.name == name:
            return key
    raise ConfigError(f"There is no key {name!r} in '{path}'.", "`ragfm keys list` shows all keys.")


def new_key(key: Key) -> tuple[str, Key]:
    """A new secret, and the key as it is stored, with the hash of the secret and the time."""
    secret = _SECRET_PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return secret, key.model_copy(update={"sha256": hash_secret(secret), "created": now})


def rotated_key(key: Key, overlap: timedelta, expires: datetime | None) -> tuple[str, Key]:
    """A new secret, and the key with it, which keeps its `expires` unless another one is given."""
    secret = _SECRET_PREFIX + secrets.token_urlsafe(32)
    changes = {"sha256": hash_secret(secret), "previous_sha256": key.sha256, "expires": expires or key.expires}
    return secret, key.model_copy(update={**changes, "previous_until": datetime.now(UTC) + overlap})


def hash_secret(secret: str) -> str:
    """The hash by which a key is stored."""
    return sha256(secret.encode()).hexdigest()
