from __future__ import annotations

from collections import Counter

from ragfm.samples import HANDBOOK, QUESTIONS


def test_the_handbook_has_twelve_documents_in_six_formats() -> None:
    formats = Counter(path.suffix for path in HANDBOOK.iterdir())
    assert formats == {".md": 5, ".html": 2, ".txt": 2, ".pdf": 1, ".docx": 1, ".csv": 1}
    assert len(QUESTIONS) == 3
