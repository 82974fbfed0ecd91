"""The store: the catalog, which is the source of truth, and indexes built from it.

database            what a collection needs of its database
sqlite_database     a collection in a folder, with HEAD, which records the last acknowledged commit
sqlite_file         its file, with page checksums
sqlite_driver       the library that opens it
postgres            a collection on PostgreSQL
tables              the schema
catalog             reads the catalog
catalog_writer      writes it, one generation per commit
document_rows       rows of documents, chunks, tags and groups
embedding_contract  what the vectors of a collection depend on
filters             the filter language for metadata
display_names       short forms of uris
views               vector and keyword indexes of one generation, saved as files
search_backend      the seam: a collection at one generation, searchable under a predicate
snapshot            the backend `local`: one generation, ready to search
uploads             uploaded files: what a server needs of them, and their folder
upload_table        uploaded files in the database
compaction          deletes dead rows and returns their space
collection_store    everything an open collection holds, and the write lock
"""
