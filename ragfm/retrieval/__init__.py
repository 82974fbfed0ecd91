"""Retrieval: from a query to passages.

search           rank chunks by embeddings, keywords or both; rerank hits
multi_hop        search for what the best hits name, too
fusion_weight    the weight of embeddings against keywords
rerank           rerankers
passages         near-duplicates, merging, and the passages that a prompt shows
"""
