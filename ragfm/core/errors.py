"""What can go wrong, as one tree.

    RagfmError                      anything that ragfm raises on purpose
    ├── ConfigError                 ragfm.toml, an environment variable or an option is wrong
    ├── MissingExtraError           a library or model package is not installed; says what to install
    ├── UnknownPluginError          no plugin of that name; lists those that there are
    ├── UnsupportedError            this reader, index or format can't do what was asked
    ├── ModelNotFoundError          a model is neither a path nor installed, cached or reachable
    ├── DamagedModelError           a model's weights are not those that were pinned, or can't be read
    ├── AdapterMismatchError        an adapter was trained on other weights, or for another prompt
    ├── ReaderBusyError             a reader has as many requests as it takes; ask again later
    ├── EndpointError               a server that a reader asks can't be reached, fails, or breaks off
    ├── EmbeddingError              an embedder gave vectors that can't be used
    ├── SourceError                 a source can't be listed, or overlaps another one
    │   ├── ConnectorError          one entry can't be fetched
    │   └── MassDeleteError         a source lost over half of its documents: nothing is removed
    ├── ParseError                  a document's bytes are not what they should be
    │   └── SkipDocument            nothing to index in it (empty, unsupported): reported, not a failure
    ├── WorkerError                 the processes in which documents are parsed can't be started
    ├── CollectionError             a collection can't be used as asked
    │   ├── CollectionNotFound      there is no collection there
    │   ├── CollectionBusyError     another process is writing
    │   ├── CollectionReadOnlyError the collection's folder can't be written
    │   ├── EmbedderMismatchError   the collection was made with another embedder
    │   └── DamagedCollectionError  the catalog is damaged or lost commits
    ├── LogError                    the answer log can't be read or written
    ├── DataError                   questions, a run of an evaluation or examples can't be read, or don't fit
    ├── ExtractionError             a structured answer is cut off, or does not meet its schema
    ├── FilterError                 a filter can't be read
    └── TooLongError                a text is longer than a model's window
        └── ContextOverflowError    a prompt leaves no room for an answer

A message says what happened and where; `hint` says what to do next.
"""

from __future__ import annotations

__all__ = [
    "AdapterMismatchError",
    "CollectionBusyError",
    "CollectionError",
    "CollectionNotFound",
    "CollectionReadOnlyError",
    "ConfigError",
    "ConnectorError",
    "ContextOverflowError",
    "DamagedCollectionError",
    "DamagedModelError",
    "DataError",
    "EmbedderMismatchError",
    "EmbeddingError",
    "EndpointError",
    "ExtractionError",
    "FilterError",
    "LogError",
    "MassDeleteError",
    "MissingExtraError",
    "ModelNotFoundError",
    "ParseError",
    "RagfmError",
    "ReaderBusyError",
    "SkipDocument",
    "SourceError",
    "TooLongError",
    "UnknownPluginError",
    "UnsupportedError",
    "WorkerError",
]


class RagfmError(Exception):
    """Anything that ragfm raises on purpose. `hint` says what to do next; it may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.hint}" if self.hint else message

    @property
    def message(self) -> str:
        """What happened and where, without the hint."""
        return super().__str__()


class ConfigError(RagfmError):
    """A key or value of ragfm.toml, the environment or an option is wrong."""


class MissingExtraError(RagfmError):
    """A library or a model package that an optional part needs is not installed."""


class UnknownPluginError(RagfmError):
    """No plugin of that kind has that name."""


class UnsupportedError(RagfmError):
    """What was asked for is not possible with this reader, index or format."""


class ModelNotFoundError(RagfmError):
    """A model is neither a path nor installed, cached or reachable."""


class DamagedModelError(RagfmError):
    """A model's weights are not those that were pinned, or can't be read."""


class AdapterMismatchError(RagfmError):
    """An adapter was trained on other weights than those it is to be used with, or for another prompt."""


class ReaderBusyError(RagfmError):
    """A reader serves as many requests as it can, and as many as it takes wait already."""


class EndpointError(RagfmError):
    """A server that a reader asks can't be reached, fails, or ends before its answer does."""


class EmbeddingError(RagfmError):
    """An embedder gave vectors of the wrong shape or length, or that are not finite."""


class SourceError(RagfmError):
    """A source can't be listed, or overlaps another source of the collection."""


class ConnectorError(SourceError):
    """One entry of a source can't be fetched."""


class MassDeleteError(SourceError):
    """A source has lost over half of its documents since its last sync; nothing was removed."""


class ParseError(RagfmError):
    """A document's bytes are not what they should be."""


class SkipDocument(ParseError):  # noqa: N818  it is an outcome, not a failure
    """There is nothing to index in the document: it is reported as skipped, not as failed."""


class WorkerError(RagfmError):
    """The processes in which documents are parsed can't be started."""


class CollectionError(RagfmError):
    """A collection can't be used as asked."""


class CollectionNotFound(CollectionError):  # noqa: N818  the contract's name
    """There is no collection at that place."""


class CollectionBusyError(CollectionError):
    """Another process is writing to the collection; the message names it."""


class CollectionReadOnlyError(CollectionError):
    """The collection's folder can't be written."""


class EmbedderMismatchError(CollectionError):
    """The collection was made with another embedder."""


class DamagedCollectionError(CollectionError):
    """The catalog is damaged, or it lost commits that had been acknowledged."""


class LogError(RagfmError):
    """The answer log can't be read or written, or has no such entry."""


class DataError(RagfmError):
    """Questions, a run of an evaluation or training examples can't be read, or don't fit what they are used with."""


class ExtractionError(RagfmError):
    """A structured answer is cut off, or does not meet its schema."""


class FilterError(RagfmError):
    """A filter can't be read."""


class TooLongError(RagfmError):
    """A text is longer than a model's window; ragfm never cuts in silence."""


class ContextOverflowError(TooLongError):
    """A prompt leaves no room in the reader's window for an answer."""
