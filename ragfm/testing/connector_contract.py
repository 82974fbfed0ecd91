"""Contract test of connectors: `ragfm.testing.check_connector`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from ragfm.core.errors import ConnectorError, SkipDocument
from ragfm.core.types import Blob, Connector, Ref
from ragfm.testing.contract_checks import require


def check_connector(connector: Connector) -> None:
    """List a source three times, once more in part, and fetch all of its entries, again in threads if it says so.

    Raises AssertionError with the violation. Use a small source that is not empty and does not change during the test.
    """
    require(isinstance(connector, Connector), f"{connector!r} does not implement the Connector protocol")
    require(isinstance(connector.root, (str, Path)), f"root is {connector.root!r}, expected a string or a path")
    first = _refs_by_path(connector)
    digests = {path: _digest(connector, ref) for path, ref in first.items()}
    if threads := getattr(connector, "parallel_fetches", None):
        with ThreadPoolExecutor(threads) as pool:
            again = list(pool.map(lambda ref: _digest(connector, ref), first.values()))
        require(again == list(digests.values()), "fetches in parallel threads give other contents")
    for number, _ in enumerate(connector.refs()):  # a listing that is broken off changes nothing for the next one
        if 2 * number >= len(first):
            break
    second, third = _refs_by_path(connector), _refs_by_path(connector)
    require(first.keys() == second.keys() == third.keys(), "two listings of the same source have different entries")
    for path, ref in first.items():
        same_groups = ref.allow == second[path].allow == third[path].allow
        require(same_groups, f"two listings of the same source allow different groups to see {path!r}")
        # A revision may change once without a change of content: that of a file written a moment ago.
        keeps_changing = ref.revision != second[path].revision and second[path].revision != third[path].revision
        if keeps_changing and digests[path] is not None:
            changed = _digest(connector, third[path]) != digests[path]
            require(changed, f"the revision of {path!r} changes with each listing, its content does not")


def _refs_by_path(connector: Connector) -> dict[str, Ref]:
    refs: dict[str, Ref] = {}
    for ref in connector.refs():
        require(isinstance(ref, Ref), f"refs() yields {ref!r}, which is not a Ref")
        require(ref.path not in refs, f"{ref.path!r} is listed twice")
        parts = PurePosixPath(ref.path).parts
        relative = "/".join(parts) == ref.path and ".." not in parts and not ref.path.startswith("/")
        require(relative or "://" in ref.path, f"{ref.path!r} is neither a plain relative path nor a URL")
        try:
            ref.path.encode()
        except UnicodeEncodeError:
            raise AssertionError(f"{ref.path!r} cannot be encoded as UTF-8") from None
        require(ref.skip is None or ref.error is None, f"{ref.path!r} has both skip and error")
        require(ref.skip != "" and ref.error != "", f"{ref.path!r} is skipped or failed without a reason")
        if ref.allow is not None:
            is_groups = isinstance(ref.allow, tuple) and all(isinstance(name, str) and name for name in ref.allow)
            require(is_groups, f"allow of {ref.path!r} is {ref.allow!r}, expected a tuple of group names")
        refs[ref.path] = ref
    valid = "" not in refs or len(refs) == 1 or refs[""].error is not None
    require(valid, "an empty path is reserved for a source of a single document and for an error of the whole source")
    return refs


def _digest(connector: Connector, ref: Ref) -> bytes | None:
    if ref.skip is not None or ref.error is not None:
        return None
    try:
        blob = connector.fetch(ref)
    except (ConnectorError, SkipDocument, OSError):
        return None
    is_blob = isinstance(blob, Blob) and isinstance(blob.data, bytes)
    require(is_blob, f"fetch returns {blob!r} for {ref.path!r}, expected a Blob of bytes")
    require(blob.media_type is None or "/" in blob.media_type, f"{blob.media_type!r} is not a media type")
    for key, value in blob.metadata.items():
        valid = isinstance(key, str) and isinstance(value, str | int | float)
        require(valid, f"metadata of {ref.path!r} must be strings or numbers, got {key!r}: {value!r}")
    return blake2b(blob.data).digest()
