"""Retrieval: from a query to passages.

search           rank chunks by embeddings, keywords or both; rerank hits
multi_hop        search in several rounds: names in the best hits are searched for as well
fusion_weight    the weight of embeddings against keywords
rerank           rerankers
document_dates   which of several documents is the newer one
passages         near-duplicates, merging, and the passages that a prompt shows
"""
