"""Search backends that keep vectors on a server, registered as entry points `ragfm.backends`.

pgvector_backend    vectors in the database of a collection on PostgreSQL
qdrant_backend      vectors on a Qdrant server
"""
