"""The recipe of a document: everything besides its bytes that decides its text, chunks and metadata, as JSON.

If the recipe changes, the next sync parses and chunks the document again. Versions of ragfm change it too; the
documents of an older version can be searched as before until then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ragfm.chunking import CHUNKER_VERSION, ChunkSettings
from ragfm.parsing import PARSER

if TYPE_CHECKING:
    from ragfm.core.types import Scalar
    from ragfm.store.catalog import Catalog, Source

_VERSIONS = ("parser", "chunker")


def source_recipe(source: Source, contract: Mapping[str, Scalar], chunk_settings: ChunkSettings) -> str:
    """The recipe of a source's documents."""
    parts = {"parser": PARSER, **chunking_recipe(contract, chunk_settings), "tags": dict(source.tags)}
    return json.dumps(parts, sort_keys=True)


def chunking_recipe(contract: Mapping[str, Scalar], chunk_settings: ChunkSettings) -> dict[str, Any]:
    """The part of a recipe that concerns chunks."""
    return {"chunker": CHUNKER_VERSION, "chunk": asdict(chunk_settings), "max_tokens": contract["max_tokens"]}


def with_versions_of(recipe: str, known: str) -> str:
    """A recipe with the versions of parser and chunker of a document's known recipe."""
    versions = {key: value for key, value in json.loads(known or "{}").items() if key in _VERSIONS}
    return json.dumps(json.loads(recipe) | versions, sort_keys=True)


def older_documents(catalog: Catalog, source_id: int | None = None) -> tuple[int, int]:
    """How many live documents another version of parser or chunker prepared, and how many chunks they have."""
    documents = chunks = 0
    for recipe, document_count, chunk_count in catalog.recipes(source_id):
        parts = json.loads(recipe or "{}")
        if (parts.get("parser"), parts.get("chunker")) != (PARSER, CHUNKER_VERSION):
            documents, chunks = documents + document_count, chunks + chunk_count
    return documents, chunks
