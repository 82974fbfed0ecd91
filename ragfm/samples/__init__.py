"""A sample corpus: the staff handbook of a weather station on an island, and questions about it. All is fiction."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HANDBOOK", "QUESTIONS"]

HANDBOOK = Path(__file__).parent / "handbook"
"""A dozen documents in Markdown, HTML, text, CSV, PDF and DOCX."""

QUESTIONS: tuple[str, ...] = (
    "How many days of paid leave do I get a year?",
    "How much does a room in the staff house cost?",
    "When is the weather balloon launched?",
)
"""Answered by leave.md, rooms.html and observers-guide.pdf."""
