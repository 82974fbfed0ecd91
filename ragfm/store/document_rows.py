"""Rows of documents, chunks, tags and groups, written within a transaction of the catalog writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ragfm.core.types import Chunk, Document, Scalar, Vectors
from ragfm.parsing.figures import image_type
from ragfm.store.catalog import Source, batches
from ragfm.store.tables import (
    MAX_COMPARED_CHARACTERS,
    as_number,
    chunks,
    documents,
    groups,
    images,
    tags,
    text_hash,
    vectors,
)


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document version to commit, with its chunks and the hash of each chunk's embedded text.

    `digest` is the hash of the source's bytes, `recipe` everything else that parsing, chunking and tags depend on. The
    metadata of the document includes its tags.
    `allow` are the groups that may see it according to the connector, None if the connector has no access rules.
    """

    path: str
    revision: str
    digest: str
    recipe: str
    document: Document
    chunks: Sequence[Chunk]
    hashes: Sequence[bytes]
    allow: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Characters of its text plus bytes of its images."""
        return len(self.document.text) + sum(map(len, self.document.images.values()))


def insert_document(connection: sa.Connection, source: Source, new: NewDocument, generation: int) -> int:
    """Insert a document version with its chunks, tags and groups. Returns its id."""
    document = new.document
    metadata = dict(document.metadata)
    names = allowed_groups(source.allow, new.allow)
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
            marks=[mark.to_list() for mark in document.marks],
            text=document.text,
        )
    ).inserted_primary_key
    assert inserted is not None
    document_id = int(inserted[0])
    _insert_tags(connection, document_id, metadata)
    if names:
        connection.execute(groups.insert(), [{"document_id": document_id, "name": name} for name in names])
    if document.images:  # except those that other documents have
        new_images = [
            {"hash": key, "media_type": image_type(data), "data": data} for key, data in sorted(document.images.items())
        ]
        connection.execute(_upsert(connection, images), new_images)
    insert_chunks(connection, document_id, new.chunks, new.hashes, generation)
    return document_id


def insert_chunks(
    connection: sa.Connection, document_id: int, new: Sequence[Chunk], hashes: Sequence[bytes], generation: int
) -> None:
    """Insert chunks of a document, born at a generation."""
    if not new:
        return
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
            "image": chunk.image,
            "box": chunk.box,
        }
        for chunk, key in zip(new, hashes, strict=True)
    ]
    connection.execute(chunks.insert(), rows)


def insert_vectors(connection: sa.Connection, contract_id: int, hashes: Sequence[bytes], matrix: Vectors) -> None:
    """Insert vectors by the hash of their text, except those that another process has inserted."""
    encoded = (row.tobytes() for row in matrix.astype("<f4", copy=False))
    # In order of the hash: two processes with common texts could wait for each other otherwise.
    rows = [
        {"contract_id": contract_id, "text_hash": key, "vector": vector, "checksum": crc32(vector)}
        for key, vector in sorted(zip(hashes, encoded, strict=True))
    ]
    connection.execute(_upsert(connection, vectors), rows)


def _upsert(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """An insert that leaves out the rows that are there."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


def end_documents(connection: sa.Connection, source_id: int, paths: Sequence[str], generation: int) -> int:
    """Let the live documents at these paths die at a generation. Returns the number of chunks that died."""
    ended = 0
    for batch in batches(list(paths)):
        live = (documents.c.source_id == source_id, documents.c.path.in_(batch), documents.c.died.is_(None))
        ids = connection.execute(sa.select(documents.c.id).where(*live)).scalars().all()
        if ids:
            connection.execute(documents.update().where(documents.c.id.in_(ids)).values(died=generation))
            # Some chunks may have died before, when the collection was re-embedded. With coalesce, SQLite looks rows
            # up by document; with IS NULL, it would scan the index of all live chunks.
            live_chunks = (chunks.c.document_id.in_(ids), sa.func.coalesce(chunks.c.died, 0) == 0)
            ended += connection.execute(chunks.update().where(*live_chunks).values(died=generation)).rowcount
    return ended


def update_tags(
    connection: sa.Connection, source_id: int, path: str, changes: Mapping[str, Scalar], recipe: str
) -> int:
    """Change metadata and recipe of the live document at a path. Returns its id."""
    live = (documents.c.source_id == source_id, documents.c.path == path, documents.c.died.is_(None))
    row = connection.execute(sa.select(documents.c.id, documents.c.metadata).where(*live)).one()
    metadata = {**row.metadata, **changes}
    connection.execute(documents.update().where(documents.c.id == row.id).values(metadata=metadata, recipe=recipe))
    rewrite_tags(connection, row.id, metadata)
    return int(row.id)


def rewrite_tags(connection: sa.Connection, document_id: int, metadata: Mapping[str, Scalar]) -> None:
    """Replace the rows of a document in `tags` by those of its metadata."""
    connection.execute(tags.delete().where(tags.c.document_id == document_id))
    _insert_tags(connection, document_id, metadata)


def _insert_tags(connection: sa.Connection, document_id: int, metadata: Mapping[str, Scalar]) -> None:
    if metadata:
        connection.execute(tags.insert(), [tag_row(document_id, key, value) for key, value in metadata.items()])


def tag_row(document_id: int, key: str, value: Scalar) -> dict[str, Any]:
    """The row of `tags` by which filters compare a metadata value."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    number = as_number(text)
    return {"document_id": document_id, "key": key, "text": text[:MAX_COMPARED_CHARACTERS], "number": number}


def allowed_groups(source: Sequence[str], document: Sequence[str] | None) -> list[str] | None:
    """The groups that may see a document, None if everybody may.

    Both the source's `--allow` and the connector's rules for the document apply: a group must be in both.
    """
    if document is None:
        return sorted(set(source)) if source else None
    return sorted(set(document) & set(source) if source else set(document))


def update_groups(
    connection: sa.Connection, source: Source, paths: Mapping[str, tuple[str, ...] | None] | None
) -> list[int]:
    """Rewrite the groups of all document versions of a source, in a new generation. Returns the ids of updated rows.

    `paths` maps paths to the connector's current rules, and only those are updated. With None, all documents are,
    with the rules in their rows.
    """
    query = sa.select(documents.c.id, documents.c.path, documents.c.allow).where(documents.c.source_id == source.id)
    changed = []
    for document_id, path, stored in connection.execute(query).all():
        if paths is not None and path not in paths:
            continue
        allow = stored if paths is None else paths[path]
        names = allowed_groups(source.allow, allow)
        connection.execute(
            documents.update()
            .where(documents.c.id == document_id)
            .values(allow=None if allow is None else list(allow), restricted=names is not None)
        )
        connection.execute(groups.delete().where(groups.c.document_id == document_id))
        if names:
            connection.execute(groups.insert(), [{"document_id": document_id, "name": name} for name in names])
        changed.append(document_id)
    return changed
