"""Values, errors, settings and utilities that all other packages build on.

types            the values that parts pass to each other, and the protocols of the extension points
errors           all errors, as one tree
config           `ragfm.toml`
registry         plugins by entry point, and models by name
progress         the progress of long jobs
tracing          spans of OpenTelemetry
table_rows       rows of Markdown tables, with their header and section
notebook         values as HTML and Markdown for notebooks
text             sentences, citation markers, invalid characters
abstention       "I don't know.", and how readers phrase it
status_sentences what an answer says about itself, in many languages
calibration      from the signals of an answer to its confidence
promise          what labels prove about the errors among verified citations
access_groups    which groups may see a document
identities       the groups that users and groups of a source stand for
globs            paths that match a pattern, level by level
durable_files    files that survive a crash
output_folder    folders of results, which are never ingested
document_name    what people call a document: its file name and its title
cache            measurements of this machine
fork             what a forked process cannot use of its parent
own_thread       a thread for one call
"""
