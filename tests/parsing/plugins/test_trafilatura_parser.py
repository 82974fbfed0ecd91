"""The plugin `trafilatura`: the main text of a page."""

from __future__ import annotations

import pytest
from support.parsed_documents import headings
from support.parser_plugins import plugin, watched

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import ParserChoice, parse
from ragfm.testing import check_parser

PAGE = f"""<html><head><title>Boats</title></head><body><nav><a href="/a">Home</a> <a href="/b">Contact</a></nav>
<article><h1>Boats</h1><p>{"The boat leaves at nine from the northern pier, in summer and in winter. " * 5}</p>
<h2>Seats</h2><p>{"Twelve people find a seat on deck, and four more in the cabin below. " * 5}</p></article>
<footer>Imprint</footer></body></html>""".encode()
CHOICE = ParserChoice({"html": "trafilatura"})


@pytest.fixture(autouse=True)
def _installed() -> None:
    plugin("trafilatura")


def test_it_passes_the_contract_test() -> None:
    check_parser(plugin("trafilatura"), {"a.html": PAGE})


def test_it_keeps_the_main_text_only() -> None:
    page = parse(Blob(PAGE), "a.html", CHOICE)
    assert page.metadata == {"title": "Boats", "parsed_by": "trafilatura"}
    assert headings(page) == [(1, "Boats"), (2, "Seats")]
    assert "Contact" not in page.text
    assert "Imprint" not in page.text


def test_a_page_without_main_text_is_left_to_the_fallback() -> None:
    empty = Blob(b"<html><body><footer>Imprint</footer></body></html>")
    with pytest.raises(ParseError, match="no main text"):
        parse(empty, "a.html", CHOICE)
    with pytest.raises(SkipDocument, match=r"a.html has no text."):  # says ragfm's own parser
        parse(empty, "a.html", ParserChoice({"html": "trafilatura"}, fallback="ragfm"))


def test_it_does_not_connect() -> None:
    code = "from ragfm.core.types import Blob\nfrom ragfm.parsing import ParserChoice, parse\n"
    code += f"parse(Blob({PAGE!r}), 'a.html', ParserChoice({{'html': 'trafilatura'}}))"
    assert watched(code) == []
