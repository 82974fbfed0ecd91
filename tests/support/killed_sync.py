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
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.testing import HashingEmbedder

folder, location, options, documents = json.loads(sys.argv[1])
ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS = documents
commit, calls = CatalogWriter.commit, []

def killed(self, *arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, *arguments)

CatalogWriter.commit = killed
Collection.open(folder, settings=Settings(), embedder=HashingEmbedder()).sync(location, **options)
"""


def sync_killed(collection: str | Path, location: str | Path, *, documents: int, **options: Any) -> None:
    """Sync a source in a process that is killed before its second commit; each commit has `documents` documents."""
    arguments = json.dumps([str(collection), str(location), options, documents])
    command = [sys.executable, "-c", _SCRIPT, arguments]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
