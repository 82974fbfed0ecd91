"""The jobs of forked processes, by name. The first parameter of each reports its results."""

from __future__ import annotations

import tempfile
from pathlib import Path

from support.torture.damage_jobs import answer, furnish, furnish_log
from support.torture.helpers import CachedHashingEmbedder, open_collection
from support.torture.inspect_job import inspect, verify
from support.torture.server_jobs import read_versions, search_canaries, write_versions
from support.torture.snapshot_jobs import read_rounds, write_rounds
from support.torture.writer_jobs import ingest, one_change, prepare, restore_backup

__all__ = [
    "answer",
    "furnish",
    "furnish_log",
    "ingest",
    "inspect",
    "one_change",
    "prepare",
    "read_rounds",
    "read_versions",
    "restore_backup",
    "search_canaries",
    "verify",
    "warm_up",
    "write_rounds",
    "write_versions",
]


def warm_up() -> None:
    """Load and compile everything that a job needs, so that a fork starts at once."""
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder, "a")
        docs.mkdir()
        for number in range(3):
            (docs / f"{number}.md").write_text(f"# Title\n\nText number {number}.\n")
        with open_collection(Path(folder, "c")) as collection:
            for text in ("# One\n\nMore.\n", "# Other\n\nLess.\n"):
                (docs / "0.md").write_text(text)
                collection.sync(docs, allow=["staff"] if "One" in text else [])
                collection.as_groups({"staff"}).search("more", filter="source = a")
            collection.document("a/0.md")
            collection.compact()
            collection.reembed(CachedHashingEmbedder(48))
