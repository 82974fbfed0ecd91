"""A sync that is killed in the middle, in a process of its own, by a signal that no process can catch."""

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
from pathlib import Path
import ragfm.ingestion.sync
from ragfm import Collection, Settings
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.testing import HashingEmbedder

where, location, given, documents = json.loads(sys.argv[1])
ragfm.ingestion.sync.DOCUMENTS = documents
commit, commits = CatalogWriter.commit, []

def killed(self, *arguments):
    commits.append(1)
    if len(commits) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, *arguments)

CatalogWriter.commit = killed
Collection.open(Path(where), settings=Settings(), embedder=HashingEmbedder()).sync(location, **given)
"""


def sync_killed(collection: Path, location: str | Path, *, documents: int, **given: Any) -> None:
    """Sync a source, and be killed when so many `documents` are committed and the next ones are about to be."""
    arguments = json.dumps([str(collection), str(location), given, documents])
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, arguments], env=os.environ, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
