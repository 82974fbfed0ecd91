"""The recipe of a document: everything besides its bytes that determines its text, chunks and metadata, as JSON.

If the recipe changes, the next sync parses and chunks the document again. Versions of ragfm change it too; the
documents of an older version can be searched as before until then.

`parser` is the version of the parser of the document's format, `fallback` that of the parser that read the document
after the first one had failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ragfm.chunking import CHUNKER_VERSION, ChunkSettings

if TYPE_CHECKING:
    from ragfm.core.types import Scalar
    from ragfm.parsing import ParserChoice
    from ragfm.store.catalog import Catalog, Source

_VERSIONS = ("parser", "fallback", "chunker")


def source_recipe(source: Source, contract: Mapping[str, Scalar], chunk_settings: ChunkSettings) -> str:
    """The recipe of a source's documents, without their parsers."""
    return json.dumps({**chunking_recipe(contract, chunk_settings), "tags": dict(source.tags)}, sort_keys=True)


@lru_cache
def with_parsers(recipe: str, parser: str, fallback: str) -> str:
    """A recipe with the versions of the parsers of a document; `fallback` is empty if the first parser read it."""
    parsers = {"parser": parser, **({"fallback": fallback} if fallback else {})}
    return json.dumps(json.loads(recipe) | parsers, sort_keys=True)


def fallback_version(recipe: str, media_type: str, choice: ParserChoice) -> str:
    """The present version of the fallback for a document that a fallback read; else empty."""
    return choice.parser_version(choice.fallback, media_type) if "fallback" in json.loads(recipe or "{}") else ""


def chunking_recipe(contract: Mapping[str, Scalar], chunk_settings: ChunkSettings) -> dict[str, Any]:
    """The part of a recipe that concerns chunks."""
    return {"chunker": CHUNKER_VERSION, "chunk": asdict(chunk_settings), "max_tokens": contract["max_tokens"]}


def with_versions_of(recipe: str, known: str) -> str:
    """A recipe with the versions of parsers and chunker of a document's known recipe."""
    versions = {key: value for key, value in json.loads(known or "{}").items() if key in _VERSIONS}
    return json.dumps(json.loads(recipe) | versions, sort_keys=True)


def older_documents(catalog: Catalog, choice: ParserChoice, source_id: int | None = None) -> tuple[int, int]:
    """The number of live documents, and of their chunks, from another parser or version of parser or chunker."""
    documents = chunks = 0
    for recipe, media_type, document_count, chunk_count in catalog.recipes(source_id):
        parts = json.loads(recipe or "{}")
        present = (choice.version(media_type), fallback_version(recipe, media_type, choice), CHUNKER_VERSION)
        if (parts.get("parser"), parts.get("fallback", ""), parts.get("chunker")) != present:
            documents, chunks = documents + document_count, chunks + chunk_count
    return documents, chunks
