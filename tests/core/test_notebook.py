"""Answers, hits and collections in notebooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt

from ragfm import Answer, Citation, Collection, Hit, Usage
from ragfm.core.table_rows import TableRow
from ragfm.core.types import Contradiction, HitList

EVIL = "<script>alert(1)</script> ![x](https://evil.example/x.png) [a](javascript:b) <img src=x> & **bold** `c`"
ROW = TableRow(("Who", "<b>2025", "2026"), ("Norway", "€43", "€46 <i>"), label="Norway", column=2)
QUOTE = Citation(1, "docs/rates.md", 3, 0, 9, "| Norway | €43 | €46 <i> |", verified=False, row=ROW)
ANSWER = Answer(
    question="Norway?",
    text="€46 [1].",
    status="unsure",
    citations=(),
    hits=(),
    dropped=(),
    usage=Usage(),
    seconds=0.1,
    quote=QUOTE,
    shown=f"I am not sure. The documents say: {ROW.text} [1]",
    contradictions=(Contradiction(2, "docs/old.md", None, 0, 9, EVIL, 0, 3),),
    notes=(EVIL,),
)
HIT = Hit("docs/<u>.md", f"{EVIL}\n\n| Norway | €43 | {EVIL} |", 0, 9, 1, 0.25, {}, context="| Who | 2025 | 2026 |")


def test_html_is_escaped_and_the_cell_of_an_answer_is_marked() -> None:
    html = ANSWER._repr_html_()
    assert "<th>Who</th><th>&lt;b&gt;2025</th><th>2026</th>" in html
    assert "<td>Norway</td><td>€43</td><td><mark>€46 &lt;i&gt;</mark></td>" in html
    assert "[1] docs/rates.md, page 3: Norway — 2026: €46 &lt;i&gt;" in html
    assert "But [2] says otherwise: “&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for shown in (html, HIT._repr_html_(), HitList([HIT])._repr_html_()):
        assert not any(tag in shown for tag in ("<script", "<img", "<u>", "<i>", "<b>2025"))


def test_markdown_shows_texts_as_they_are_written() -> None:
    for value in (ANSWER, HIT, HitList([HIT])):
        rendered = MarkdownIt("commonmark").enable("table").render(value._repr_markdown_())
        assert "&lt;script&gt;alert(1)&lt;/script&gt; ![x](https://evil.example/x.png) [a](javascript:b)" in rendered
        assert not any(tag in rendered for tag in ("<script", "<img", "<a ", "<code"))
        assert "<table>" in rendered
    assert "**€46 \\<i\\>**" in ANSWER._repr_markdown_()


def test_an_answer_names_the_doubts_about_its_citations() -> None:
    citation = replace(QUOTE, quote="You get 28 days.", row=None, fault="subject", missing=("2026",))
    answer = replace(ANSWER, text="28 days [1].", shown="28 days [1].", quote=None, citations=(citation,), notes=())
    assert "“You get 28 days.” (supported, but 2026 is not mentioned with it)" in answer._repr_html_()


def test_hits_and_collections_show_what_they_have(collection: Collection, docs: Path) -> None:
    assert "It does not exist yet" in collection._repr_html_()
    collection.sync(docs)
    hits = collection.search("How many days of leave do I get?", 2)
    assert [hit.uri for hit in hits] == [hit.uri for hit in list(hits)]
    assert "<b>1. " in hits._repr_html_()
    assert "28 days" in hits._repr_html_()
    html = collection._repr_html_()
    assert "documents, " in html
    assert "<td>docs</td>" in html
    assert "<table>" not in collection.as_groups({"hr"})._repr_html_(), "sources are the owner's to know"
    assert HitList()._repr_markdown_() == "No passage matches\\."
