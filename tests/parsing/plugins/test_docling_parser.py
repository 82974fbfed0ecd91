"""The plugin `docling`: structure, formats that no other parser reads, and no network."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from support.parsed_documents import headings, marked
from support.parser_plugins import plugin, read, watched

from ragfm.core.errors import MissingExtraError
from ragfm.testing import check_parser

PAGE = """<html><body><h1>Boats</h1><p>The <b>boat</b> leaves at nine.</p><h2>Seats</h2><ul><li>Deck<li>Cabin</ul>
<table><tr><th>Boat<th>Seats<tr><td>Ada<td>12</table></body></html>"""


@pytest.fixture(autouse=True)
def _installed() -> None:
    plugin("docling")


@pytest.mark.slow
def test_it_passes_the_contract_test() -> None:
    samples = {"a.html": PAGE, "a.md": "# A\n\nSome `code` here.\n", "a.csv": "a,b\n1,2\n", "a.adoc": "= A\n\nText.\n"}
    check_parser(plugin("docling"), {name: text.encode() for name, text in samples.items()})


def test_structure_comes_from_the_source() -> None:
    page = read("docling", PAGE, "a.html")
    assert page.metadata["parsed_by"] == "docling"
    assert headings(page) == [(1, "Boats"), (2, "Seats")]
    assert "The boat leaves at nine." in page.text  # one paragraph, though in several fonts
    assert "- Deck\n- Cabin" in page.text
    assert marked(page, "table") == ["| Boat | Seats |\n| --- | --- |\n| Ada | 12 |"]


def test_it_reads_formats_that_no_other_parser_reads() -> None:
    assert headings(read("docling", "= Boats\n\n== Seats\n\nTwelve.\n", "a.adoc")) == [(1, "Boats"), (2, "Seats")]
    assert read("docling", "WEBVTT\n\n00:01.000 --> 00:04.000\nAhoy.\n", "a.vtt").text == "Ahoy."


@pytest.mark.skipif(find_spec("docling_ibm_models") is not None, reason="docling's models are installed")
def test_a_pdf_needs_its_models() -> None:
    with pytest.raises(MissingExtraError, match="its models for PDF are not installed"):
        read("docling", b"%PDF-1.4", "a.pdf")


def test_it_does_not_connect() -> None:
    code = f"""
from ragfm.core.types import Blob
from ragfm.parsing import ParserChoice, parse
assert parse(Blob({PAGE.encode()!r}), "a.html", ParserChoice({{"html": "docling"}})).metadata["parsed_by"] == "docling"
"""
    assert watched(code) == []
