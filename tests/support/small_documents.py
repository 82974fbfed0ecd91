"""Four small documents, and a collection of them that tests copy."""

from __future__ import annotations

from pathlib import Path


def write_documents(folder: Path) -> Path:
    """Write the documents to a new folder `docs`."""
    docs = folder / "docs"
    docs.mkdir()
    (docs / "leave.md").write_text("# Leave\n\nYou get 28 days of leave.\n\n## Parents\n\nParents get 16 weeks more.\n")
    (docs / "hours.txt").write_text("The office opens at nine and closes at five.\n")
    (docs / "rooms.csv").write_text("room,seats\nOak,12\nElm,4\n")
    (docs / "pets.markdown").write_text("# Pets\n\nDogs are welcome on Fridays.\n")
    return docs
