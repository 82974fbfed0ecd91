"""Objects of a store that fsspec reaches: S3, Google Cloud Storage, Azure, SFTP and others."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeAlias

import fsspec
from fsspec.core import url_to_fs

from ragfm.core.access_groups import both
from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, RagfmError, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.access_files import FILE as ACCESS
from ragfm_connectors.access_files import Access, parse_access
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.secrets import check_no_secret, check_option, expand, hide, without_user

_Info: TypeAlias = Mapping[str, Any]
_Groups: TypeAlias = tuple[str, ...] | None

_MARKS = ("ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "md5")
"""What stores call a mark that changes with the content; the first that an object has counts."""
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
_RACY = timedelta(seconds=2)  # an object may change again within the tick of a store's clock
_REFUSED = {
    **dict.fromkeys(
        ("file", "local", "asynclocal", "dir", "zip", "tar", "libarchive", "git"),
        "Use the connector files or git: they never leave their folder.",
    ),
    **dict.fromkeys(("http", "https"), "Use the connector web: it never reaches private addresses."),
    **dict.fromkeys(
        ("cached", "blockcache", "filecache", "simplecache", "reference", "generic", "asyncwrapper", "async_wrapper"),
        "It is a way to another store: name that one.",
    ),
}


class ObjectConnector:
    """All objects below a prefix, or a single one, at any address of fsspec, as `s3://bucket/prefix`.

    A path is the key below the prefix. The revision is the store's ETag or version, else size and time of change.
    `storage` are options of fsspec's file system, each `name=value`, as `endpoint_url=https://minio.lan:9000`. In them
    and in the address, `${NAME}` is looked up in the environment; stores look there for credentials by themselves too.

    `include` and `exclude` are patterns as in .gitignore. Hidden objects unless `hidden` is set, those of more than
    `max_bytes`, and keys that are no path are skipped. `.ragfm-access` objects hold as in a folder of files.
    """

    def __init__(
        self,
        location: str,
        *,
        storage: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for an address of a kind that another connector reads, or with a secret in it."""
        scheme, known = location.partition("://")[0], set(fsspec.available_protocols()) - set(_REFUSED)
        if "://" not in location or "::" in location or scheme not in known:
            hint = _REFUSED.get(scheme, f"Known: {', '.join(sorted(known))}.")
            raise ConfigError(f"{scheme}://… is no store of objects.", hint)
        check_no_secret(location)
        for option in storage:
            check_option(option)
        self._location, self._storage = location.rstrip("/"), tuple(storage)
        self.root = without_user(self._location)
        """The address, without user and password."""
        self._paths = PathFilter(include, exclude)
        self._hidden, self._max_bytes = hidden, max_bytes
        self._system: Any = None  # fsspec carries no types
        self._at = ""

    def refs(self) -> Iterator[Ref]:
        """All objects, folder by folder. Raises SourceError where the prefix can't be listed.

        A folder that can't be listed has one Ref with `error`.
        """
        try:
            self._connect()
            self._system.invalidate_cache()
            status = self._system.info(self._at)
        except Exception as error:  # each store has errors of its own
            raise self._failed(error, SourceError) from None
        if status["type"] == "file":
            access = self._access(posixpath.dirname(self._at))
            yield self._ref("", status, access.groups)
        else:
            yield from self._folder("", None)

    def fetch(self, ref: Ref) -> Blob:
        """An object's bytes, and when it was `modified`. Raises ConnectorError where it isn't what was listed."""
        try:
            self._connect()
            path = self._path(ref.path)
            self._system.invalidate_cache()
            size = self._system.info(path)["size"]
            data = self._system.cat_file(path, start=0, end=self._max_bytes + 1) if size else b""
            self._system.invalidate_cache()
            status = self._system.info(path)
        except Exception as error:  # as above
            raise self._failed(error, ConnectorError) from None
        # New content may have come with other rules of who may see it.
        if len(data) > self._max_bytes or not ref.revision.startswith(_revision(status)):
            raise ConnectorError(
                f"{ref.path or self.root} has changed since it was listed.", "The next ingest takes it."
            )
        at = _time(status)
        metadata: dict[str, Scalar] = {"modified": at.isoformat(timespec="seconds")} if at else {}
        return Blob(data, None, metadata)

    def _folder(self, folder: str, allow: _Groups) -> Iterator[Ref]:
        """What lies in a folder and below it; deep ones don't recurse, since keys can be as deep as they like."""
        waiting = [(folder, allow)]
        while waiting:
            folder, allow = waiting.pop()
            path = self._path(folder)
            try:
                entries = sorted(self._system.ls(path, detail=True), key=lambda entry: str(entry["name"]))
            except FileNotFoundError:
                if folder:
                    continue  # its last object has just been deleted
                raise self._failed(FileNotFoundError(f"there is nothing at {self.root}"), SourceError) from None
            except Exception as error:  # as above
                failed = self._failed(error, SourceError)
                if not folder:
                    raise failed from None
                yield Ref(folder, error=failed.message, allow=allow)
                continue
            names = {_name(entry): entry for entry in entries if _bare(entry["name"]) != _bare(path)}
            access = self._access(path) if ACCESS in names else Access()
            if access.wrong:
                where = posixpath.join(folder, ACCESS)
                yield Ref(where, error=f"{access.wrong}, so no group may see what lies beside and below it")
            inner = both(allow, access.groups)
            for name, entry in names.items():
                below = posixpath.join(folder, name)
                if name == ACCESS:
                    continue
                if _unsound(name):
                    yield Ref(f"{folder}/#{name!a}".lstrip("/").replace("/", "%2F"), skip="its key can't be a path")
                elif entry["type"] == "directory" and self._paths.may_hold(below):
                    if self._hides(name):
                        yield Ref(below, skip="hidden")
                    else:
                        waiting.append((below, inner))
                elif entry["type"] != "directory" and self._paths.takes(below):
                    yield Ref(below, skip="hidden") if self._hides(name) else self._ref(below, entry, inner)

    def _hides(self, name: str) -> bool:
        return name.startswith(".") and not self._hidden

    def _path(self, path: str) -> str:
        return f"{self._at.rstrip('/')}/{path}" if path else self._at

    def _ref(self, path: str, status: _Info, allow: _Groups) -> Ref:
        size = int(status.get("size") or 0)
        if size > self._max_bytes:
            return Ref(path, skip=f"{size:,} bytes, the limit is {self._max_bytes:,}")
        mark = _revision(status)
        at = None if mark.startswith("mark:") else _time(status)
        if not mark.startswith("mark:") and (at is None or at > datetime.now(UTC) - _RACY):
            try:
                mark = f"{mark}:{blake2b(self._system.cat_file(self._path(path)), digest_size=16).hexdigest()}"
            except Exception as error:  # as above
                return Ref(path, error=self._failed(error, ConnectorError).message, allow=allow)
        return Ref(path, mark, allow=allow)

    def _access(self, folder: str) -> Access:
        path = f"{folder.rstrip('/')}/{ACCESS}"
        try:
            return parse_access(self._system.cat_file(path))
        except FileNotFoundError:
            return Access()
        except Exception as error:  # as above: what can't be read closes
            return Access((), f"it can't be read: {hide(str(error), *self._secrets())}")

    def _connect(self) -> None:
        if self._system is None:
            options = dict(_storage(option) for option in self._storage)
            self._system, self._at = url_to_fs(
                expand(self._location), skip_instance_cache=True, use_listings_cache=False, **options
            )

    def _secrets(self) -> tuple[str, ...]:
        return (self._location, *self._storage)

    def _failed(self, error: Exception, kind: type[SourceError]) -> RagfmError:
        if isinstance(error, RagfmError):
            return error
        if isinstance(error, ImportError):
            return MissingExtraError(
                f"{self.root} needs a library that is not installed: {error}.",
                "Run `pip install 'ragfm[object]'` for S3.",
            )
        said = hide(f"{type(error).__name__}: {error}", *self._secrets())
        return kind(f"{self.root} can't be read: {' '.join(said.split())}.", "Nothing was changed.")


def _bare(path: str) -> str:
    return str(path).strip("/")


def _name(entry: _Info) -> str:
    """An entry's own name. That of a folder whose name is empty, as in `a//b`, is a slash."""
    path = str(entry["name"])
    return "/" if path.endswith("//") else path.rstrip("/").rpartition("/")[2]


def _storage(option: str) -> tuple[str, Any]:
    """An option of fsspec: numbers, truth values and what is in braces is read as JSON, all else is text."""
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise ConfigError("An option in `storage` is not of the form NAME=VALUE.", "Write endpoint_url=https://….")
    value = expand(value, quoted=False)
    if "${" in option:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _revision(status: _Info) -> str:
    mark = next((str(status[key]).strip('"') for key in _MARKS if status.get(key)), None)
    return f"mark:{mark}" if mark else f"{status.get('size')}:{_time(status) or ''}"


def _time(status: _Info) -> datetime | None:
    value = next((status[key] for key in _TIMES if status.get(key)), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, int | float):
        value = datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _unsound(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return name in (".", "..") or "/" in name
