"""Output folders: training examples, adapters, evaluation runs. They are marked, so that they are never ingested."""

from __future__ import annotations

from pathlib import Path

OUTPUT = ".ragfm-output"
"""The file that marks an output folder; the `files` connector skips the folder."""


def make_output(folder: str | Path, *, mode: int = 0o777) -> Path:
    """Create an output folder. A folder that already has files may hold documents, so it is not marked."""
    path = Path(folder)
    path.mkdir(mode, parents=True, exist_ok=True)
    if not any(path.iterdir()):
        (path / OUTPUT).write_text("ragfm wrote the files in this folder; `ragfm ingest` skips them.\n")
    return path
