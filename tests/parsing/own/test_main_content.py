"""The main content of web pages: saved pages with the structure of well-known kinds of sites, and invented content.

In these pages, `data-is` marks what a reader needs (`content`) and what must be left out (`navigation`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser

from ragfm.core.types import Blob, Document
from ragfm.parsing import parse

PAGES = Path(__file__).parent / "pages"

# Headings, tables and blocks of code in the text of each page.
MARKS = {
    "blog": (3, 0, 1),
    "documentation": (4, 1, 1),
    "encyclopaedia": (5, 2, 0),
    "forum": (1, 0, 1),
    "government": (6, 1, 0),
    "intranet": (3, 1, 0),
    "news": (1, 0, 0),
    "questions": (2, 1, 2),
    "shop": (5, 1, 0),
    "wiki": (4, 1, 1),
}


def page(text: str) -> Document:
    return parse(Blob(f"<html><body>{text}".encode()), "page.html")


def lines(path: Path, kind: str) -> list[str]:
    """The text nodes of the elements that are marked as `kind`."""
    tree = LexborHTMLParser(path.read_text(encoding="utf-8"))
    found = [node.text(separator="\n") for node in tree.css(f"[data-is={kind}]")]
    return [" ".join(line.split()) for text in found for line in text.split("\n") if line.strip(" »/|:,")]


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_pages_are_those_of_the_table() -> None:
    assert {path.stem for path in PAGES.glob("*.html")} == set(MARKS)


@pytest.mark.parametrize("name", MARKS)
def test_no_content_of_a_page_is_lost(name: str) -> None:
    text = words(parse(Blob((PAGES / f"{name}.html").read_bytes()), name).text)
    content = lines(PAGES / f"{name}.html", "content")
    assert len(content) > 8
    assert [line for line in content if line not in text] == []


@pytest.mark.parametrize("name", MARKS)
def test_navigation_is_left_out(name: str) -> None:
    path = PAGES / f"{name}.html"
    text, content = words(parse(Blob(path.read_bytes()), name).text), " ".join(lines(path, "content"))
    navigation = [line for line in lines(path, "navigation") if line not in content]
    assert len(navigation) > 5
    assert [line for line in navigation if line in text] == []


@pytest.mark.parametrize("name", MARKS)
def test_headings_tables_and_code_are_marked(name: str) -> None:
    kinds = [mark.kind for mark in parse(Blob((PAGES / f"{name}.html").read_bytes()), name).marks]
    assert tuple(kinds.count(kind) for kind in ("heading", "table", "code")) == MARKS[name]


SENTENCE = "Every document needs a sentence that is long enough to be one. "
LINKS = "".join(f"<li><a href=/{word}>{word}</a></li>" for word in ("Alpha", "Beta", "Gamma", "Delta"))


def test_a_main_element_with_a_small_share_of_the_text_is_not_the_content() -> None:
    text = page(f"<main><p>Widget</main><div><p>{SENTENCE * 3}</div>").text
    assert text.startswith("Widget")
    assert SENTENCE.strip() in text
    assert "Widget" not in page(f"<div><p>Widget</div><main><p>{SENTENCE * 3}</main>").text


def test_the_links_of_an_index_page_are_its_content() -> None:
    assert "Gamma" in page(f"<h1>Index</h1><div><ul>{LINKS}</ul></div>").text
    assert "Gamma" not in page(f"<h1>Index</h1><p>{SENTENCE}</p><div><ul>{LINKS}</ul></div>").text


@pytest.mark.parametrize(
    "kept",
    [
        f"{SENTENCE}<ul>{LINKS}</ul>",
        f"<ul>{LINKS}<li>Or send a letter to the office in the main street.</ul>",
        f"<div>{LINKS}<a href=/x>+49 30 5550188</a></div>",
        f"<div>{LINKS}<pre>make all</pre></div>",
        f"<div>{LINKS}<a href=/card><p>{SENTENCE}</p></a></div>",
        f"<h2>See also</h2><div><ul>{LINKS}</ul></div>",
    ],
)
def test_links_that_belong_to_the_text_are_kept(kept: str) -> None:
    assert "Gamma" in page(f"<main><h1>Title</h1><p>{SENTENCE * 3}</p><div>{kept}</div></main>").text


def test_the_contents_of_the_page_and_the_links_behind_headings_are_left_out() -> None:
    names = ("Console", "Images, ISO9660 and 24 more", "Disks")
    contents = "".join(f"<dt><a href='ch9.html#p{i}'>9.{i}. {name}</a></dt>" for i, name in enumerate(names))
    parts = "".join(
        f"<h2 id=p{i}>{name}<a class=headerlink href='#p{i}' title='Permalink'>¶</a></h2><p>{SENTENCE}</p>"
        for i, name in enumerate(names)
    )
    text = page(f"<h1>Tips</h1><div><p><b>Contents</b></p><dl>{contents}</dl></div><p>{SENTENCE}</p>{parts}").text
    assert text.startswith(f"# Tips\n\n{SENTENCE.strip()}\n\n## Console\n\n")
    assert "¶" not in text
    elsewhere = contents.replace("#p", "#other")
    assert "9.0. Console" in page(f"<h1>Tips</h1><dl>{elsewhere}</dl><p>{SENTENCE}</p>{parts}").text
    assert "back to [1]" in page(f"<p>{SENTENCE} See <a href='#n1'>back to [1]</a>.</p>").text


@pytest.mark.parametrize(
    "bar",
    [
        "<table><tr><td><a accesskey=p href=1>Prev</a><th>Part VIII. Terms<td><a accesskey=n href=3>Next</a></table>",
        "<ul><li><a rel=prev href=1>Before</a><li>Our manual<li><a rel='next nofollow' href=3>After</a></ul>",
        "<div><p>Next: <a rel=next href=3>Gamma</a></div>",
    ],
)
def test_links_to_the_next_page_are_left_out(bar: str) -> None:
    text = page(f"{bar}<h1>Title</h1><p>{SENTENCE}</p><hr>{bar}").text
    assert text == f"# Title\n\n{SENTENCE.strip()}"
    other = bar.replace("accesskey=n", "class=n").replace("next", "bookmark")
    assert page(f"{other}<h1>Title</h1><p>{SENTENCE}</p>").text != text
    assert "In other places" in page(f"<div><p>In other places and in some more: {SENTENCE}{bar}</div>").text


def test_a_bar_may_have_a_few_other_links_but_no_text() -> None:
    table = "<table><tr><td><a accesskey=p href=1>Before</a><td><a accesskey=n href=3>After</a></table>"
    contents = f"<div><ul>{LINKS}</ul></div>"
    for other in ("<a href=bugs>Report a bug</a>", "<a href=bugs>Report</a><a href=edit>Edit</a>"):
        bar = f"<div>{table}{other}</div>"
        assert page(f"<h1>Title</h1><p>{SENTENCE}</p>{bar}").text == f"# Title\n\n{SENTENCE.strip()}"
        index = page(f"{bar}<h1>Index</h1>{contents}{bar}").text  # the letters of bars are no share of its text
        assert "Gamma" in index
        assert "After" not in index
        assert "Report" not in index
    assert "Report" in page(f"<h1>Title</h1><p>{SENTENCE}</p><div>{table}{SENTENCE}{other}</div>").text
    assert "Gamma" in page(f"<div>{table}<h2>Index</h2>{contents}{table}</div>").text  # most links lead through pages


def test_links_at_the_top_of_a_page_are_no_text_of_it() -> None:
    link = "<a href=/book>Download the book</a>"
    text = f"<p>{SENTENCE}</p>"
    assert page(f"<div>{link}</div><p><a href=/><img src=logo.png></a></p><h1>Title</h1>{text}").text.startswith(
        "# Tit"
    )
    for kept in (
        f"<h1>Title</h1><div>{link}</div>{text}",  # the author, below the title
        f"<div>{link} now</div>{text}",
        f"<p>{link}</p>{text}",
        f"<div><h2>{link}</h2></div>{text}",
        f"{text}<div>{link}</div>",
        f"<div>{link}</div>",
    ):
        assert "Download the book" in page(kept).text, kept


def test_landmarks_of_a_part_belong_to_it() -> None:
    part = f"<section><header>Section header</header><p>{SENTENCE}<div role=contentinfo>Caption</div></section>"
    text = page(f"<div role=banner>Banner</div>{part}<div role=contentinfo>Imprint</div><search>Find</search>").text
    assert text == f"Section header\n\n{SENTENCE.strip()}\n\nCaption"
