"""The store: a catalog, which is the log and the only truth, and views built from it.

durable     files that are on disk when a call returns          database    SQLite with checksums, and HEAD
schema      tables of the catalog                               migrate     catalogs of earlier schemas
catalog     reading it                                          rows        writing documents into it
commit      generations: all that changes it                    contract    what vectors depend on
views       immutable indexes of one generation, as files       index_kind  which kind of index `auto` is
snapshot    one generation, searched                            compact     space of what has gone
store       what an open collection holds, and the right to write
"""
