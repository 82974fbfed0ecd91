"""Re-embedding: switch a collection to a different embedder in one commit.

    split each document for the new embedder ─→ embed and store the texts that have no vector ─→ one commit ends the old
    chunks, adds the new ones and names the new contract

Searches use the old embedder until that commit, and the new one afterwards once they have loaded it. An interrupted
run continues with the vectors that it has stored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.tracing import span
from ragfm.core.types import Document
from ragfm.embedders import load_embedder
from ragfm.ingestion.embedding import MAX_COMMIT_TEXTS, embed_missing
from ragfm.ingestion.ingest_report import path_below
from ragfm.ingestion.recipe import chunking_recipe
from ragfm.store.document_rows import insert_chunks
from ragfm.store.embedding_contract import make_contract, same_contract
from ragfm.store.tables import chunks, contracts, documents, text_hash, vectors

if TYPE_CHECKING:
    from ragfm.core.types import Chunk, Embedder
    from ragfm.store.catalog_writer import CatalogWriter
    from ragfm.store.collection_store import Store


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """The result of a re-embedding: chunks of the new generation, texts embedded, seconds, and the generation."""

    chunks: int
    embedded: int
    seconds: float
    generation: int


def reembed(store: Store, embedder: str | Embedder, progress: ProgressCallback | None = None) -> ReembedReport:
    """Switch to another embedder, given by name or as an object.

    `progress` counts documents.
    """
    model = load_embedder(embedder) if isinstance(embedder, str) else embedder
    with store.writing() as catalog, span("reembed") as active:
        report = _switch(store, catalog, model, make_contract(model, embedder), progress)
        active.set(chunks=report.chunks, embedded=report.embedded)
        store.adopt(embedder, model, catalog.at().contract_id)
        store.save_view(catalog)
    return report


def _switch(
    store: Store,
    catalog: CatalogWriter,
    embedder: Embedder,
    contract: Mapping[str, Any],
    progress: ProgressCallback | None,
) -> ReembedReport:
    start, before = time.monotonic(), catalog.at()
    if same_contract(before.contract, contract):
        return ReembedReport(before.chunks, 0, 0.0, before.id)

    rows = catalog.documents(before.id)
    with catalog.write() as connection:
        # Continue an interrupted run to the same embedder; delete contracts and vectors of those to other embedders.
        for row in connection.execute(sa.select(contracts).where(contracts.c.id > before.contract_id)).all():
            if same_contract(row.fingerprint, contract):
                contract_id = int(row.id)
                break
            connection.execute(vectors.delete().where(vectors.c.contract_id == row.id))
            connection.execute(contracts.delete().where(contracts.c.id == row.id))
        else:
            inserted = connection.execute(contracts.insert().values(fingerprint=dict(contract))).inserted_primary_key
            assert inserted is not None
            contract_id = int(inserted[0])

    settings = store.chunk_settings(int(contract["max_tokens"]))
    embedded, texts = 0, dict[bytes, str]()
    for number, (_, new_chunks) in enumerate(_split_documents(catalog, rows, embedder, settings), 1):
        texts |= {text_hash(chunk.embedded_text): chunk.embedded_text for chunk in new_chunks}
        if len(texts) >= MAX_COMMIT_TEXTS or number == len(rows):
            embedded += embed_missing(catalog, contract_id, lambda: embedder, texts)
            texts = {}
        if progress is not None:
            progress(Progress("reembed", number, len(rows)))

    chunking = chunking_recipe(contract, settings)
    with catalog.new_generation() as commit:
        commit.contract_id, commit.chunks = contract_id, 0
        commit.connection.execute(chunks.update().where(chunks.c.died.is_(None)).values(died=commit.generation))
        for row, new_chunks in _split_documents(catalog, rows, embedder, settings):
            hashes = [text_hash(chunk.embedded_text) for chunk in new_chunks]
            insert_chunks(commit.connection, row.id, new_chunks, hashes, commit.generation)
            # The rest of the recipe stays: the next sync parses a document that was out of date before.
            new_recipe = json.dumps(json.loads(row.recipe or "{}") | chunking, sort_keys=True)
            values = {"chunk_count": len(new_chunks), "recipe": new_recipe}
            commit.connection.execute(documents.update().where(documents.c.id == row.id).values(**values))
            commit.written.append(row.id)
            commit.chunks += len(new_chunks)
        commit.record("embedder", dict(contract))
    seconds = round(time.monotonic() - start, 3)
    return ReembedReport(commit.chunks, embedded, seconds, commit.generation)


def _split_documents(
    catalog: CatalogWriter, rows: Sequence[Any], embedder: Embedder, settings: ChunkSettings
) -> Iterator[tuple[Any, list[Chunk]]]:
    for row in rows:
        text, marks = catalog.document(row.id)
        document = Document(row.uri, text, row.media_type, row.metadata, marks)
        path = path_below(row.root, row.path)
        yield row, chunk_document(document, embedder.tokenize, embedder.max_tokens, settings, path=path)
