"""The plugin `unstructured`: structure, places, and neither downloads nor telemetry."""

from __future__ import annotations

import io
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
from support.parsed_documents import headings, marked
from support.parser_plugins import plugin, read, watched

from ragfm.core.errors import ParseError, SkipDocument, UnsupportedError
from ragfm.core.types import Blob
from ragfm.parsing import ParserChoice, parse
from ragfm.parsing.parsers import installed_parsers
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.testing import check_parser

RST = """
Boats
=====

The boat leaves at nine.

Places
------

- Deck
- Cabin

.. code:: python

   row()

===== =====
Boat  Seats
===== =====
Ada   12
Eve   4
===== =====
"""


@pytest.fixture(autouse=True)
def _installed() -> None:
    plugin("unstructured")


def _docx() -> bytes:
    import docx

    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "Page header"
    document.sections[0].footer.paragraphs[0].text = "Page footer"
    document.add_heading("Boats", 1)
    document.add_paragraph("The boat leaves at nine o'clock from the northern pier.")
    document.add_paragraph("Short line")  # a title by its form only
    document.add_heading("Seats", 2)
    table = document.add_table(2, 2)
    for cell, text in zip(table._cells, ("Boat", "Seats", "Ada", "12"), strict=True):
        cell.text = text
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def test_it_passes_the_contract_test() -> None:
    samples = {
        "a.rst": RST.encode(),
        "a.org": b"* Boats\n\nThe boat leaves.\n\n| a | b |\n|---+---|\n| 1 | 2 |\n",
        "a.docx": _docx(),
        "a.html": "<html><h1>Größe</h1><p>x".encode("utf-16"),
        "a.xml": b"<?xml version='1.0' encoding='iso-8859-1'?><a><b>\xe9</b></a>",
        "a.eml": b"Subject: x\n\nThe body.",
    }
    check_parser(plugin("unstructured"), samples)


def test_structure_comes_from_the_source() -> None:
    rst = read("unstructured", RST, "a.rst")
    assert (rst.media_type, rst.metadata["parsed_by"]) == ("text/x-rst", "unstructured")
    assert headings(rst) == [(1, "Boats"), (2, "Places")]
    assert "- Deck\n- Cabin" in rst.text
    assert marked(rst, "code") == ["```\nrow()\n```"]
    assert marked(rst, "table") == ["| Boat | Seats |\n| --- | --- |\n| Ada | 12 |\n| Eve | 4 |"]
    docx = read("unstructured", _docx(), "a.docx")
    assert headings(docx) == [(1, "Boats"), (2, "Seats")]
    assert "Page header" not in docx.text
    assert "Page footer" not in docx.text
    assert marked(docx, "table") == ["| Boat | Seats |\n| --- | --- |\n| Ada | 12 |"]


def test_the_subject_of_a_mail_is_its_heading() -> None:
    mail = read("unstructured", "Subject: The boat\n\nIt leaves at nine.", "a.eml")
    assert (mail.text, mail.metadata["title"]) == ("# The boat\n\nIt leaves at nine.", "The boat")


def test_sheets_are_places_and_slides_are_pages() -> None:
    from openpyxl import Workbook
    from pptx import Presentation

    book = Workbook()
    book.active.title = "Fleet"
    for row in (("Boat", "Seats"), ("Ada", 12), ("Eve", 4)):
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    sheet = read("unstructured", file.getvalue(), "a.xlsx")
    places = [mark for mark in sheet.marks if mark.kind == "place"]
    assert {mark.value for mark in places} == {"Fleet"}
    assert "| Ada | 12 |" in sheet.text[places[-1].start : places[-1].end]

    slides = Presentation()
    for title in ("First", "Second"):
        slides.slides.add_slide(slides.slide_layouts[5]).shapes.title.text = title
    file = io.BytesIO()
    slides.save(file)
    assert marked(read("unstructured", file.getvalue(), "a.pptx"), "page") == ["# First", "# Second"]


def test_the_loader_that_it_replaces_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("ragfm.parsing.plugins.unstructured_parser")
    read("unstructured", RST, "a.rst")
    tokenize = import_module("unstructured.nlp.tokenize")
    assert tokenize._get_nlp().pipe_names == ["sentencizer"]
    assert tokenize.sent_tokenize("One sentence. Another one.") == ["One sentence.", "Another one."]
    monkeypatch.delattr(tokenize, "_load_spacy_model")
    with pytest.raises(UnsupportedError, match="in a way that ragfm does not know"):
        module._without_downloads.__wrapped__()


def test_it_neither_connects_nor_installs_anything_and_starts_only_pandoc() -> None:
    packages = Path(sysconfig.get_paths()["purelib"])
    before = set(packages.iterdir())
    code = f"""
from ragfm.core.types import Blob
from ragfm.parsing import ParserChoice, parse
names = "txt md html tsv xml eml".split()
choice = ParserChoice({{name: "unstructured" for name in names}})
for name in names:
    text = b"<a>One sentence of words. Another.</a>" if name in ("html", "xml") else b"One sentence. Another."
    assert parse(Blob(text), f"a.{{name}}", choice).metadata["parsed_by"] == "unstructured"
assert parse(Blob({_docx()!r}), "a.docx", ParserChoice({{"docx": "unstructured"}})).text
assert parse(Blob(b"= x =\\n\\nText."), "a.rst").text
"""
    events = watched(code)
    assert {event for event, _ in events} == {"subprocess.Popen"}
    assert all("pandoc" in arguments for _, arguments in events)
    assert set(packages.iterdir()) == before


@pytest.mark.data
@pytest.mark.slow
def test_a_heic_picture_is_read_by_ocr(data: Path) -> None:
    pytest.importorskip("rapidocr")
    picture = read("unstructured", (data / "documents/unstructured/img/DA-1p.heic").read_bytes(), "a.heic")
    assert picture.media_type == "image/heic"
    assert "MAIN" in picture.text.upper()


@pytest.mark.data
@pytest.mark.slow
def test_it_fails_for_no_file_that_the_own_parser_reads(data: Path) -> None:
    parser = installed_parsers()["unstructured"]
    suffixes = {suffix for entry in parser.formats for suffix in entry.suffixes} - {".heic"}
    choice = ParserChoice({entry.suffixes[0]: "unstructured" for entry in parser.formats})
    pool, outcomes = WorkerPool(), {}
    for path in (data / "documents" / "unstructured").rglob("*"):
        if path.suffix.lower() in suffixes and path.is_file():
            outcomes[path] = pool.submit(Blob(path.read_bytes()), path.name, choice)
    assert len(outcomes) > 100
    failed = []
    for path, future in outcomes.items():
        try:
            assert future.result().metadata["parsed_by"] == "unstructured"
        except SkipDocument:
            continue
        except ParseError as error:
            failed.append((path, str(error)))
    pool.close()
    for path, reason in failed:
        with pytest.raises(ParseError):
            assert not parse(Blob(path.read_bytes()), path.name).text, reason
