"""Search backends that keep vectors on a server of their own, registered as entry points `ragfm.backends`.

qdrant_backend    Qdrant
"""
