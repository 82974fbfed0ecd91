"""All errors that ragfm raises, as one tree.

    RagfmError                      base class of all errors of ragfm
    ├── ConfigError                 ragfm.toml, an environment variable or an option is wrong
    ├── MissingExtraError           a library or model package is not installed; says what to install
    ├── UnknownPluginError          no plugin has that name; lists the known ones
    ├── UnsupportedError            this reader, index or format cannot do that
    ├── ModelNotFoundError          a model is neither a path nor installed, cached or reachable
    ├── DamagedModelError           a model's weights cannot be read, or have a wrong checksum
    ├── AdapterMismatchError        an adapter was trained on a different model or prompt
    ├── ReaderBusyError             a reader's queue is full; try again later
    ├── EndpointError               a model server cannot be reached, fails, or stops early
    ├── EmbeddingError              an embedder returned invalid vectors
    ├── SourceError                 a source cannot be listed, or overlaps another one
    │   ├── ConnectorError          one entry cannot be fetched
    │   └── MassDeleteError         a source lost over half of its documents: nothing is removed
    ├── ParseError                  a document is damaged or not in the expected format
    │   └── SkipDocument            nothing to index in it (empty, unsupported): reported, not a failure
    ├── WorkerError                 the parser processes cannot be started
    ├── CollectionError             a collection cannot be used in this way
    │   ├── CollectionNotFound      there is no collection there
    │   ├── CollectionBusyError     another process is writing
    │   ├── CollectionUnavailableError  the database server cannot be reached
    │   ├── DiskFullError           no space is left on the disk
    │   ├── AccessDeniedError       a file or folder may not be read or written
    │   │   └── CollectionReadOnlyError the collection's folder is not writable
    │   ├── DamagedCollectionError  the catalog is damaged or lost commits
    │   │   └── LostCommitError     another commit has the place of the one that was asked for
    │   └── EmbedderMismatchError   the collection was made with a different embedder
    ├── LogError                    the answer log cannot be read or written
    ├── DataError                   questions, runs, examples, or answers to check cannot be read or used
    ├── ExtractionError             structured output is cut off, or does not meet its schema
    ├── FilterError                 a filter cannot be parsed, or compares a key that no document has
    └── TooLongError                a text is longer than a model's window
        └── ContextOverflowError    a prompt leaves no room for an answer

The message says what failed and why; `hint` says what to do next.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class RagfmError(Exception):
    """Base class of all errors of ragfm. `hint` says what to do next; it may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.hint}" if self.hint else message

    @property
    def message(self) -> str:
        """What failed and why, without the hint."""
        return super().__str__()


class ConfigError(RagfmError):
    """A key or value of ragfm.toml, the environment or an option is wrong."""


class MissingExtraError(RagfmError):
    """A library or model package of an optional feature is not installed."""


class UnknownPluginError(RagfmError):
    """No plugin of that kind has that name."""


class UnsupportedError(RagfmError):
    """A reader, index or format does not support the operation."""


class ModelNotFoundError(RagfmError):
    """A model is neither a path nor installed, cached or reachable."""


class DamagedModelError(RagfmError):
    """A model's weights cannot be read, or do not have the pinned checksum."""


class AdapterMismatchError(RagfmError):
    """An adapter was trained on a different model or for a different prompt."""


class ReaderBusyError(RagfmError):
    """All slots of a reader are in use and its queue is full."""


class EndpointError(RagfmError):
    """A model server cannot be reached, fails, or closes the connection before its answer is complete."""


class EmbeddingError(RagfmError):
    """An embedder returned vectors of the wrong shape, not of unit length, or with values that are not finite."""


class SourceError(RagfmError):
    """A source cannot be listed, or overlaps another source of the collection."""


class ConnectorError(SourceError):
    """One entry of a source cannot be fetched."""


class MassDeleteError(SourceError):
    """A source lost more than half of its documents since its last sync; nothing was removed."""


class ParseError(RagfmError):
    """A document is damaged or not in the expected format."""


class SkipDocument(ParseError):  # noqa: N818  an outcome, not an error
    """The document has nothing to index: it is reported as skipped, not as failed."""


class WorkerError(RagfmError):
    """The parser processes cannot be started."""


class CollectionError(RagfmError):
    """A collection cannot be used in this way."""


class CollectionNotFound(CollectionError):  # noqa: N818  public name
    """There is no collection at this path."""


class CollectionBusyError(CollectionError):
    """Another process is writing to the collection; the message names it."""


class CollectionUnavailableError(CollectionError):
    """The database server of the collection cannot be reached, or refuses the connection."""


class DiskFullError(CollectionError):
    """No space is left on the disk, or the user's quota is used up."""


class AccessDeniedError(CollectionError):
    """A file or folder may not be read or written by this user, or its file system is read-only."""


class CollectionReadOnlyError(AccessDeniedError):
    """The collection's folder is not writable."""


class EmbedderMismatchError(CollectionError):
    """The collection was made with a different embedder."""


class DamagedCollectionError(CollectionError):
    """The catalog is damaged, or has lost acknowledged commits."""


class LostCommitError(DamagedCollectionError):
    """The history has another commit in the place of the one that was asked for, which may never have been there."""


class LogError(RagfmError):
    """The answer log cannot be read or written, or has no such entry."""


class DataError(RagfmError):
    """Questions, runs, examples or an answer to check cannot be read, or do not match the collection or model."""


class ExtractionError(RagfmError):
    """Structured output is cut off, or does not meet its schema."""


class FilterError(RagfmError):
    """A filter cannot be parsed, or compares a key that no document has."""


class TooLongError(RagfmError):
    """A text exceeds a model's window; ragfm never truncates silently."""


class ContextOverflowError(TooLongError):
    """A prompt leaves no room in the reader's window for an answer."""


@contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Raise MissingExtraError, which says what to install for the feature, where an import in the block fails."""
    try:
        yield
    except ImportError as error:
        why = f"cannot be used: {error}"
        if isinstance(error, ModuleNotFoundError):
            why = f"needs the module {error.name!r}, which is not installed"
        hint = f"Run `pip install -e '.[{extra}]'` in ragfm's source folder."
        raise MissingExtraError(f"{feature} {why}.", hint) from error
