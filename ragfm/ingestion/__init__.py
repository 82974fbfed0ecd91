"""Ingestion: make a collection equal to its sources.

source_request      a source as named by the user, resolved to a row of the catalog and a connector
connector_options   option values, converted to the types that a connector declares
upload_connector    uploads in the database as a source
sources             sync of all sources under the collection's lock
recipe              everything besides its bytes that determines a document's text and chunks
sync                sync of one source
preparation         fetch, parse and split a document
ray_executor        preparation on a Ray cluster
turns               a sync in slices, in which the owners of documents take turns
deletion_guard      when a source has lost too many documents
document_tags       metadata that users give to documents
embedding           vectors for new texts
ingest_report       what a sync did
unmapped_identities identities of a source without a group
page_images         pages of documents as images, and where quotes stand on them
source_schedule     when a source is due, and how its last sync ended
source_check        listing and one document of a source, without a sync
source_watcher      sync at each change of a source
reembed             switch to a different embedder
"""
