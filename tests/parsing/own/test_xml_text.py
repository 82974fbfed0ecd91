from __future__ import annotations

import time

import pytest
from support.parsed_documents import document, headings

from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing import parse


def test_data_is_a_block_per_record() -> None:
    xml = """<?xml version="1.0"?><ports xmlns="urn:x" year="2026"><note>All depths at low tide.</note>
    <port id="1"><name>Holm &amp; Skerry</name><berth><no>1</no></berth><berth><no>2</no></berth></port>
    <port id="2"><name>Brannay</name><empty/></port></ports>"""
    assert document(xml, "a.xml").text == (
        "year: 2026\nnote: All depths at low tide.\n\n"
        "port.id: 1\nport.name: Holm & Skerry\nport.berth.no: 1\nport.berth.no: 2\n\nport.id: 2\nport.name: Brannay"
    )


def test_prose_has_headings_and_paragraphs() -> None:
    xml = "<article><title>Rules</title><sec><title>Lights</title><p>Red is <i>port</i>.</p><p>Two.</p></sec></article>"
    parsed = document(xml, "a.xml")
    assert parsed.text == "# Rules\n\n## Lights\n\nRed is port.\n\nTwo."
    assert headings(parsed) == [(1, "Rules"), (2, "Lights")]


def test_data_keeps_sentences_with_inline_elements() -> None:
    records = "".join(f"<item><sku>{number}</sku><name>Part</name></item>" for number in range(30))
    note = "<item><note id='n'>Handle <b>only</b> with <i>gloves</i> and goggles.</note></item>"
    text = document(f"<catalog>{records}{note}</catalog>", "a.xml").text
    assert text.endswith("\n\nitem.note.id: n\nitem.note: Handle only with gloves and goggles.")


def test_html_in_an_element_becomes_its_visible_text() -> None:
    html = "&lt;p&gt;Red&lt;/p&gt;&lt;script&gt;x&lt;/script&gt;"
    xml = f"<item><title>a</title><text>{html}</text></item><item><b>1</b></item>"
    assert document(f"<feed>{xml}</feed>", "a.xml").text == "item.title: a\nitem.text: Red\n\nitem.b: 1"


def test_the_declared_encoding_is_used() -> None:
    xml = "<?xml version='1.0' encoding='iso-8859-1'?><a><b>Grüße</b></a>".encode("latin-1")
    assert document(xml, "a.xml").text == "b: Grüße"


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY % e SYSTEM "http://127.0.0.1:9/x">%e;]><a/>',
        '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;&b;">]><a>&c;</a>',
    ],
)
def test_entities_are_refused(xml: str) -> None:
    with pytest.raises(ParseError, match="entities"):
        parse(Blob(xml.encode()), "a.xml")
    with pytest.raises(ParseError, match="entities"):
        parse(Blob(f"<?xml version='1.0' encoding='utf-16'?>{xml}".encode("utf-16")), "a.xml")


def test_damaged_and_deep() -> None:
    with pytest.raises(ParseError, match=r"a\.xml is damaged"):
        parse(Blob(b"<a><b></a>"), "a.xml")
    start = time.process_time()
    with pytest.raises(ParseError, match="too deeply"):
        parse(Blob(b"<a>" * 100_000 + b"x" + b"</a>" * 100_000), "a.xml")
    assert time.process_time() - start < 5
