"""Maintenance of a collection.

verification       checks everything             integrity          reads documents and checks them
repair             rebuilds derived data         salvage            copies intact documents into a new collection
copy               to and from PostgreSQL
backup, restore    a collection as one file      export             documents as JSON lines
removal            removes a source or document
upload_files       files that a collection stores itself
"""
