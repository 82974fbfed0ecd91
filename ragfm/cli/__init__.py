"""The command line: `run` has the commands of every day and their end, each other module those of its name.

run          `demo`, `ingest`, `search`, `ask`, `status`, `documents`, `plugins`; how a command ends
options      what commands share
chat         `chat`
store        `sources`, `remove`, `export`, `verify`, `backup`, `restore`, `compact`, `reembed`
watch        `watch`
log          `log …`
models       `models …`
serve        `serve` and `keys …`
mcp          `mcp`
eval         `eval …`
answers      `eval answers`
bias         `eval bias`
compare      `compare`
tune         `tune`
adapt        `adapt …`
refresh      `adapt refresh` and `back`
retriever    `adapt retriever`
"""

from ragfm.cli.main import main, ragfm

__all__ = ["main", "ragfm"]
