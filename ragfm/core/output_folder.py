"""Output folders: training examples, adapters, evaluation runs. They are marked, so that they are never ingested."""

from __future__ import annotations

from pathlib import Path

from ragfm.core.durable_files import temporary_path

OUTPUT = ".ragfm-output"
"""The file that marks an output folder; the `files` connector skips the folder."""


def make_output(folder: str | Path) -> Path:
    """Create an output folder. A folder that already has files may hold documents, so it is not marked.

    Raises OSError if no file can be written to it.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    probe = temporary_path(path / OUTPUT)
    probe.write_bytes(b"x")
    probe.unlink()
    if not any(path.iterdir()):
        (path / OUTPUT).write_text("ragfm wrote the files in this folder; `ragfm ingest` skips them.\n")
    return path
