"""Preparation of documents, up to their chunks: fetch, parse, split. Nothing is written.

Each entry has one outcome:

    entry ─→ fetch ─→ ignored, unchanged or failed
                  └→ fetched ─→ parse, in worker processes ─→ split ─→ document, skip or failed
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.errors import RagfmError, SkipDocument, SourceError, WorkerError
from ragfm.core.tracing import span
from ragfm.core.types import Blob, Chunk, Document, Ref
from ragfm.ingestion.ingest_report import path_below
from ragfm.parsing.sandbox.worker_pool import shared_worker_pool

if TYPE_CHECKING:
    from ragfm.core.types import Connector, Embedder
    from ragfm.ingestion.turns import Turns
    from ragfm.parsing import ParserChoice

MAX_QUEUED_DOCUMENTS = 256
"""Maximum number of documents that are parsed ahead."""
MAX_QUEUED_BYTES = 32 << 20
"""Their total size, at which no more are added; a single larger document is still accepted."""
WAIT_SECONDS = 2.0
"""How long to wait for a document to be prepared before those collected so far are embedded."""
Kind: TypeAlias = Literal["fetched", "document", "unchanged", "ignored", "skip", "fetch", "parse"]
Entry: TypeAlias = tuple[Ref, str | None]
"""An entry of a source, and the digest of the content for which nothing has to be parsed."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an entry of a source.

    kind        `fetched`        its content is new: to be parsed
                `document`       parsed and split by these versions of a parser and, if it failed, of a fallback
                `unchanged`      its content is the known one
                `ignored`        the connector, with its options, does not offer it
                `skip`           there is nothing to index
                `fetch`, `parse` the stage at which it failed
    reason      of a skip or failure
    digest      of the content and its metadata
    written     see `Blob`
    embedded    number of chunks that were embedded with it
    """

    kind: Kind
    reason: str = ""
    digest: str = ""
    document: Document | None = None
    chunks: Sequence[Chunk] = ()
    parser: str = ""
    fallback: str = ""
    written: bool = False
    embedded: int = 0


class _Parsing(NamedTuple):
    """A fetched document; the future `document` completes when it is parsed."""

    ref: Ref
    path: str
    digest: str
    document: Future[Document]
    size: int
    written: bool


def fetch(connector: Connector, ref: Ref, known_digest: str | None) -> tuple[Blob | None, Outcome]:
    """Fetch an entry. Its content is unchanged if it has the known digest."""
    try:
        with span("fetch", uri=ref.path, connector=type(connector).__name__) as active:
            blob = connector.fetch(ref)
            active.set(bytes=len(blob.data))
    except SkipDocument as error:
        return None, Outcome("ignored", str(error))
    except (OSError, SourceError) as error:
        return None, Outcome("fetch", str(error))
    # Metadata is content, except for the time of modification, which belongs to the revision.
    metadata = {key: value for key, value in blob.metadata.items() if key != "modified"}
    hashed = blake2b(blob.data, digest_size=16)
    hashed.update(json.dumps([blob.media_type, metadata], sort_keys=True).encode())
    digest = hashed.hexdigest()
    return blob, Outcome("unchanged" if digest == known_digest else "fetched", digest=digest)


def fetch_all(
    connector: Connector, entries: Iterable[Entry], threads: int
) -> Generator[tuple[Ref, Blob | None, Outcome], None, None]:
    """Fetch entries, as `fetch` does, and yield them in their order. Each of the threads fetches up to two ahead."""
    if threads == 1:
        for ref, known_digest in entries:
            yield ref, *fetch(connector, ref, known_digest)
        return
    pool = ThreadPoolExecutor(threads, "fetch")
    ahead: deque[tuple[Ref, Future[tuple[Blob | None, Outcome]]]] = deque()
    try:
        for ref, known_digest in entries:
            ahead.append((ref, pool.submit(copy_context().run, fetch, connector, ref, known_digest)))
            if len(ahead) == 2 * threads:
                first, future = ahead.popleft()
                yield first, *future.result()
        for ref, future in ahead:
            yield ref, *future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def prepare(
    connector: Connector,
    choice: ParserChoice,
    chunk_settings: ChunkSettings,
    embedder: Callable[[], Embedder],
    entries: Iterable[Entry],
    turns: Turns | None = None,
) -> Generator[tuple[Ref, Outcome] | None, None, None]:
    """Fetch, parse and split entries of a source; with `turns`, those of a slice. The URI of a document is its path.

    Yields each with its outcome, documents in the order of the entries, while the next ones are parsed. Yields None
    each time that a document takes longer than `WAIT_SECONDS`. Raises WorkerError, and the errors of an embedder that
    fails.
    """
    queue: deque[_Parsing] = deque()

    def take_first() -> Generator[tuple[Ref, Outcome] | None, None, None]:
        while not wait([queue[0].document], WAIT_SECONDS).done:
            yield None
        parsed = queue.popleft()
        yield parsed.ref, _split(parsed, choice, chunk_settings, embedder)

    threads = getattr(connector, "parallel_fetches", 1)
    if turns is not None:  # each turn depends on the size of what was fetched before
        take, threads = turns.take, 1
        entries = takewhile(lambda entry: take(entry[0]), entries)
    fetched = fetch_all(connector, entries, threads)
    try:
        for ref, blob, outcome in fetched:
            if turns is not None:
                turns.count(0 if blob is None else len(blob.data))
            if blob is not None and outcome.kind == "fetched":
                path = path_below(connector.root, ref.path)
                document = shared_worker_pool().submit(blob, path, choice)
                queue.append(_Parsing(ref, path, outcome.digest, document, len(blob.data), blob.written))
            else:
                yield ref, outcome
            while queue and (
                queue[0].document.done()
                or len(queue) >= MAX_QUEUED_DOCUMENTS
                or sum(parsed.size for parsed in queue) >= MAX_QUEUED_BYTES
            ):
                yield from take_first()
        while queue:
            yield from take_first()
    finally:
        fetched.close()
        for parsed in queue:
            parsed.document.cancel()


def _split(
    parsed: _Parsing, choice: ParserChoice, chunk_settings: ChunkSettings, embedder: Callable[[], Embedder]
) -> Outcome:
    try:
        document = parsed.document.result()
    except Exception as error:  # a bug in a parser must not stop the other documents
        return _failure(parsed.ref, error)
    model = embedder()
    try:
        chunks = chunk_document(document, model.tokenize, model.max_tokens, chunk_settings, path=parsed.path)
    except Exception as error:  # as above
        return _failure(parsed.ref, error)
    fallback = str(document.metadata.get("parsed_by", ""))
    if fallback not in choice.parsers_for(document.media_type)[1:]:
        fallback = ""
    return Outcome(
        "document",
        digest=parsed.digest,
        document=document,
        chunks=chunks,
        parser=choice.version(document.media_type, "" if parsed.written else parsed.path),
        fallback=fallback and choice.parser_version(fallback, document.media_type),
        written=parsed.written,
    )


def _failure(ref: Ref, error: Exception) -> Outcome:
    if isinstance(error, WorkerError):
        raise error
    if isinstance(error, SkipDocument):
        return Outcome("skip", str(error))
    if isinstance(error, RagfmError):
        return Outcome("parse", str(error))
    _log.debug("%s", ref.path, exc_info=error)
    return Outcome("parse", f"{type(error).__name__}: {error}")
