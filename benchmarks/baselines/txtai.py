"""txtai: Embeddings; hybrid=True adds its BM25."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import pipeline
from txtai import Embeddings
from txtai.pipeline import CrossEncoder

PACKAGES = ("txtai",)


class Peer:
    """Texts are not split; the part beyond the model's window is ignored. Both searches use one index."""

    def __init__(self, model: str) -> None:
        self.embeddings = Embeddings(path=model, hybrid=True)

    def fill(self, documents: Mapping[str, str]) -> None:
        self.embeddings.index(documents.items())
        self.texts = documents

    def searches(self) -> dict[str, Callable[[str, int], list[str]]]:
        return {"default": self.search, "hybrid": self.search_both}

    def reranked(self, model: str, candidates: int) -> tuple[str, Callable[[str, int], list[str]]]:
        # By itself it does not truncate, and fails with long texts.
        reranker = CrossEncoder(model=pipeline("text-classification", model=model, truncation=True))

        def search(query: str, k: int) -> list[str]:
            found = self.search_both(query, candidates)
            return [found[at] for at, _ in reranker(query, [self.texts[uri] for uri in found])][:k]

        return "hybrid, CrossEncoder", search

    def search(self, query: str, k: int) -> list[str]:
        """Search without the keyword index, as if the index had been created without `hybrid`."""
        words, self.embeddings.scoring = self.embeddings.scoring, None
        try:
            return self.search_both(query, k)
        finally:
            self.embeddings.scoring = words

    def search_both(self, query: str, k: int) -> list[str]:
        return [uri for uri, _ in self.embeddings.search(query, k)]
