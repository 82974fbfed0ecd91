"""Re-embedding: the collection switches to another embedder in one commit.

    each document is split for the new embedder ─→ texts without a vector of its are embedded and kept ─→ one commit
    ends the old chunks, brings the new ones and names the new contract

Until that commit the collection is searched with the old embedder, afterwards by those who have loaded the new one.
What was embedded before an interruption is not embedded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.errors import CollectionError
from ragfm.core.types import Document
from ragfm.embedders import load_embedder
from ragfm.ingestion.embedding import WINDOW, embed_missing
from ragfm.ingestion.sync import recipe
from ragfm.store.catalog import text_hash
from ragfm.store.document_rows import insert_chunks
from ragfm.store.embedding_contract import make_contract, same_contract
from ragfm.store.tables import chunks, contracts, documents, vectors

if TYPE_CHECKING:
    from ragfm.core.types import Chunk, Embedder
    from ragfm.store.catalog_writer import CatalogWriter, Commit
    from ragfm.store.collection_store import Store

Progress = Callable[[int, int], None]
"""Is told how many documents of how many are embedded."""


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """What a re-embedding did: chunks of the new generation, texts embedded, and the generation."""

    chunks: int
    embedded: int
    seconds: float
    generation: int


def reembed(store: Store, asked: str | Embedder, progress: Progress | None = None) -> ReembedReport:
    """Switch to another embedder. Raises CollectionError where a document has to be parsed again before."""
    embedder = load_embedder(asked) if isinstance(asked, str) else asked
    with store.writing() as catalog:
        report = _switch(store, catalog, embedder, make_contract(embedder, asked), progress)
        store.adopt(asked, embedder, catalog.at().contract_id)
        store.save_view(catalog)
    return report


def _switch(
    store: Store, catalog: CatalogWriter, embedder: Embedder, contract: Mapping[str, Any], progress: Progress | None
) -> ReembedReport:
    start, before = time.monotonic(), catalog.at()
    if same_contract(before.contract, contract):
        return ReembedReport(before.chunks, 0, 0.0, before.id)
    rows = catalog.documents(before.id)
    contract_id = _pending(catalog, contract, before.contract_id)
    settings = store.chunk_settings(int(contract["max_tokens"]))
    embedded, texts = 0, dict[bytes, str]()
    for number, (_, new) in enumerate(_split(catalog, rows, embedder, settings), 1):
        texts |= {text_hash(chunk.embedded_text): chunk.embedded_text for chunk in new}
        if len(texts) >= WINDOW or number == len(rows):
            embedded += embed_missing(catalog, contract_id, lambda: embedder, texts)
            texts = {}
        if progress is not None:
            progress(number, len(rows))
    recipes = {
        source.name: (recipe(source, before.contract, store.chunk_settings(int(before.contract["max_tokens"]))),
                      recipe(source, contract, settings))
        for source in catalog.sources()
    }  # fmt: skip

    def switch(commit: Commit) -> None:
        commit.contract_id, commit.chunks = contract_id, 0
        commit.connection.execute(chunks.update().where(chunks.c.died.is_(None)).values(died=commit.generation))
        for row, new in _split(catalog, rows, embedder, settings):
            hashes = [text_hash(chunk.embedded_text) for chunk in new]
            insert_chunks(commit.connection, row.id, new, hashes, commit.generation)
            old, now = recipes[row.source]
            values = {"chunk_count": len(new), "recipe": now if row.recipe == old else ""}  # "" is parsed again
            commit.connection.execute(documents.update().where(documents.c.id == row.id).values(**values))
            commit.chunks += len(new)
        commit.record("embedder", dict(contract))

    generation = catalog.generate(switch)
    seconds = round(time.monotonic() - start, 3)
    return ReembedReport(catalog.at(generation).chunks, embedded, seconds, generation)


def _split(
    catalog: CatalogWriter, rows: Sequence[Any], embedder: Embedder, settings: ChunkSettings
) -> Iterator[tuple[Any, list[Chunk]]]:
    for row in rows:
        text, marks = catalog.document(row.id)
        if marks is None:
            raise CollectionError(
                f"{row.uri} was ingested by an older ragfm, which did not keep its headings and pages.",
                "Run `ragfm ingest` first; it parses such documents again and embeds nothing.",
            )
        document = Document(row.uri, text, row.media_type, row.metadata, marks)
        yield row, chunk_document(document, embedder.tokenize, embedder.max_tokens, settings)


def _pending(catalog: CatalogWriter, contract: Mapping[str, Any], current: int) -> int:
    """The id of the contract to switch to: that of an interrupted re-embedding, if it was to the same embedder."""
    with catalog.write() as connection:
        query = sa.select(contracts).where(contracts.c.id > current)
        for row in connection.execute(query).all():
            if same_contract(row.fingerprint, contract):
                return int(row.id)
            connection.execute(vectors.delete().where(vectors.c.contract_id == row.id))
            connection.execute(contracts.delete().where(contracts.c.id == row.id))
        inserted = connection.execute(contracts.insert().values(fingerprint=dict(contract))).inserted_primary_key
        assert inserted is not None
        return int(inserted[0])
