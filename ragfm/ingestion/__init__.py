"""Ingestion: a collection becomes equal to its sources.

sources     which connector reads what, and what was synced before      access      who may see a document
options     what a connector is made with
sync        one run over one source                                     guards      what stops or waits
vectors     vectors for texts that have none yet                        report      what a run did
ahead       the next documents while others are embedded                watch       a source followed
reembed     the switch to another embedder
"""
