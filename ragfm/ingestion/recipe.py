"""The recipe of a document: everything besides its bytes that determines its text, chunks and metadata, as JSON.

If the recipe changes, the next sync parses and chunks the document again. Versions of ragfm change it too; the
documents of an older version can be searched as before until then.

`parser` is the version of the parser of the document's format, `fallback` that of the parser that read the document
after the first one had failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from ragfm.chunking import CHUNKER_VERSION, ChunkSettings
from ragfm.ingestion.document_tags import matches_uri
from ragfm.ingestion.ingest_report import document_uri, path_below

if TYPE_CHECKING:
    from ragfm.core.config import TagsSection
    from ragfm.core.types import Scalar
    from ragfm.parsing import ParserChoice
    from ragfm.store.catalog import Catalog, Source

_KEPT = ("parser", "fallback", "chunker", "written")


class SourceRecipes:
    """The recipes that the documents of a source should have.

    `rules` are the tags by pattern of `ragfm.toml`. With `keep`, a known document keeps the versions of the parsers and
    the chunker that have prepared it.
    """

    def __init__(
        self,
        source: Source,
        contract: Mapping[str, Scalar],
        chunk_settings: ChunkSettings,
        choice: ParserChoice,
        rules: Sequence[TagsSection] = (),
        *,
        keep: bool = False,
    ) -> None:
        self._source, self._choice, self._rules, self._keep = source, choice, rules, keep
        chunking = chunking_recipe(contract, chunk_settings)
        self._common = json.dumps({**chunking, "tags": dict(source.tags)}, sort_keys=True)

    @cached_property
    def environment(self) -> str:
        """A hash of these recipes and the installed software, see `environment_hash`."""
        return environment_hash(f"{self._common} {self._choice.description}")

    def of_known(self, row: Any) -> str:
        """The recipe for the document of a row of `documents`."""
        if self._keep:
            return self._tagged(with_versions_of(self._common, row.recipe), row.path)
        fallback = _present_fallback(row.recipe, row.media_type, self._choice)
        written = "written" in json.loads(row.recipe or "{}")
        named = "" if written else path_below(self._source.root, row.path)
        return self.of_parsed(row.path, self._choice.version(row.media_type, named), fallback, written)

    def of_parsed(self, path: str, parser: str, fallback: str, written: bool) -> str:
        """The recipe for a document that these versions of parsers have read; `written`: see `Blob`."""
        return self._tagged(_with_parsers(self._common, parser, fallback, written), path)

    def _tagged(self, recipe: str, path: str) -> str:
        """The recipe with the tags of rules."""
        uri = document_uri(self._source.name, path)
        matching = [rule.tags for rule in self._rules if matches_uri(rule.match, uri)]
        if not matching:
            return recipe
        parts = json.loads(recipe)
        for tags in matching:
            parts["tags"] |= tags
        return json.dumps(parts, sort_keys=True)


@lru_cache
def _with_parsers(recipe: str, parser: str, fallback: str, written: bool) -> str:
    """A recipe with the versions of the parsers of a document; `fallback` is empty if the first parser read it."""
    parsers = {"parser": parser, **({"fallback": fallback} if fallback else {}), **({"written": 1} if written else {})}
    return json.dumps(json.loads(recipe) | parsers, sort_keys=True)


def _present_fallback(recipe: str, media_type: str, choice: ParserChoice) -> str:
    """The present version of the fallback for a document that a fallback read; else empty."""
    return choice.parser_version(choice.fallback, media_type) if "fallback" in json.loads(recipe or "{}") else ""


def chunking_recipe(contract: Mapping[str, Scalar], chunk_settings: ChunkSettings) -> dict[str, Any]:
    """The part of a recipe that concerns chunks."""
    return {"chunker": CHUNKER_VERSION, "chunk": asdict(chunk_settings), "max_tokens": contract["max_tokens"]}


def with_versions_of(recipe: str, known: str) -> str:
    """A recipe with the versions of parsers and chunker of a document's known recipe."""
    versions = {key: value for key, value in json.loads(known or "{}").items() if key in _KEPT}
    return json.dumps(json.loads(recipe) | versions, sort_keys=True)


def environment_hash(recipe: str) -> str:
    """A hash of the recipe and the installed packages: if it changes, failed and skipped documents are tried again."""
    folders = [folder for folder in map(Path, sys.path) if folder.is_dir()]
    packages = {entry.name for folder in folders for entry in folder.glob("*.dist-info")}
    software = " ".join((*sorted(packages), which("soffice") or ""))
    return blake2b(f"{recipe}\n{software}".encode(), digest_size=16).hexdigest()


def older_documents(catalog: Catalog, choice: ParserChoice, source_id: int | None = None) -> tuple[int, int]:
    """The number of live documents, and of their chunks, from another parser or version of parser or chunker."""
    documents = chunks = 0
    for recipe, media_type, document_count, chunk_count in catalog.recipes(source_id):
        parts = json.loads(recipe or "{}")
        present = (choice.version(media_type), _present_fallback(recipe, media_type, choice), CHUNKER_VERSION)
        if (parts.get("parser"), parts.get("fallback", ""), parts.get("chunker")) != present:
            documents, chunks = documents + document_count, chunks + chunk_count
    return documents, chunks
