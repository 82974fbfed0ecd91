"""Packages of npm, installed once into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def install(folder: Path) -> Path:
    """A copy of a folder with a `package.json`, with its packages. Skips the test if they cannot be installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm: `apt-get install nodejs npm`")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ragfm-tests" / folder.name
    cache.mkdir(parents=True, exist_ok=True)
    wanted = (folder / "package.json").read_text()
    done = cache / "done.json"
    if not done.exists() or done.read_text() != wanted:
        (cache / "package.json").write_text(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        installed = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300, check=False)
        if installed.returncode:
            pytest.skip(f"npm can't install the packages of {folder.name}: {installed.stderr[-300:]}")
        done.write_text(wanted)
    for script in folder.glob("*.js"):
        shutil.copy(script, cache)
    return cache
