"""A sync in its own process that is killed by SIGKILL between two commits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_SCRIPT = """
import json, os, signal, sys
import ragfm.ingestion.sync
from ragfm import Collection, Settings
from ragfm.ingestion.shared_work import SharedWork
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.testing import HashingEmbedder

folder, location, options, documents, where = json.loads(sys.argv[1])
ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS = documents
owner, name = (CatalogWriter, "commit") if where == "commit" else (SharedWork, where)
method, calls = getattr(owner, name), []

def killed(self, *arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *arguments)

setattr(owner, name, killed)
Collection.open(folder, settings=Settings(), embedder=HashingEmbedder()).sync(location, **options)
"""


def sync_killed(
    collection: str | Path, location: str | Path, *, documents: int, where: str = "commit", **options: Any
) -> None:
    """Sync a source in a process that is killed before its second commit; each commit has `documents` documents.

    Or before the second call of another method of SharedWork.
    """
    arguments = json.dumps([str(collection), str(location), options, documents, where])
    command = [sys.executable, "-c", _SCRIPT, arguments]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
