"""Preparation of documents, up to their chunks: fetch, parse, split. Nothing is written.

Each entry has one outcome:

    entry ─→ fetch ─→ ignored, unchanged or failed
                  └→ fetched ─→ ParseQueue ─→ split ─→ document, skip or failed
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, TypeAlias

from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.errors import RagfmError, SkipDocument, SourceError, WorkerError
from ragfm.core.types import Blob, Chunk, Document, Mark
from ragfm.parsing.sandbox.worker_protocol import take_images

if TYPE_CHECKING:
    from ragfm.core.types import Connector, Embedder, Ref
    from ragfm.ingestion.parse_queue import Pending
    from ragfm.parsing import ParserChoice

Kind: TypeAlias = Literal["fetched", "document", "unchanged", "ignored", "skip", "fetch", "parse"]
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
    embedded    number of its chunks that its worker has embedded
    """

    kind: Kind
    reason: str = ""
    digest: str = ""
    document: Document | None = None
    chunks: Sequence[Chunk] = ()
    parser: str = ""
    fallback: str = ""
    embedded: int = 0

    def to_bytes(self) -> bytes:
        """The outcome as compressed JSON, followed by the images."""
        images: Mapping[str, bytes] = {}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if self.document is not None:
            document = self.document
            values["document"] = [document.uri, document.text, document.media_type, dict(document.metadata)]
            values["document"].append([mark.to_list() for mark in document.marks])
            images = document.images
            values["document"].append({key: len(data) for key, data in images.items()})
        values["chunks"] = [astuple(chunk)[1:] for chunk in self.chunks]  # the text is that of the document
        return b"".join((zlib.compress(json.dumps(values).encode(), 1), *images.values()))

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        """The outcome in the bytes of `to_bytes`."""
        unpacker = zlib.decompressobj()
        values = json.loads(unpacker.decompress(data))
        if values["document"] is not None:
            uri, text, media_type, metadata, marks, sizes = values["document"]
            images = take_images(sizes, unpacker.unused_data)
            marks = tuple(map(Mark.from_list, marks))
            values["document"] = Document(uri, text, media_type, metadata, marks, images)
            values["chunks"] = [
                Chunk(text[start:end], start, end, context, page, place, tuple(headings), image, box and tuple(box))
                for start, end, context, page, place, headings, image, box in values["chunks"]
            ]
        return cls(**values)


def fetch(connector: Connector, ref: Ref, known_digest: str | None) -> tuple[Blob | None, Outcome]:
    """Fetch an entry. Its content is unchanged if it has the known digest."""
    try:
        blob = connector.fetch(ref)
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


def split(
    pending: Pending, choice: ParserChoice, embedder: Callable[[], Embedder], chunk_settings: ChunkSettings
) -> Outcome:
    """Wait for the parsed document, and split it. Raises WorkerError, and the errors of an embedder that fails."""
    try:
        document = pending.document.result()
    except Exception as error:  # a bug in a parser must not stop the other documents
        return _failure(pending, error)
    model = embedder()
    try:
        chunks = chunk_document(document, model.tokenize, model.max_tokens, chunk_settings, path=pending.ref.path)
    except Exception as error:  # as above
        return _failure(pending, error)
    fallback = str(document.metadata.get("parsed_by", ""))
    if fallback not in choice.parsers_for(document.media_type)[1:]:
        fallback = ""
    return Outcome(
        "document",
        digest=pending.digest,
        document=document,
        chunks=chunks,
        parser=choice.version(document.media_type, pending.ref.path),
        fallback=fallback and choice.parser_version(fallback, document.media_type),
    )


def _failure(pending: Pending, error: Exception) -> Outcome:
    if isinstance(error, WorkerError):
        raise error
    if isinstance(error, SkipDocument):
        return Outcome("skip", str(error))
    if isinstance(error, RagfmError):
        return Outcome("parse", str(error))
    _log.debug("%s", pending.ref.path, exc_info=error)
    return Outcome("parse", f"{type(error).__name__}: {error}")
