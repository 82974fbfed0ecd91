from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from support.make_handbook_files import OBSERVERS_GUIDE, main, pdf

from ragfm.samples import HANDBOOK, QUESTIONS


def test_the_handbook_has_twelve_documents_in_six_formats() -> None:
    formats = Counter(path.suffix for path in HANDBOOK.iterdir())
    assert formats == {".md": 5, ".html": 2, ".txt": 2, ".pdf": 1, ".docx": 1, ".csv": 1}
    assert len(QUESTIONS) == 3


def test_the_pdf_is_generated_by_the_script() -> None:
    pdfium = pytest.importorskip("pypdfium2")
    assert (HANDBOOK / "observers-guide.pdf").read_bytes() == pdf(OBSERVERS_GUIDE)
    document = pdfium.PdfDocument(HANDBOOK / "observers-guide.pdf")
    pages = [page.get_textpage().get_text_range().split() for page in document]
    assert pages == [page.split() for page in OBSERVERS_GUIDE]


def test_the_docx_has_the_content_of_the_script(tmp_path: Path) -> None:
    docx = pytest.importorskip("docx")
    main(tmp_path)

    def content(folder: Path) -> list[str]:
        document = docx.Document(str(folder / "visitors.docx"))
        cells = [cell.text for table in document.tables for row in table.rows for cell in row.cells]
        return [f"{p.style.name}: {p.text}" for p in document.paragraphs] + cells

    assert content(HANDBOOK) == content(tmp_path)
