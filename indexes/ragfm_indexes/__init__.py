"""Indexes that ship with ragfm, registered as entry points `ragfm.indexes` and `ragfm.keyword_indexes`.

faiss_flat        vector index: exact search with FAISS
faiss_hnsw        vector index: approximate search in a graph of neighbors (HNSW)
faiss_base        base class of the FAISS indexes, and their files
vector_arrays     checks of arrays, the rows that a search may return, reading of saved arrays
bm25              keyword index: BM25
postings          count the terms of texts; postings of a keyword index as arrays
text_analysis     words and terms of a text, language detection; stop_words.toml has the stop words
"""
