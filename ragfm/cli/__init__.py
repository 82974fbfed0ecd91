"""The command line. Each module is named after its command, `adapt_train` after `ragfm adapt train`.

Use          demo, ingest, search, ask, chat, log
Collection   status, sources, documents, tag, remove, export, verify, backup, restore, copy, compact, reembed,
             watch
Serve        serve, keys, mcp
Evaluate     eval, eval_retrieval, eval_answers, eval_compare, compare, tune
Adapt        adapt, adapt_data, adapt_train, adapt_export, adapt_retriever, models, plugins

main             the entry point, errors and exit codes
options          options that commands share, and what they open
output           text, tables and JSON
progress_bar     progress of long commands
stop_signals     Ctrl-C between two steps
help             help pages
evaluation_data  questions, and the collection that they are asked of
"""

from ragfm.cli.main import main, ragfm

__all__ = ["main", "ragfm"]
