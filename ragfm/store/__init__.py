"""The store: the catalog, which is the source of truth, and indexes built from it.

sqlite_file         SQLite with page checksums, and the HEAD file
tables, migrations  the schema, and upgrades from older schemas
catalog             reads the catalog
catalog_writer      writes it, one generation per commit
document_rows       rows of documents, chunks, tags and groups
embedding_contract  what the vectors of a collection depend on
filters             the filter language for metadata
display_names       short forms of uris
views               vector and keyword indexes of one generation, saved as files
index_selection     which kind of vector index `auto` selects
snapshot            one generation, ready to search
compaction          deletes dead rows and returns their space
collection_store    everything an open collection holds, and the write lock
"""
