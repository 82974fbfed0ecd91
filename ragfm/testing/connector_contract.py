"""What every connector owes, as a test: `ragfm.testing.check_connector`."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path, PurePosixPath

from ragfm.core.errors import ConnectorError, SkipDocument
from ragfm.core.types import Blob, Connector, Ref
from ragfm.testing.contract_checks import require


def check_connector(connector: Connector) -> None:
    """List a source three times and fetch all that it holds. Raises AssertionError with what is wrong.

    Point it at a small source with something in it, that nobody changes meanwhile.
    """
    require(isinstance(connector, Connector), f"{connector!r} lacks a part of the Connector protocol")
    require(isinstance(connector.root, (str, Path)), f"root is {connector.root!r}, neither a text nor a path")
    first = _listing(connector)
    before = {path: _digest(connector, ref) for path, ref in first.items()}
    second, third = _listing(connector), _listing(connector)
    require(first.keys() == second.keys() == third.keys(), "listed twice, the source holds other entries")
    for path, ref in first.items():
        same = ref.allow == second[path].allow == third[path].allow
        require(same, f"listed twice, other groups may see {path!r}")
        # A revision may change once with the content as it was: that of a file which had only just been written.
        changed = ref.revision != second[path].revision and second[path].revision != third[path].revision
        if changed and before[path] is not None:
            require(_digest(connector, third[path]) != before[path], f"{path!r} gets a new revision at every listing")


def _listing(connector: Connector) -> dict[str, Ref]:
    listed: dict[str, Ref] = {}
    for ref in connector.refs():
        require(isinstance(ref, Ref), f"refs() gives {ref!r}, which is no Ref")
        require(ref.path not in listed, f"{ref.path!r} is listed twice")
        parts = PurePosixPath(ref.path).parts
        sound = "/".join(parts) == ref.path and ".." not in parts and not ref.path.startswith("/")
        require(sound or "://" in ref.path, f"{ref.path!r} is not a plain path relative to the source")
        require(_is_utf8(ref.path), f"{ref.path!r} can't be written as UTF-8")
        require(ref.skip is None or ref.error is None, f"{ref.path!r} has both skip and error")
        if ref.allow is not None:
            names = isinstance(ref.allow, tuple) and all(isinstance(name, str) and name for name in ref.allow)
            require(names, f"{ref.path!r} is allowed to {ref.allow!r}, which is no tuple of groups' names")
        require(ref.skip != "" and ref.error != "", f"{ref.path!r} is skipped or failed without a reason")
        listed[ref.path] = ref
    alone = "" not in listed or len(listed) == 1 or listed[""].error is not None
    require(alone, "an empty path is for a source that is a single document, or for what went wrong with all of it")
    return listed


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _digest(connector: Connector, ref: Ref) -> bytes | None:
    if ref.skip is not None or ref.error is not None:
        return None
    try:
        blob = connector.fetch(ref)
    except (ConnectorError, SkipDocument, OSError):
        return None
    require(isinstance(blob, Blob) and isinstance(blob.data, bytes), f"fetch gives {blob!r} for {ref.path!r}")
    require(blob.media_type is None or "/" in blob.media_type, f"{blob.media_type!r} is not a media type")
    for key, value in blob.metadata.items():
        require(isinstance(key, str) and isinstance(value, str | int | float), f"metadata {key!r}: {value!r}")
    return blake2b(blob.data).digest()
