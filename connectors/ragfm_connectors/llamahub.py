"""A connector for readers of LlamaIndex: what one of them loads, as documents without permissions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from importlib import import_module
from typing import Any

from pydantic import Json

from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, SourceError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.records import Fields, record_revision
from ragfm_connectors.secrets import check_option, expand, hide

_Arguments = dict[str, Any]


class LlamahubConnector:
    """Documents that a reader of LlamaIndex loads, such as `llamahub://wikipedia/WikipediaReader`.

    `arguments` are those of its class, `load` those of its method `load_data`, as a table or as JSON, in whose texts
    `${NAME}` stands for an environment variable. `id` is the key of the metadata that identifies a document, or `id_`
    for the reader's own id; without it, the content does. See `ragfm_connectors.records` for `metadata`.

    A reader loads everything at each listing, and does not tell who may see a document, or whether it left some out.
    """

    def __init__(
        self,
        location: str,
        *,
        arguments: _Arguments | Json[_Arguments] | None = None,
        load: _Arguments | Json[_Arguments] | None = None,
        id: str | None = None,
        metadata: Sequence[str] | None = None,
    ) -> None:
        """Raises ConfigError for an invalid location, and for a secret that is not an environment variable."""
        parts = re.fullmatch(r"llamahub://([\w.]+)/(\w+)", location)
        if parts is None:
            raise ConfigError(
                f"{location!r} is not the address of a reader of LlamaIndex.",
                "Write llamahub://PACKAGE/CLASS, such as llamahub://wikipedia/WikipediaReader.",
            )
        self._package, self._class = parts.groups()
        self._arguments, self._load = arguments or {}, load or {}
        for key, value in _texts({**self._arguments, **self._load}):
            if "${" not in value:
                check_option(key)
        given = json.dumps([self._arguments, self._load], sort_keys=True)
        self.root = f"{location}#{blake2b(given.encode(), digest_size=4).hexdigest()}"
        """The location, and a hash of the arguments: one reader can be several sources."""
        self._given = given
        self._fields = Fields(id, None, ("text",), metadata)
        self._blobs: dict[str, Blob] = {}  # by path

    def refs(self) -> Iterator[Ref]:
        """All documents that the reader loads. Raises SourceError where it fails, and MissingExtraError without it."""
        blobs: dict[str, Blob] = {}
        for number, record in enumerate(self._records(), 1):
            try:
                blob = self._fields.blob(record)
                path = self._fields.identity(record) or record_revision(blob)
            except ConnectorError as error:
                yield Ref(f"#{number}", error=error.message)
                continue
            if path in blobs:
                yield Ref(f"{path}#{number}", skip="another document has the same id")
            else:
                blobs[path] = blob
                yield Ref(path, record_revision(blob))
        self._blobs = blobs

    def fetch(self, ref: Ref) -> Blob:
        """A document as it was listed. Raises ConnectorError if it is gone."""
        if ref.path not in self._blobs:
            list(self.refs())
        if ref.path not in self._blobs:
            raise ConnectorError(f"The document {ref.path!r} no longer exists.", "The next ingest removes it.")
        return self._blobs[ref.path]

    def _records(self) -> list[Mapping[str, Any]]:
        core = self._package == "core"
        try:
            module = import_module("llama_index.core.readers" if core else f"llama_index.readers.{self._package}")
        except ImportError as error:
            package = "core" if core else f"readers-{self._package}".replace("_", "-")
            hint = f"Run `pip install llama-index-{package}`."
            raise MissingExtraError(f"{self.root} cannot be imported: {error}.", hint) from None
        reader_class = getattr(module, self._class, None)
        if reader_class is None:
            raise ConfigError(f"{module.__name__} has no class {self._class!r}.", "Check the location.")
        own = self._fields.id == "id_"  # many readers make a new one each time
        try:
            documents = list(reader_class(**_expanded(self._arguments)).load_data(**_expanded(self._load)))
            return [{**it.metadata, **({"id_": it.id_} if own else {}), "text": it.text} for it in documents]
        except ConfigError:
            raise
        except Exception as error:  # each reader raises its own errors
            reason = hide(f"{type(error).__name__}: {' '.join(str(error).split())}", self._given).rstrip(".")
            raise SourceError(f"{self.root}: the reader fails with {reason}.", "Nothing was changed.") from None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in nested arguments, with the name of the nearest argument."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _expanded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _expanded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_expanded(inner) for inner in value]
    return expand(value, quoted=False) if isinstance(value, str) else value
