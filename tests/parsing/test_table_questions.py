"""The questions about tables in benchmarks/labels: the answer of each stands in a table of its file."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from ragfm.core.types import Blob, Document
from ragfm.parsing import parse

QUESTIONS = Path(__file__).parents[2] / "benchmarks" / "labels" / "table_questions.tsv"


@pytest.mark.data
@pytest.mark.slow
def test_the_cells_are_in_tables(data: Path) -> None:
    @cache
    def read(file: str) -> Document:
        return parse(Blob((data / "documents" / file).read_bytes()), file)

    with QUESTIONS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    missing = []
    for row in rows:
        document = read(row["file"])
        tables = [document.text[mark.start : mark.end] for mark in document.marks if mark.kind == "table"]
        if not any(row["cell"] in table for table in tables):
            missing.append(row)
    assert missing == []
    assert Counter(Path(row["file"]).suffix for row in rows) == {".docx": 15, ".xlsx": 29, ".pdf": 16}
