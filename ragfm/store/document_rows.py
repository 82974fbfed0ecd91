"""How documents are written to the catalog's tables, within a transaction of its writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.store.catalog import Source, text_hash
from ragfm.store.database import batches
from ragfm.store.tables import COMPARED, as_number, chunks, documents, groups, tags

if TYPE_CHECKING:
    from ragfm.core.types import Chunk, Document, Scalar


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document version to commit: where it came from, what it is, and its chunks with their hashes.

    `allow` are the groups that the connector says may see it, None where it says nothing.
    """

    path: str
    revision: str
    digest: str
    recipe: str
    document: Document
    chunks: Sequence[Chunk]
    hashes: Sequence[bytes]
    allow: tuple[str, ...] | None = None


def end_documents(connection: sa.Connection, source_id: int, paths: Sequence[str], generation: int) -> int:
    """End the living documents at these paths; gives how many chunks went with them."""
    ended = 0
    for part in batches(list(paths)):
        these = (documents.c.source_id == source_id, documents.c.path.in_(part), documents.c.died.is_(None))
        gone = connection.execute(sa.select(documents.c.id).where(*these)).scalars().all()
        if gone:
            connection.execute(documents.update().where(documents.c.id.in_(gone)).values(died=generation))
            # Some may have died before it, at a re-embedding. Said so that SQLite doesn't walk through all that live.
            living = (chunks.c.document_id.in_(gone), sa.func.coalesce(chunks.c.died, 0) == 0)
            ended += connection.execute(chunks.update().where(*living).values(died=generation)).rowcount
    return ended


def insert_document(connection: sa.Connection, source: Source, new: NewDocument, generation: int) -> None:
    """A document version with its chunks, metadata and groups."""
    document = new.document
    metadata = {**document.metadata, **source.tags}
    names = visible_to(source.allow, new.allow)
    inserted = connection.execute(
        documents.insert().values(
            source_id=source.id,
            path=new.path,
            uri=document.uri,
            revision=new.revision,
            media_type=document.media_type,
            metadata=metadata,
            digest=new.digest,
            recipe=new.recipe,
            characters=len(document.text),
            chunk_count=len(new.chunks),
            allow=None if new.allow is None else list(new.allow),
            restricted=names is not None,
            born=generation,
            text_hash=text_hash(document.text),
            marks=[astuple(mark) for mark in document.marks],
            text=document.text,
        )
    ).inserted_primary_key
    assert inserted is not None
    document_id = inserted[0]
    if metadata:
        connection.execute(tags.insert(), [tag_row(document_id, key, value) for key, value in metadata.items()])
    if names:
        connection.execute(groups.insert(), [{"document_id": document_id, "name": name} for name in names])
    insert_chunks(connection, document_id, new.chunks, new.hashes, generation)


def insert_chunks(
    connection: sa.Connection, document_id: int, new: Sequence[Chunk], hashes: Sequence[bytes], generation: int
) -> None:
    """The chunks of a document that come at a generation."""
    rows = [
        {
            "document_id": document_id,
            "start": chunk.start,
            "end": chunk.end,
            "page": chunk.page,
            "place": chunk.place,
            "headings": list(chunk.headings),
            "context": chunk.context,
            "text_hash": key,
            "born": generation,
        }
        for chunk, key in zip(new, hashes, strict=True)
    ]
    if rows:
        connection.execute(chunks.insert(), rows)


def visible_to(source: Sequence[str], document: Sequence[str] | None) -> list[str] | None:
    """The groups that may see a document, None if everybody may.

    The source's `--allow` and what the connector says of the document both hold: a group must be in both.
    """
    if document is None:
        return sorted(set(source)) if source else None
    return sorted(set(document) & set(source) if source else set(document))


def restrict(connection: sa.Connection, source: Source, paths: Mapping[str, tuple[str, ...] | None] | None) -> int:
    """Make groups hold for all versions of a source's documents; gives how many rows have changed.

    For those at `paths`, with what the connector now says of them; for all, with what it said, where that is None.
    """
    query = sa.select(documents.c.id, documents.c.path, documents.c.allow).where(documents.c.source_id == source.id)
    changed = 0
    for document_id, path, before in connection.execute(query).all():
        if paths is not None and path not in paths:
            continue
        allow = before if paths is None else paths[path]
        names = visible_to(source.allow, allow)
        this = documents.c.id == document_id
        kept = None if allow is None else list(allow)
        connection.execute(documents.update().where(this).values(allow=kept, restricted=names is not None))
        connection.execute(groups.delete().where(groups.c.document_id == document_id))
        if names:
            connection.execute(groups.insert(), [{"document_id": document_id, "name": name} for name in names])
        changed += 1
    return changed


def tag_row(document_id: int, key: str, value: Scalar) -> dict[str, Any]:
    """A metadata value as the row that filters compare it by."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return {"document_id": document_id, "key": key, "text": text[:COMPARED], "number": as_number(text)}
