"""The parse environment: the recipe and the installed software, which decide whether a document can be read."""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path
from shutil import which


def environment_hash(recipe: str) -> str:
    """A hash of the recipe and the installed packages: if it changes, failed and skipped documents are tried again."""
    folders = [folder for folder in map(Path, sys.path) if folder.is_dir()]
    packages = {entry.name for folder in folders for entry in folder.glob("*.dist-info")}
    software = " ".join((*sorted(packages), which("soffice") or ""))
    return blake2b(f"{recipe}\n{software}".encode(), digest_size=16).hexdigest()
