"""Retrieval: search, fusion, reranking and passages."""
