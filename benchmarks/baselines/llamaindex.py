"""LlamaIndex: VectorStoreIndex.from_documents, fused with a BM25Retriever in a QueryFusionRetriever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SentenceTransformerRerank
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.retrievers.bm25 import BM25Retriever

PACKAGES = ("llama-index-core", "llama-index-embeddings-huggingface", "llama-index-retrievers-bm25")


class Peer:
    """Chunks of 1,024 tokens, the default. A single query: generating more needs a language model."""

    def __init__(self, model: str) -> None:
        self.embedder = HuggingFaceEmbedding(model_name=model)

    def fill(self, documents: Mapping[str, str]) -> None:
        made = [Document(text=text, doc_id=uri) for uri, text in documents.items()]
        self.index = VectorStoreIndex.from_documents(made, embed_model=self.embedder)
        self.retriever = cache(self._retriever)

    def searches(self) -> dict[str, Callable[[str, int], list[str]]]:
        modes = ("reciprocal_rerank", "relative_score")
        return {
            "default": partial(self.search, None),
            **{f"hybrid, {mode}": partial(self.search, mode) for mode in modes},
        }

    def reranked(self, model: str, candidates: int) -> tuple[str, Callable[[str, int], list[str]]]:
        reranker = SentenceTransformerRerank(model=model, top_n=candidates)

        def search(query: str, k: int) -> list[str]:
            nodes = self.retriever("relative_score", candidates).retrieve(query)
            return [found.node.ref_doc_id for found in reranker.postprocess_nodes(nodes, query_str=query)[:k]]

        return "hybrid, relative_score, SentenceTransformerRerank", search

    def search(self, mode: str | None, query: str, k: int) -> list[str]:
        return [found.node.ref_doc_id for found in self.retriever(mode, k).retrieve(query)]

    def _retriever(self, mode: str | None, k: int) -> Any:
        dense = self.index.as_retriever(similarity_top_k=k)
        if mode is None:
            return dense
        words = BM25Retriever.from_defaults(docstore=self.index.docstore, similarity_top_k=k)
        return QueryFusionRetriever(
            [dense, words], llm=MockLLM(), similarity_top_k=k, num_queries=1, mode=mode, use_async=False
        )
