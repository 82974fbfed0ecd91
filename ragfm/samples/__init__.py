"""Sample corpus: the staff handbook of a fictional weather station on an island, and questions about it."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["HANDBOOK", "QUESTIONS", "copy_handbook", "handbook_text"]

HANDBOOK = Path(__file__).parent / "handbook"
"""A dozen documents in Markdown, HTML, text, CSV, PDF and DOCX."""

QUESTIONS: tuple[str, ...] = (
    "How long is the probation period?",
    "How many bedrooms does the staff house have?",
    "At what time is the weather balloon launched every day?",
)
"""Questions that welcome.md, rooms.html and page 2 of observers-guide.pdf answer."""


def copy_handbook(folder: str | Path) -> Path:
    """Copy the handbook to `folder/handbook`, without overwriting files, and return that folder."""
    target = Path(folder) / "handbook"
    target.mkdir(parents=True, exist_ok=True)
    for file in HANDBOOK.iterdir():
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    return target


def handbook_text() -> str:
    """The handbook's Markdown and text files as one text of 10,000 characters, to measure models with."""
    files = sorted((*HANDBOOK.glob("*.md"), *HANDBOOK.glob("*.txt")))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
