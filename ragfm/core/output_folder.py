"""Folders for what ragfm writes, apart from collections: examples, adapters, runs. They are no documents."""

from __future__ import annotations

from pathlib import Path

OUTPUT = ".ragfm-output"
"""The file that marks such a folder; the files connector lists nothing of it."""


def make_output(folder: str | Path, *, mode: int = 0o777) -> Path:
    """Make a folder, marked before anything else is in it. One that holds files already may hold documents: no mark."""
    path = Path(folder)
    path.mkdir(mode, parents=True, exist_ok=True)
    if not any(path.iterdir()):
        (path / OUTPUT).write_text("What lies here was written by ragfm, and `ragfm ingest` leaves it out.\n")
    return path
