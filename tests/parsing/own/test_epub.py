from __future__ import annotations

import io
import zipfile

import pytest
from support.parsed_documents import document, headings

from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing import parse

OPF = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The rules</dc:title><dc:creator>Ada</dc:creator><dc:language>en</dc:language></metadata>
<manifest><item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="text/two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/one.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>"""
CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'


def epub(**more: str) -> bytes:
    stream = io.BytesIO()
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": OPF,
        "OEBPS/nav.xhtml": "<html><body><a href='x'>Contents</a></body></html>",
        "OEBPS/text/one.xhtml": "<html><body><h1>One</h1><p>Red is port.</p></body></html>",
        "OEBPS/text/two b.xhtml": "<html><body><h1>Two</h1><table><tr><th>a<th>b<tr><td>1<td>2</table></body></html>",
    }
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in (parts | more).items():
            archive.writestr(name, text)
    return stream.getvalue()


def test_chapters_in_the_order_of_the_spine() -> None:
    parsed = document(epub(), "a.epub")
    assert parsed.text == "# One\n\nRed is port.\n\n# Two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert headings(parsed) == [(1, "One"), (1, "Two")]
    assert parsed.metadata == {"title": "The rules", "author": "Ada", "lang": "en"}


def test_the_table_of_contents_is_left_out() -> None:
    links = ["<a href='one.xhtml'>One</a>", "<a href='two%20b.xhtml#x'>Two</a>", "<a href='#three'>Three</a>"]
    items = "".join(f"<li>{link}</li>" for link in links)
    one = f"<html><body><h1>One</h1><p>Red is port.</p><ul>{items}</ul><p>{links[0]} and {links[1]}.</p></body></html>"
    two = f"<html><body><p>Contents</p>{''.join(f'<p>{link}</p>' for link in links * 3)}</body></html>"
    parsed = document(epub(**{"OEBPS/text/one.xhtml": one, "OEBPS/text/two b.xhtml": two}), "a.epub")
    assert parsed.text == "# One\n\nRed is port.\n\nOne and Two."
    elsewhere = one.replace("one.xhtml", "https://example.org/one.xhtml").replace("two%20b.xhtml", "three.xhtml")
    assert "- Three" in document(epub(**{"OEBPS/text/one.xhtml": elsewhere}), "a.epub").text


def test_chapters_with_empty_elements() -> None:
    one = "<html><head><title/></head><body><p>Red is port.</p></body></html>"
    body = "<p>Green.</p><video style='width:9px' src='x'/><p>Starboard.</p>"
    two = f"<html><head><script src='x.js'/></head><body>{body}</body></html>"
    parsed = document(epub(**{"OEBPS/text/one.xhtml": one, "OEBPS/text/two b.xhtml": two}), "a.epub")
    assert parsed.text == "Red is port.\n\nGreen.\n\nStarboard."


def test_files_that_cannot_be_read() -> None:
    method = "<e><EncryptionMethod Algorithm='http://www.w3.org/2001/04/xmlenc#aes128-cbc'/></e>"
    with pytest.raises(ParseError, match="encrypted"):
        parse(Blob(epub(**{"META-INF/encryption.xml": method})), "a.epub")
    font = "<e><EncryptionMethod Algorithm='http://www.idpf.org/2008/embedding'/></e>"
    assert document(epub(**{"META-INF/encryption.xml": font}), "a.epub").text
    with pytest.raises(ParseError, match="damaged"):
        parse(Blob(epub(**{"META-INF/container.xml": "<container/>"})), "a.epub")
