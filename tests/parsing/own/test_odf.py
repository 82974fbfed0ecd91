from __future__ import annotations

import io
import zipfile

import pytest
from support.parsed_documents import document, headings, marked

from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing import parse

NAMES = {prefix: prefix for prefix in ("office", "style", "text", "table", "presentation", "meta")}
NAMES["draw"] = "drawing"
NAMESPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for prefix, name in NAMES.items()
)
META = '<office:meta><dc:title xmlns:dc="http://purl.org/dc/elements/1.1/">Rules</dc:title></office:meta>'


STYLES = "".join(
    f'<style:style style:name="{name}" style:family="{family}" {more}>'
    f"<style:{family}-properties {hides}/></style:style>"
    for name, family, more, hides in (
        ("Secret", "text", "", 'text:display="none"'),
        ("T1", "text", 'style:parent-style-name="Secret"', ""),
        ("T2", "text", 'style:parent-style-name="Secret"', 'text:display="true"'),
        ("dp1", "drawing-page", "", 'presentation:visibility="hidden"'),
    )
)


def odf(body: str, kind: str = "text", manifest: str = "<manifest/>", styles: str = STYLES) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mimetype", f"application/vnd.oasis.opendocument.{kind}")
        content = f"<office:body><office:{kind}>{body}</office:{kind}></office:body>"
        archive.writestr("content.xml", f"<office:document-content {NAMESPACES}>{content}</office:document-content>")
        styles = f"<office:styles>{styles}</office:styles>"
        archive.writestr("styles.xml", f"<office:document-styles {NAMESPACES}>{styles}</office:document-styles>")
        archive.writestr("meta.xml", f"<office:document-meta {NAMESPACES}>{META}</office:document-meta>")
        archive.writestr("META-INF/manifest.xml", manifest)
    return stream.getvalue()


def test_tables_of_contents_are_left_out() -> None:
    entry = "<text:index-body><text:p>{}<text:tab/>2</text:p></text:index-body>"
    indexes = [("table-of-content", "Ships"), ("illustration-index", "Figure 1"), ("bibliography", "Ada 1843")]
    body = "".join(f"<text:{kind}>{entry.format(title)}</text:{kind}>" for kind, title in indexes)
    parsed = document(odf(body + '<text:h text:outline-level="1">Ships</text:h>'), "a.odt")
    assert parsed.text == "Ada 1843 2\n\n# Ships"


def test_text() -> None:
    cell = "<table:table-cell{0}><text:p>{1}</text:p></table:table-cell>"
    parsed = document(
        odf(
            "<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
            '<text:h text:outline-level="2">Ships</text:h>'
            "<text:p>Red<text:s text:c='3'/>is<text:tab/>port.<text:note><text:note-citation>1</text:note-citation>"
            "<text:note-body><text:p>Left.</text:p></text:note-body></text:note>"
            "<text:line-break/>Green is not.</text:p>"
            "<text:list><text:list-item><text:p>Oil</text:p><text:list><text:list-item><text:p>Daily</text:p>"
            "</text:list-item></text:list></text:list-item></text:list>"
            "<table:table><table:table-header-rows><table:table-row>"
            + cell.format("", "Month")
            + cell.format("", "Ships")
            + "</table:table-row></table:table-header-rows><table:table-row>"
            + cell.format(' table:number-columns-repeated="2"', "4")
            + "<table:table-cell table:number-columns-repeated='16000'/></table:table-row></table:table>"
        ),
        "a.odt",
    )
    assert parsed.text == (
        "## Ships\n\nRed is port.[1]\nGreen is not.\n\n[1] Left.\n\n- Oil\n  - Daily\n\n"
        "| Month | Ships |\n| --- | --- |\n| 4 | 4 |"
    )
    assert headings(parsed) == [(2, "Ships")]
    assert parsed.metadata["title"] == "Rules"


def test_boxes_notes_and_comments_in_a_cell() -> None:
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Left.</text:p></text:note-body>"
    )
    cells = (
        "<text:p>Oil<draw:frame><draw:text-box><text:p>Daily</text:p></draw:text-box></draw:frame></text:p>",
        f"<text:p>Port{note}</text:note><office:annotation><text:p>Check</text:p></office:annotation></text:p>",
    )
    row = "".join(f"<table:table-cell>{cell}</table:table-cell>" for cell in cells)
    body = f"<table:table><table:table-row>{row}</table:table-row></table:table><text:p>After</text:p>"
    text = "| Oil Daily | Port[1] |\n| --- | --- |\n\n[1] Left.\n\nAfter"
    assert document(odf(body), "a.odt").text == text


def test_two_header_rows_become_one() -> None:
    cell, covered = "<table:table-cell {0}><text:p>{1}</text:p></table:table-cell>", "<table:covered-table-cell/>"
    high, wide = 'table:number-rows-spanned="2"', 'table:number-columns-spanned="2"'
    rows = (
        cell.format(high, "Item") + cell.format(wide, "2023") + covered + cell.format(high, "Note"),
        covered + cell.format("", "Q1") + cell.format("", "Q2") + covered,
        "".join(cell.format("", text) for text in ("Cost", "1", "2", "none")),
    )
    body = "".join(f"<table:table-row>{row}</table:table-row>" for row in rows)
    text = "| Item | 2023 Q1 | 2023 Q2 | Note |\n| --- | --- | --- | --- |\n| Cost | 1 | 2 | none |"
    assert document(odf(f"<table:table>{body}</table:table>"), "a.odt").text == text


def test_presentation() -> None:
    page = (
        '<draw:page><draw:frame presentation:class="title"><draw:text-box><text:p>{0}</text:p></draw:text-box>'
        "</draw:frame><draw:frame><draw:text-box><text:p>{1}</text:p></draw:text-box></draw:frame></draw:page>"
    )
    parsed = document(odf(page.format("One", "First.") + page.format("Two", "Second."), "presentation"), "a.odp")
    assert marked(parsed, "page") == ["# One\n\nFirst.", "# Two\n\nSecond."]


@pytest.mark.parametrize(
    "body",
    [
        "<draw:ellipse>{}</draw:ellipse>",
        "<draw:path>{}</draw:path>",
        "<draw:connector>{}</draw:connector>",
        "<draw:a><draw:frame><draw:text-box>{}</draw:text-box></draw:frame></draw:a>",
        "<text:numbered-paragraph>{}</text:numbered-paragraph>",
        "<text:p>Red<draw:ellipse>{}</draw:ellipse></text:p>",
    ],
)
def test_text_in_shapes_links_and_numbered_paragraphs(body: str) -> None:
    parsed = document(odf(body.format("<text:p>Port</text:p>")), "a.odt")
    assert parsed.text.split("\n\n") == (["Red", "Port"] if "Red" in body else ["Port"])


@pytest.mark.parametrize(
    "hidden",
    [
        '<text:section text:display="none"><text:p>Secret</text:p></text:section>',
        '<text:p><text:hidden-text text:is-hidden="true">Secret</text:hidden-text></text:p>',
        '<text:p><text:hidden-paragraph text:is-hidden="true"/>Secret</text:p>',
        '<text:p><text:span text:style-name="T1">Secret</text:span></text:p>',
    ],
)
def test_hidden_text_is_dropped(hidden: str) -> None:
    cells = f"<table:table-cell>{hidden}</table:table-cell><table:table-cell><text:p>A</text:p></table:table-cell>"
    table = f"<table:table><table:table-row>{cells}</table:table-row></table:table>"
    shown = '<text:p>Shown<text:span text:style-name="T2"> too</text:span></text:p>'
    parsed = document(odf(hidden + table + shown), "a.odt")
    assert parsed.text == "| A |\n| --- |\n\nShown too"
    assert parsed.metadata["hidden_text"] == "Secret Secret"


def test_hidden_slides_are_left_out() -> None:
    page = '<draw:page draw:style-name="{0}"><draw:rect><text:p>{1}</text:p></draw:rect></draw:page>'
    slides = page.format("dp1", "One") + page.format("dp2", "Two")
    parsed = document(odf(slides, "presentation"), "a.odp")
    assert marked(parsed, "page") == ["Two"]
    assert [mark.value for mark in parsed.marks if mark.kind == "page"] == ["2"]
    assert parsed.metadata["hidden_slides"] == "1"


def test_files_that_cannot_be_read() -> None:
    with pytest.raises(ParseError, match="protected by a password"):
        parse(Blob(odf("", manifest="<m><encryption-data/></m>")), "a.odt")
    with pytest.raises(ParseError, match=r"a\.odt is damaged"):
        parse(Blob(odf("<text:p>")), "a.odt")
    deep = "<text:section>" * 5_000 + "</text:section>" * 5_000
    with pytest.raises(ParseError, match="too deeply"):
        parse(Blob(odf(deep)), "a.odt")
