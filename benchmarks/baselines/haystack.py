"""Haystack: pipelines over an InMemoryDocumentStore, as in its tutorial on hybrid retrieval, without the ranker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)
from haystack_integrations.components.rankers.sentence_transformers import SentenceTransformersSimilarityRanker

PACKAGES = ("haystack-ai", "sentence-transformers-haystack")


class Peer:
    """Chunks of 512 words with an overlap of 32. The tutorial's ranker is left out: it needs a second model."""

    def __init__(self, model: str) -> None:
        self.model, self.store = model, InMemoryDocumentStore()
        self.joined: dict[str, Pipeline] = {}

    def fill(self, documents: Mapping[str, str]) -> None:
        pipeline = Pipeline()
        pipeline.add_component("splitter", DocumentSplitter(split_by="word", split_length=512, split_overlap=32))
        pipeline.add_component("embedder", SentenceTransformersDocumentEmbedder(model=self.model, progress_bar=False))
        pipeline.add_component("writer", DocumentWriter(self.store))
        pipeline.connect("splitter", "embedder")
        pipeline.connect("embedder", "writer")
        made = [Document(content=text, id=uri) for uri, text in documents.items()]
        pipeline.run({"splitter": {"documents": made}})

    def searches(self) -> dict[str, Callable[[str, int], list[str]]]:
        self.plain = self._pipeline(None)
        modes = ("reciprocal_rank_fusion", "distribution_based_rank_fusion")
        self.joined = {mode: self._pipeline(mode) for mode in modes}
        return {"default": self.search, **{f"hybrid, {mode}": partial(self.search_both, mode) for mode in modes}}

    def reranked(self, model: str, candidates: int) -> tuple[str, Callable[[str, int], list[str]]]:
        pipeline = self._pipeline("reciprocal_rank_fusion")
        pipeline.add_component("ranker", SentenceTransformersSimilarityRanker(model=model, top_k=candidates))
        pipeline.connect("joiner", "ranker")

        def search(query: str, k: int) -> list[str]:
            found = pipeline.run(
                {
                    "text_embedder": {"text": query},
                    "dense": {"top_k": candidates},
                    "words": {"query": query, "top_k": candidates},
                    "joiner": {"top_k": candidates},
                    "ranker": {"query": query},
                }
            )["ranker"]
            return [document.meta["source_id"] for document in found["documents"]][:k]

        return "hybrid, reciprocal_rank_fusion, SentenceTransformersSimilarityRanker", search

    def search(self, query: str, k: int) -> list[str]:
        found = self.plain.run({"text_embedder": {"text": query}, "dense": {"top_k": k}})["dense"]
        return [document.meta["source_id"] for document in found["documents"]]

    def search_both(self, mode: str, query: str, k: int) -> list[str]:
        found = self.joined[mode].run(
            {"text_embedder": {"text": query}, "dense": {"top_k": k}, "words": {"query": query, "top_k": k}}
        )["joiner"]
        return [document.meta["source_id"] for document in found["documents"]][:k]

    def _pipeline(self, mode: str | None) -> Pipeline:
        pipeline = Pipeline()
        pipeline.add_component("text_embedder", SentenceTransformersTextEmbedder(model=self.model, progress_bar=False))
        pipeline.add_component("dense", InMemoryEmbeddingRetriever(self.store))
        pipeline.connect("text_embedder", "dense")
        if mode:
            pipeline.add_component("words", InMemoryBM25Retriever(self.store))
            pipeline.add_component("joiner", DocumentJoiner(join_mode=mode))
            pipeline.connect("dense", "joiner")
            pipeline.connect("words", "joiner")
        return pipeline
