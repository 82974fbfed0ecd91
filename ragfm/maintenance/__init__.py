"""Upkeep: what an owner does with a collection beside filling and searching it.

verify      reads and checks everything; verify_views does so for the views     repair      builds views anew
salvage     what can be read of a damaged collection becomes a new one          whole       documents, checked
backup      one file, made while others write                                   restore     it, anywhere
export      JSONL and Parquet                                                   remove      a source or a document
uploads     files that a collection keeps itself
"""
