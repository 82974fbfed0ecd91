"""ragfm: Collection.sync on a folder of files, and Collection.search, whose default is hybrid."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ragfm import Collection, Settings

PACKAGES = ("ragfm",)


class Peer:
    """Default settings except for the model."""

    def __init__(self, model: str) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="ragfm-peers-")
        self.files = Path(self.place.name) / "corpus"
        self.collection = Collection.open(Path(self.place.name) / ".ragfm", settings=Settings(embedder=model))

    def prepare(self, documents: Mapping[str, str]) -> None:
        """Write the documents to files, since ragfm ingests files. Not part of the measured time."""
        for uri, text in documents.items():
            path = self.files / uri
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def fill(self, documents: Mapping[str, str]) -> None:
        self.collection.sync(self.files, name="corpus")

    def searches(self) -> dict[str, Callable[[str, int], list[str]]]:
        return {"default (hybrid)": partial(self.search, "hybrid"), "dense": partial(self.search, "dense")}

    def reranked(self, model: str, candidates: int) -> tuple[str, Callable[[str, int], list[str]]]:
        settings = self.collection.settings
        search = settings.search.model_copy(update={"rerank_candidates": candidates, "rerank_weight": 0.5})
        collection = Collection.open(self.collection.path, settings=settings.model_copy(update={"search": search}))
        return "hybrid, reranked", lambda query, k: [
            hit.uri.removeprefix("corpus/") for hit in collection.search(query, k, rerank=model)
        ]

    def search(self, mode: Any, query: str, k: int) -> list[str]:
        return [hit.uri.removeprefix("corpus/") for hit in self.collection.search(query, k, mode=mode)]
