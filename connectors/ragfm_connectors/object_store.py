"""Objects of a store that fsspec supports: S3, Google Cloud Storage, Azure, SFTP and others."""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeAlias

import fsspec
from fsspec.core import url_to_fs

from ragfm.core.access_groups import intersect_groups
from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, RagfmError, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.secrets import check_no_secret, check_option, expand, hide, without_user

_ObjectInfo: TypeAlias = Mapping[str, Any]

_VERSION_KEYS = ("ETag", "etag", "VersionId", "version_id", "generation", "md5Hash", "md5")
"""Keys of a value that changes with the content; the first one present is used."""
_TIME_KEYS = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
_RACY = timedelta(seconds=2)  # an object can change again within the tick of a store's clock
_REFUSED_SCHEMES = {
    **dict.fromkeys(
        ("file", "local", "asynclocal", "dir", "zip", "tar", "libarchive", "git"),
        "Use the connector files or git: they never leave their folder.",
    ),
    **dict.fromkeys(("http", "https"), "Use the connector web: it never reaches private addresses."),
    **dict.fromkeys(
        ("cached", "blockcache", "filecache", "simplecache", "reference", "generic", "asyncwrapper", "async_wrapper"),
        "It only wraps another store: name that one.",
    ),
}


class ObjectConnector:
    """All objects below a prefix, or a single object, at an fsspec address such as `s3://bucket/prefix`.

    The path of an object is its key below the prefix. The revision is the store's ETag or version, else size and time
    of change. `storage` are options of fsspec's file system, each `name=value`, such as
    `endpoint_url=https://minio.lan:9000`. In these and in the address, `${NAME}` stands for an environment variable;
    stores also read their own credentials from the environment.

    `include` and `exclude` are patterns as in .gitignore. Hidden objects unless `hidden` is set, objects larger than
    `max_bytes`, and keys that are not valid paths are skipped. Access files apply as in a folder of files. So do
    `readers`, each `PREFIX=GROUP,GROUP`: the longest prefix of a path decides, and nobody may see a path without one.
    """

    fetch_anywhere = True

    def __init__(
        self,
        location: str,
        *,
        storage: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        readers: Sequence[str] = (),
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for an address of a different connector, an invalid option, and a secret in either."""
        scheme = location.partition("://")[0]
        supported = set(fsspec.available_protocols()) - set(_REFUSED_SCHEMES)
        if "://" not in location or "::" in location or scheme not in supported:
            hint = _REFUSED_SCHEMES.get(scheme, f"Supported: {', '.join(sorted(supported))}.")
            raise ConfigError(f"{scheme}://… is not the address of an object store.", hint)
        check_no_secret(location)
        for option in storage:
            check_option(option)
        self._location, self._storage = location.rstrip("/"), tuple(storage)
        self.root = without_user(self._location)
        """The address, without user and password."""
        self._paths = PathFilter(include, exclude)
        self._hidden, self._max_bytes = hidden, max_bytes
        if unclear := [rule for rule in readers if "=" not in rule]:
            raise ConfigError(f"The reader {unclear[0]!r} has no groups.", "Write PREFIX=GROUP, such as hr/=hr,board.")
        rules = [rule.rpartition("=")[::2] for rule in readers]
        self._readers = sorted(rules, key=lambda rule: len(rule[0]), reverse=True)
        self._file_system: Any = None  # fsspec has no types
        self._prefix = ""

    def refs(self) -> Iterator[Ref]:
        """All objects, folder by folder. A folder that cannot be listed yields one Ref with `error`.

        Raises SourceError if the prefix cannot be listed.
        """
        try:
            self._connect()
            self._file_system.invalidate_cache()
            info = self._file_system.info(self._prefix)
        except Exception as error:  # each store raises its own errors
            raise self._store_error(error, SourceError) from None
        if info["type"] == "file":
            access = self._read_access_file(posixpath.dirname(self._prefix))
            yield self._object_ref("", info, access.groups)
            return

        # Without recursion, since keys can be arbitrarily deep.
        waiting: list[tuple[str, tuple[str, ...] | None]] = [("", None)]
        while waiting:
            folder, allow = waiting.pop()
            path = self._full_path(folder)
            try:
                entries = sorted(self._file_system.ls(path, detail=True), key=lambda entry: str(entry["name"]))
            except FileNotFoundError:
                if folder:
                    continue  # its last object was just deleted
                raise self._store_error(FileNotFoundError(f"there is nothing at {self.root}"), SourceError) from None
            except Exception as error:  # each store raises its own errors
                store_error = self._store_error(error, SourceError)
                if not folder:
                    raise store_error from None
                yield Ref(folder, error=store_error.message, allow=allow)
                continue
            names: dict[str, _ObjectInfo] = {}
            for entry in entries:
                key = str(entry["name"])
                if key.strip("/") != path.strip("/"):  # some stores list the folder itself
                    name = key.rstrip("/").rpartition("/")[2]
                    names["/" if key.endswith("//") else name] = entry  # a folder with an empty name, as in `a//b`
            access = self._read_access_file(path) if ACCESS_FILE in names else AccessRule()
            if access.problem:
                yield access.problem_ref(folder)
            groups = intersect_groups(allow, access.groups)
            for name, entry in names.items():
                entry_path = posixpath.join(folder, name)
                hidden = name.startswith(".") and not self._hidden
                is_utf8 = name.encode("utf-8", "replace").decode() == name
                if name == ACCESS_FILE:
                    continue
                if name in (".", "..") or "/" in name or not is_utf8:
                    shown = f"{folder}/#{name!a}".lstrip("/").replace("/", "%2F")
                    yield Ref(shown, skip="its key is not a valid path")
                elif entry["type"] == "directory":
                    if self._paths.may_contain(entry_path) and hidden:
                        yield Ref(entry_path, skip="hidden")
                    elif self._paths.may_contain(entry_path):
                        waiting.append((entry_path, groups))
                elif self._paths.includes(entry_path):
                    yield Ref(entry_path, skip="hidden") if hidden else self._object_ref(entry_path, entry, groups)

    def fetch(self, ref: Ref) -> Blob:
        """The content of an object, with the time `modified` as metadata. Raises ConnectorError if it has changed."""
        try:
            self._connect()
            path = self._full_path(ref.path)
            self._file_system.invalidate_cache()
            size = self._file_system.info(path)["size"]
            data = self._file_system.cat_file(path, start=0, end=self._max_bytes + 1) if size else b""
            self._file_system.invalidate_cache()
            info = self._file_system.info(path)
        except Exception as error:  # each store raises its own errors
            raise self._store_error(error, ConnectorError) from None
        # New content may have come with new access rules.
        if len(data) > self._max_bytes or not ref.revision.startswith(_revision(info)):
            raise ConnectorError(
                f"{ref.path or self.root} has changed since it was listed.", "The next ingest reads it again."
            )
        modified = _modified(info)
        metadata: dict[str, Scalar] = {"modified": modified.isoformat(timespec="seconds")} if modified else {}
        return Blob(data, None, metadata)

    def _object_ref(self, path: str, info: _ObjectInfo, allow: tuple[str, ...] | None) -> Ref:
        size = int(info.get("size") or 0)
        if size > self._max_bytes:
            return Ref(path, skip=f"{size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
        if self._readers:
            groups = next((groups for prefix, groups in self._readers if path.startswith(prefix)), "")
            allow = intersect_groups(allow, tuple(filter(None, map(str.strip, groups.split(",")))))
        revision = _revision(info)
        if not revision.startswith("mark:"):
            modified = _modified(info)
            if modified is None or modified > datetime.now(UTC) - _RACY:
                try:
                    data = self._file_system.cat_file(self._full_path(path))
                except Exception as error:  # each store raises its own errors
                    return Ref(path, error=self._store_error(error, ConnectorError).message, allow=allow)
                revision = f"{revision}:{blake2b(data, digest_size=16).hexdigest()}"
        return Ref(path, revision, allow=allow)

    def _read_access_file(self, folder: str) -> AccessRule:
        path = f"{folder.rstrip('/')}/{ACCESS_FILE}"
        try:
            return parse_access_file(self._file_system.cat_file(path))
        except FileNotFoundError:
            return AccessRule()
        except Exception as error:  # each store raises its own errors
            return AccessRule((), f"it cannot be read: {hide(str(error), self._location, *self._storage)}")

    def _full_path(self, path: str) -> str:
        return f"{self._prefix.rstrip('/')}/{path}" if path else self._prefix

    def _connect(self) -> None:
        if self._file_system is not None:
            return
        options: dict[str, Any] = {}
        for option in self._storage:
            name, equals, value = option.partition("=")
            if not equals or not name:
                raise ConfigError(
                    "An option in `storage` does not have the form NAME=VALUE.",
                    "Use a form such as endpoint_url=https://minio.lan.",
                )
            options[name] = expand(value, quoted=False)
            if "${" not in option:
                with contextlib.suppress(ValueError):  # a value that is not JSON is text
                    options[name] = json.loads(value)
        self._file_system, self._prefix = url_to_fs(
            expand(self._location), skip_instance_cache=True, use_listings_cache=False, **options
        )

    def _store_error(self, error: Exception, error_class: type[SourceError]) -> RagfmError:
        if isinstance(error, RagfmError):
            return error
        if isinstance(error, ImportError):
            return MissingExtraError(
                f"{self.root} needs a library that is not installed: {error}.",
                "Run `pip install -e '.[object]'` in ragfm's source folder for S3.",
            )
        message = hide(f"{type(error).__name__}: {error}", self._location, *self._storage)
        return error_class(f"{self.root} cannot be read: {' '.join(message.split())}.", "Nothing was changed.")


def _revision(info: _ObjectInfo) -> str:
    version = str(next((info[key] for key in _VERSION_KEYS if info.get(key)), "")).strip('"')
    return f"mark:{version}" if version else f"{info.get('size')}:{_modified(info) or ''}"


def _modified(info: _ObjectInfo) -> datetime | None:
    value = None
    for key in _TIME_KEYS:
        value = value or info.get(key)
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
