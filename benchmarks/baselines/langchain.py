"""LangChain: RecursiveCharacterTextSplitter, InMemoryVectorStore, and BM25Retriever in an EnsembleRetriever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_community.cross_encoders import HuggingFaceCrossEncoder
from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

PACKAGES = (
    "langchain",
    "langchain-classic",
    "langchain-community",
    "langchain-huggingface",
    "langchain-text-splitters",
    "rank-bm25",
    "sentence-transformers",
)


class Peer:
    """Chunks of 1,000 characters with an overlap of 200, as in the RAG tutorial."""

    def __init__(self, model: str) -> None:
        self.embedder = HuggingFaceEmbeddings(model_name=model)

    def fill(self, documents: Mapping[str, str]) -> None:
        splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
        made = [Document(page_content=text, metadata={"source": uri}) for uri, text in documents.items()]
        self.chunks = splitter.split_documents(made)
        self.store = InMemoryVectorStore(self.embedder)
        self.store.add_documents(documents=self.chunks)
        self.retriever = cache(self._retriever)

    def searches(self) -> dict[str, Callable[[str, int], list[str]]]:
        return {"default": self.search, "hybrid, ensemble": self.search_both}

    def reranked(self, model: str, candidates: int) -> tuple[str, Callable[[str, int], list[str]]]:
        compressor = CrossEncoderReranker(model=HuggingFaceCrossEncoder(model_name=model), top_n=candidates)
        retriever = ContextualCompressionRetriever(
            base_compressor=compressor, base_retriever=self._retriever(candidates)
        )
        return "hybrid, ensemble, CrossEncoderReranker", lambda query, k: [
            found.metadata["source"] for found in retriever.invoke(query)[:k]
        ]

    def search(self, query: str, k: int) -> list[str]:
        return [found.metadata["source"] for found in self.store.similarity_search(query, k=k)]

    def search_both(self, query: str, k: int) -> list[str]:
        return [found.metadata["source"] for found in self.retriever(k).invoke(query)][:k]

    def _retriever(self, k: int) -> EnsembleRetriever:
        words = BM25Retriever.from_documents(self.chunks)
        words.k = k
        dense = self.store.as_retriever(search_kwargs={"k": k})
        return EnsembleRetriever(retrievers=[words, dense], weights=[0.5, 0.5])
