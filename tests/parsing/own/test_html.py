"""HTML: lists of definitions."""

from __future__ import annotations

from support.parsed_documents import document, headings

from ragfm import Chunk
from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.embedders import load_embedder

LONG = "The server listens on this port, and each connection has one of the slots that it keeps. " * 3


def test_a_term_is_in_one_paragraph_with_a_short_definition() -> None:
    several = "<dt>\n-a\n</dt>\n<dt>\n--all\n</dt><dd>Everything"
    terms = f"<dl><dt>AM<dd><p>Access <i>Method</i></p><p>Second.</p>{several}<dt>Empty<dd></dl>"
    parsed = document(f"<h2>Terms</h2>{terms}<p>After.", "a.html")
    assert parsed.text == "## Terms\n\nAM\nAccess Method\n\nSecond.\n\n-a, --all\nEverything\n\nEmpty\n\nAfter."
    assert headings(parsed) == [(2, "Terms")]


def test_a_term_is_the_heading_of_a_long_definition() -> None:
    inner = f"<dl><dt>slots</dt><dd>{LONG}</dd></dl>"
    terms = f"<dl><dt><b>port</b> (integer)</dt><dd><p>{LONG}</p>{inner}<h3>Note</h3><p>On.</p></dd></dl>"
    parsed = document(f"<h2>Settings</h2>{terms}<p>After.<h4>Deep</h4>Text.", "a.html")
    long = LONG.strip()
    sections = f"### port (integer)\n\n{long}\n\n#### slots\n\n{long}\n\n#### Note\n\nOn."
    assert parsed.text == f"## Settings\n\n{sections}\n\nAfter.\n\n#### Deep\n\nText."
    found = [(2, "Settings"), (3, "port (integer)"), (4, "slots"), (4, ""), (4, "Note"), (3, ""), (4, "Deep")]
    assert headings(parsed) == found


def test_text_after_definitions_is_not_part_of_the_last_one() -> None:
    terms = "".join(f"<dt>{name}<dd><p>{LONG}<pre>{name}=1</pre>" for name in ("port", "slots"))
    parsed = document(f"<h1>Manual</h1><h2>Settings</h2><dl>{terms}</dl><p>{LONG}<h2>Other</h2>Text.", "a.html")
    embedder = load_embedder("bundled")

    def chunks(size: int) -> list[Chunk]:
        return chunk_document(parsed, embedder.tokenize, embedder.max_tokens, ChunkSettings(size), path="a.html")

    assert [(chunk.text.partition("\n")[0], chunk.headings[1:]) for chunk in chunks(256)] == [
        ("# Manual", ("Settings", "port")),
        ("### slots", ("Settings", "slots")),
        (LONG.strip(), ("Settings",)),
        ("## Other", ("Other",)),
    ]
    parts = [chunk for chunk in chunks(48) if chunk.headings[-1:] == ("slots",)]
    assert len(parts) > 2
    assert all(part.context.endswith("Settings > slots") for part in parts[1:])


def test_terms_without_a_definition_and_in_lists() -> None:
    index = "".join(f"<dt>entry {number}" for number in range(3))
    assert document(f"<dl>{index}</dl>", "a.html").text == "entry 0\n\nentry 1\n\nentry 2"
    parsed = document(f"<ul><li>One<dl><dt>port<dd><pre>x</pre>{LONG}</dl></ul>", "a.html")
    assert headings(parsed) == []
    assert parsed.text.index("port") < parsed.text.index("```")
    assert document("<dt>Term<dd>Text", "a.html").text == "Term\n\nText"
    assert document(f"<dl><div><dt>Term<dd>{LONG}</div></dl>", "a.html").text == f"## Term\n\n{LONG.strip()}"


def test_bold_paragraphs_are_headings_of_a_page_without_any() -> None:
    body = (
        "<div><span style='font-weight:700'>Item 1A. Risk Factors</span></div>"
        "<p>Ships may sink, and <b>lamps</b> may fail. Keepers may fall asleep at night.</p>"
        "<p><b>Weather:</b></p><p><b>Storms</b></p><p>They come in winter.</p>"
        "<table><tr><td><b>Port</b><td>May<tr><td>Holm<td>3</table><ul><li><b>One</b></ul>"
        "<div style='font-weight:bold'><span style='font-weight:normal'>All ships have lamps at night.</span></div>"
    )
    assert headings(document(f"<html><body>{body}".encode(), "a.html")) == [(2, "Item 1A. Risk Factors"), (2, "Storms")]
    assert headings(document(f"<html><body><h3>Ships</h3>{body}".encode(), "a.html")) == [(3, "Ships")]
    assert not headings(document(b"<html><body><p><b>Ships at night</b><p><b>They have lamps</b><p>Or not", "a.html"))


def test_lists_that_are_laid_out_as_tables_are_lists() -> None:
    row = "<tr><td>{}</td><td></td><td>{}</td></tr>"
    bullets = f"<table>{row.format('•', 'Ships')}{row.format('•', 'Lamps')}</table>"
    letters = f"<table>{row.format('(a)', 'Ships')}{row.format('(b)', 'Lamps')}</table>"
    assert document(f"<html>{bullets}<p>and</p>{letters}".encode(), "a.html").text == (
        "- Ships\n- Lamps\n\nand\n\n(a) Ships\n(b) Lamps"
    )
