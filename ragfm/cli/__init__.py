"""The command line. A module is named after its command, or has several.

Use          demo, ingest, search, ask, check, chat, log
Collection   collection_commands (status, sources, documents, remove), watch,
             maintenance_commands (export, verify, backup, restore, copy, compact, reembed)
Serve        server_commands (serve, keys, mcp), doctor
Evaluate     evaluation_commands (eval), compare, tune
Adapt        adapt, models, plugins

main             the entry point, errors and exit codes
options          options that commands share, and what they open
output           text, tables and JSON
progress_bar     progress of long commands
help             help pages
evaluation_data  questions, and the collection that they are asked of
"""

from ragfm.cli.main import main, ragfm

__all__ = ["main", "ragfm"]
