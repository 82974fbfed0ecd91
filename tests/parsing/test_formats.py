from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
from markdown_it import MarkdownIt
from support.parsed_documents import check_invariants, document, headings, marked

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Blob, Document, Mark
from ragfm.parsing import media_type, parse
from ragfm.parsing.formats import FORMATS

# --- Media types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "uri", "declared", "expected"),
    [
        (b"%PDF-1.4 x", "a.txt", None, "application/pdf"),
        (b"junk\n%PDF-1.4 x", "a.pdf", None, "application/pdf"),
        (b"How a file begins: %PDF-1.4", "a.txt", None, "text/plain"),
        (b"<!DOCTYPE html><p>x", "a.md", None, "text/html"),
        (b"\xef\xbb\xbf \n<!-- c --><!-- d -->\n<HTML lang=en>", "page", None, "text/html"),
        (b"<?xml version='1.0'?>\n<html xmlns='x'>", "a.xhtml", None, "text/html"),
        (b"<p>fragment", "a.html", None, "text/html"),
        (b"<p>fragment", "https://x.org/a.php?b=c.md", "text/html; charset=utf-8", "text/html"),
        (b"a,b", "https://x.org/a.csv?x=1", "text/plain", "text/csv"),
        (b"# x", "a.MD", None, "text/markdown"),
        (b"# x", "page", "text/markdown", "text/markdown"),
        (b"a\tb", "a.tsv", None, "text/tab-separated-values"),
        (b'{"a": 1}', "a", None, "application/json"),
        (b'{"a": 1}', "a.txt", None, "text/plain"),
        (b'{"a": 1', "a", None, "text/plain"),
        (b"{broken", "a.json", None, "application/json"),
        (b"print(1)", "a.py", None, "text/x-source"),
        (b"<?xml version='1.0'?><a/>", "a", None, "application/xml"),
        (b"<?xml version='1.0'?><a/>", "a.txt", None, "text/plain"),
        (b"Subject: x", "a.eml", None, "message/rfc822"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a.txt", None, "image/*"),
        (b"\x7fELF\2\1\1\0", "a.png", None, "application/octet-stream"),
        (b"{\\rtf1 x}", "a.doc", None, "application/rtf"),
        (b"PK\x03\x04 no zip", "a.zip", None, "application/octet-stream"),
    ],
)
def test_media_type_by_content_then_name_then_declaration(data: bytes, uri: str, declared: str, expected: str) -> None:
    assert media_type(data, uri, declared) == expected


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def zipped(*names: str, **parts: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in [*((name, "<x/>") for name in names), *parts.items()]:
            archive.writestr(name, text)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (zipped("[Content_Types].xml", "word/document.xml"), "DOCX"),
        (zipped("[Content_Types].xml", "ppt/presentation.xml"), "PPTX"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "XLSX"),
        (zipped(mimetype="application/epub+zip"), "EPUB"),
        (zipped(mimetype="application/vnd.oasis.opendocument.text"), "ODT"),
        (zipped("word/document.xml"), None),
        (zipped(mimetype="application/java-archive"), None),
        (OLE + "WordDocument\0".encode("utf-16-le"), "DOC"),
        (OLE + "Workbook\0".encode("utf-16-le"), "XLS"),
    ],
)
def test_a_container_is_recognized_by_its_entries(data: bytes, expected: str | None) -> None:
    for name in ("a.bin", "a.docx", "a"):
        kind = media_type(data, name)
        assert kind == "application/octet-stream" if expected is None else FORMATS[kind].name == expected


def test_the_name_decides_between_nested_documents() -> None:
    both = OLE + "WordDocument\0Workbook\0".encode("utf-16-le")
    assert [FORMATS[media_type(both, name)].name for name in ("a.doc", "a.xls")] == ["DOC", "XLS"]


def test_detection_takes_linear_time() -> None:
    start = time.thread_time()
    assert media_type(b"\t" * 200_000 + b"x", "a.txt") == "text/plain"
    assert media_type(b"<!-- a -->" * 20_000 + b"x", "a.txt") == "text/plain"
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    ("data", "uri", "error", "message"),
    [
        (b"Hello\nworld", "d/b.pdf", ParseError, "b.pdf is named .pdf but is not a PDF: it begins with 'Hello'."),
        (b"Hello", "a.docx", ParseError, "a.docx is named .docx but is not a DOCX: it begins with 'Hello'."),
        (b"PK\x03\x04 no zip", "a.docx", ParseError, "is not a DOCX"),
        (b"Hello", "a.xlsx", ParseError, "is not an XLSX"),
        (OLE + "EncryptedPackage\0".encode("utf-16-le"), "a.docx", ParseError, "protected by a password"),
        (b"Hello\0world", "a.txt", ParseError, "a.txt is named .txt but is not text: it has NUL bytes"),
        (b"Hello\0world", "a.dat", SkipDocument, "a.dat has an unsupported format"),
        (b"\x7fELF\2\1\1\0", "a", SkipDocument, "unsupported"),
        (b"", "a.pdf", SkipDocument, "a.pdf is empty."),
        (b" \n\t\n", "a.md", SkipDocument, "a.md has no text."),
        (b"\xef\xbb\xbf", "a.txt", SkipDocument, "has no text"),
        (b"{broken", "a.json", ParseError, "a.json is not valid JSON: line 1, column 2"),
        (b"[" * 100_000, "a.json", ParseError, "cannot be read as JSON"),
        (b'{"a": null}', "a.json", SkipDocument, "has no text"),
        (b"%PDF-1.4\nnothing", "a.pdf", ParseError, "a.pdf is a damaged PDF"),
        (b"<html>" + b"<div>" * 20_000, "a.html", ParseError, "nests elements more than"),
        (b"<html><script>x</script>", "a.html", SkipDocument, "has no text"),
    ],
)
def test_errors_name_the_file_and_the_reason(data: bytes, uri: str, error: type[ParseError], message: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse(Blob(data), uri)
    assert type(raised.value) is error
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_metadata_that_cannot_be_stored_is_replaced() -> None:
    blob = Blob(b"Text.", "text/plain", {"ti\0tle": "A\0\ud800", "year": 2024})
    assert parse(blob, "a.txt").metadata == {"ti\ufffdtle": "A\ufffd\ufffd", "year": 2024}


def test_metadata_of_the_source_overrides_that_of_the_document() -> None:
    parsed = parse(Blob(b"---\ntitle: Inner\nyear: 2026\n---\nx", metadata={"title": "Outer"}), "a.md")
    assert dict(parsed.metadata) == {"title": "Outer", "year": 2026}
    assert parsed.uri == "a.md"


# --- Text --------------------------------------------------------------------------------------------------------


def test_text_is_kept_character_for_character() -> None:
    text = "\n # not Markdown\n\n| a |\n|---|\n\x0c\ttab \u2028 😀 e\u0301\rend  \n\n"
    parsed = document(text.replace("\n", "\r\n"), "a.txt")
    assert parsed.text == text
    assert parsed.marks == ()
    assert document(text, "a.md").text == text


# --- Markdown ----------------------------------------------------------------------------------------------------

MARKDOWN = """---
title: Leave
year: 2026
valid: 2026-01-31
draft: false
tags: [a, b]
nothing:
---
# Leave *rules*

Text
Underlined
title
---

> # quoted

- # in a list

```python
# no heading
```

    # indented code

| a | b |
|---|---|
| 1 | 2 |

## Last ##
~~~
never closed"""


def test_markdown_marks_and_front_matter() -> None:
    parsed = document(MARKDOWN, "a.md")
    assert parsed.text == MARKDOWN
    assert headings(parsed) == [(1, "Leave *rules*"), (2, "Text Underlined title"), (2, "Last")]
    assert marked(parsed, "heading")[1] == "Text\nUnderlined\ntitle\n---"
    assert marked(parsed, "code") == ["```python\n# no heading\n```", "    # indented code", "~~~\nnever closed"]
    assert [mark.value for mark in parsed.marks if mark.kind == "code"] == ["python", "", ""]
    assert marked(parsed, "table") == ["| a | b |\n|---|---|\n| 1 | 2 |"]
    assert [mark.value for mark in parsed.marks if mark.kind == "table"] == ["| a | b |\n|---|---|"]
    assert dict(parsed.metadata) == {"title": "Leave", "year": 2026, "valid": "2026-01-31", "draft": False}


def test_the_first_title_is_used_without_front_matter() -> None:
    assert document("## Two\n\n# One\n", "a.md").metadata == {"title": "One"}


def test_headings_in_html_are_headings_of_markdown() -> None:
    text = (
        '<h1 align="center">\n  <img src="lamp.svg"><br>\n  The lamp\n</h1>\n\n<h2>Install</h2>\nText\n\n'
        "<!-- <h2>Draft</h2> -->\n\n## Use\n\n<details>\n<h3 id=x>More</h3> and <h3>more</h3>\n</details>\n\n"
        "> <h2>Quoted</h2>\n"
    )
    parsed = document(text, "a.md")
    assert parsed.text == text
    assert headings(parsed) == [(1, "The lamp"), (2, "Install"), (2, "Use"), (3, "More")]
    assert marked(parsed, "heading")[1] == "<h2>Install</h2>"


def test_front_matter_in_toml() -> None:
    parsed = document('+++\ntitle = "Leave"\nyear = 2026\nvalid = 2026-01-31\n[extra]\nx = 1\n+++\n# Days\n', "a.md")
    assert dict(parsed.metadata) == {"title": "Leave", "year": 2026, "valid": "2026-01-31"}
    assert headings(parsed) == [(1, "Days")]
    assert headings(document("+++\n# One\n+++\n# Two\n", "a.md")) == [(1, "Two")]


@pytest.mark.parametrize("matter", ["title: a: b", "# note\ndate: 2026-99-99", "key: [" + "[" * 5000])
def test_front_matter_with_invalid_yaml_is_not_a_heading(matter: str) -> None:
    assert headings(document(f"---\n{matter}\n---\n# Real\n", "a.md")) == [(1, "Real")]


def test_a_horizontal_rule_at_the_top_is_not_front_matter() -> None:
    assert headings(document("---\nJust text.\n\nMore\n---\n", "a.md")) == [(2, "More")]


BLOCKS = [
    *(
        "| a | b |",
        "| --- | --- |",
        "|---|",
        "a | b",
        "- | x",
        "> | q |",
        "# h",
        "",
        "    code",
        "  | c |",
        "```",
        "word",
    ),
    *("1. one", "   | a | b |", "   | - | - |", "***", "<div>", "\t| x |", ":-- | --:", "\\| a | b"),
    *("- | a | b |\n  | --- | --- |\n  | c | d |", "> | a | b |\n> |---|---|\n> | c | d |\nlazy | x"),
]


def test_tables_end_where_the_full_parser_ends_them() -> None:
    whole = MarkdownIt("commonmark").enable("table")
    random = Random(1)
    found = 0
    for _ in range(500):
        text = "\n".join(["word", "", *random.choices(BLOCKS, k=random.randint(2, 14))])
        lines = text.split("\n")
        spans = [token.map for token in whole.parse(text) if token.type == "table_open" and token.map]
        tables = marked(parse(Blob(text.encode()), "a.md"), "table")
        assert tables == ["\n".join(lines[slice(*span)]) for span in spans], text
        found += len(spans)
    assert found > 200


def test_lone_carriage_returns_move_no_mark() -> None:
    parsed = document("# One\rtext\r\r# Two\n\n# Three 😀\n", "a.md")
    assert marked(parsed, "heading") == ["# One", "# Two", "# Three 😀"]


# --- HTML --------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html lang="en"><head><title> The
 handbook </title><meta name="Author" content="Ada"><meta name=description content="All rules"></head><body>
<header><h1>Site</h1></header><nav><a href=/>Home</a></nav>
<div role=navigation>Menu</div>
<section><header><h2>Parental <em>leave</em></h2></header>
<p>Parents get   <a href="x">sixteen weeks</a>&nbsp;off.<br>Really.</p></section>
<p># no heading</p><p>---</p><p>``` no code</p>
<ul><ul hidden><li>secret</ul><li>One <ul><li>Inner</ul><li><p>Two</p><p>more</p></ul><ol start=3><li>Three<li>Four</ol>
<pre class="language-sh">a
  b ``` c</pre>
<table><caption>Days</caption><thead><tr><th>Years<th>Days</thead>
<tr><td rowspan=2>0|1<td>25<tr><td>26<tr><td colspan=2>both</table>
<table><tr><td><h3>Laid out</h3>by a table</td><td><table><tr><th>x<th>y<tr><td>1<td>2</table></td></tr></table>
<div hidden>secret</div><p style="color: red; display : none">secret</p><span aria-hidden=true>secret</span>
<script>secret</script><noscript>secret</noscript><template>secret</template><footer>Imprint</footer></body></html>"""


@pytest.mark.parametrize(
    ("style", "visible"),
    [
        ("font-size:0", False),
        ("font-size: 0.0px !important", False),
        ("opacity:0;color:red", False),
        ("visibility: collapse", False),
        ("position:absolute;left:-9999px", False),
        ("text-indent: -10000px", False),
        ("color:#fff;background:#ffffff", False),
        ("background-color: white; COLOR: #FFF", False),
        ("font-size:0.9em", True),
        ("opacity:0.5", True),
        ("margin-left:-9999px", True),
        ("left:-20px", True),
        ("color:#fff", True),
        ("color:#fff;background:#000", True),
        ("border-color:#fff;background:#fff", True),
        ("background-color:#fff;color:#333", True),
        ("font-size:05px", True),
        ("line-height:0;fill-opacity:0", True),
    ],
)
def test_text_hidden_by_a_style_is_dropped(style: str, visible: bool) -> None:
    assert ("secret" in document(f'<p>Visible.</p><p style="{style}">secret</p>', "a.html").text) is visible


@pytest.mark.parametrize(
    ("page", "text"),
    [
        # What MJML writes around a column, and inline blocks without gaps.
        ("<table><tr><td style='font-size:0px;padding:9px'><div style='font-size:13px'>A</div></table>", "A"),
        ("<p style='font-size:0'><b style='font-size:small'>A</b> <b style='font-size:1rem'>b</b></p>", "A b"),
        ("<p>A<b style='font-size:0'>secret <i style='font-size:9pt'>b</i> secret</b>c</p>", "Abc"),
        ("<b style='font-size:0'><i style='font-size:9pt'>A<u style='font-size:.0em'>secret</u></i></b>", "A"),
        ("<p>A<b style='font-size:0'><i style='font-size:2em'>secret</i></b></p>", "A"),
        ("<p>A<b style='font-size:0'><i style='font-size:larger'>secret</i></b></p>", "A"),
        ("<p>A<b style='font-size:0'><i style='{font-size:9px;}'>secret</i></b></p>", "A"),
        ("<p>A<b style='font-size:0!important;font-size:9px'>secret</b></p>", "A"),
        ("<p>A<pre>b <b style='font-size:0'>secret</b>c</pre>", "A\n\n```\nb c\n```"),
        ("<table><tr><td>a<td style='font-size:0'>secret<td>b</table>", "| a | b |\n| --- | --- |"),
    ],
)
def test_text_without_size_is_dropped_but_not_its_children_with_a_size(page: str, text: str) -> None:
    assert document(f"<html>{page}", "a.html").text == text


def test_html_becomes_its_visible_text() -> None:
    parsed = document(PAGE, "a.html")
    assert parsed.text == (
        "## Parental leave\n\nParents get sixteen weeks off.\nReally.\n\n# no heading\n\n---\n\n``` no code\n\n"
        "- One\n  - Inner\n- Two\n  more\n3. Three\n4. Four\n\n````sh\na\n  b ``` c\n````\n\nDays\n\n"
        "| Years | Days |\n| --- | --- |\n| 0\\|1 | 25 |\n| 0\\|1 | 26 |\n| both |  |\n\n"
        "### Laid out\n\nby a table\n\n| x | y |\n| --- | --- |\n| 1 | 2 |"
    )
    assert headings(parsed) == [(2, "Parental leave"), (3, "Laid out")]
    assert [(mark.kind, mark.value) for mark in parsed.marks if mark.kind in {"code", "table"}] == [
        ("code", "sh"),
        ("table", "Days\n| Years | Days |\n| --- | --- |"),
        ("table", "by a table\n| x | y |\n| --- | --- |"),
    ]
    assert marked(parsed, "code") == ["````sh\na\n  b ``` c\n````"]
    assert dict(parsed.metadata) == {
        "title": "The handbook",
        "author": "Ada",
        "description": "All rules",
        "lang": "en",
    }


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        ("a<br>b<br><br>  c", "a\nb\n\n  c"),
        ("<code><span>a<br></span><span>b<br></span></code>", "a\nb"),
        ("<ol><li>a</li><li><i>b</i> c</li></ol>d", "a\nb c\nd"),
        ("<div>a</div>\n<div>b\n</div><div><br></div><div>c</div>", "a\nb\n\nc"),
        ("<ol>\n  <li>a</li>\n  <li><b>b</b> <p>c</p></li></ol>", "  a\n  b \nc"),
        ("a<b hidden>secret</b><svg><text>Copy</text></svg> b<div style='display:none'>secret</div>", "a b"),
    ],
)
def test_lines_of_code(inner: str, code: str) -> None:
    assert document(f"<html><pre>{inner}</pre>", "a.html").text == f"```\n{code}\n```"


def test_html_metadata() -> None:
    page = (
        '<html><meta property="article:published_time" content="2026-03-01T10:00:00Z"><meta name=date content=later>'
        "<meta name=DC.creator content=Ann><meta property=og:type content=article><p>Oaks."
    )
    assert document(page, "a.html").metadata == {"date": "2026-03-01T10:00:00Z", "author": "Ann"}


@pytest.mark.parametrize("head", ["<?xml version='1.0'?><html>", "<html xmlns='http://www.w3.org/1999/xhtml'>"])
def test_text_after_empty_elements_of_xhtml(head: str) -> None:
    table = "<table><tr><td>a<select/></td><td/><td>b</td></tr></table>"
    page = (
        f"{head}<head><title/><script src='a/b.js' type = \"text/javascript\"\n/></head><body><p><a id='x'/>One<br/>"
        f"<img src='x.png'/>two</p><iframe src='x'/>{table}<div style='display:none'/>secret</div></body></html>"
    )
    assert document(page, "a.xhtml").text == "One\ntwo\n\n| a | b |\n| --- | --- |"


def test_long_tags_of_xhtml_take_linear_time() -> None:
    start = time.thread_time()
    for tag in ("<a ", '<a x="', ' c="<a b=\'" c="\' d=\'"', "<a b", " x", " x='y'", "a", " ", "x = "):
        document("<?xml version='1.0'?><p>Text.</p><a" + tag * (500_000 // len(tag)), "a.html")
    assert time.thread_time() - start < 5


def test_html_main_part() -> None:
    assert document("<html>Out<main><header>Head</header>In</main>", "a.html").text == "Head\n\nIn"
    assert document("<html>Out<article>In</article>", "a.html").text == "In"
    assert document("<html><article>A</article><article>B</article>", "a.html").text == "A\n\nB"
    assert document("<html>Out<main><script>x</script></main>", "a.html").text == "Out"


def test_spans_cannot_multiply_a_page() -> None:
    for span in ("rowspan=60000 colspan=60000", "rowspan=100 colspan=2"):
        cells = f"<tr><td {span}>words<td>more" * 2000
        assert len(document(f"<html><table>{cells}</table>", "a.html").text) < 1_200_000


# --- CSV ---------------------------------------------------------------------------------------------------------


def test_csv_becomes_one_table() -> None:
    parsed = document('id,note\n1,"a, ""b"" | c\nd"\n\n2\n3,x,extra\n', "a.csv")
    assert parsed.text == (
        '| id | note |  |\n| --- | --- | --- |\n| 1 | a, "b" \\| c d |  |\n| 2 |  |  |\n| 3 | x | extra |'
    )
    header = "| id | note |  |\n| --- | --- | --- |"
    assert parsed.marks == (Mark("table", 0, len(parsed.text), header),)
    assert parsed.metadata == {"rows": 3}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiters(delimiter: str) -> None:
    rows = [["name", "amount", "note"], ["Ada", "1", "it's fine"], ["Bob", "2", "yes"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    assert document(text, "a.csv").text.splitlines()[2] == "| Ada | 1 | it's fine |"


@pytest.mark.parametrize(
    ("text", "header", "last"),
    [
        ("Art;Preis (EUR, netto)\nNut;1,50\nOse;2,75\n", "| Art | Preis (EUR, netto) |", "| Ose | 2,75 |"),
        ("1,5;2,5\n3,5;4,5\n", "| 1,5 | 2,5 |", "| 3,5 | 4,5 |"),
        ('name,notes\nBob,"says; hi; there"\nAnn,"x; y"\n', "| name | notes |", "| Ann | x; y |"),
        ('Name;Ort\n"Ada, A.";"Weg 1, Bonn"\n', "| Name | Ort |", "| Ada, A. | Weg 1, Bonn |"),
        ("sep=;\r\nA,a;B\r\n1;2\r\n", "| A,a | B |", "| 1 | 2 |"),
        ('"sep=\t"\nA,a\tB\n1\t2\n', "| A,a | B |", "| 1 | 2 |"),
        ("name\nDoe, John\nBob\n", "| name |  |", "| Bob |  |"),
    ],
)
def test_the_delimiter_gives_the_most_regular_rows(text: str, header: str, last: str) -> None:
    lines = document(text, "a.csv").text.splitlines()
    assert (lines[0], lines[-1]) == (header, last)


@pytest.mark.parametrize("title", ["Umsatz 2023\n\n", "Umsatz 2023;;\n", '"Umsatz 2023";\n'])
def test_the_title_of_a_csv_is_a_paragraph(title: str) -> None:
    parsed = document(f"{title}Art;Menge;Preis\nNut;5;1\nOse;6;2\n", "a.csv")
    table = "| Art | Menge | Preis |\n| --- | --- | --- |\n| Nut | 5 | 1 |\n| Ose | 6 | 2 |"
    assert parsed.text == f"Umsatz 2023\n\n{table}"
    assert marked(parsed, "table") == [table]
    assert parsed.metadata == {"rows": 2}


def test_tsv_is_split_at_tabs_only() -> None:
    assert document("a,x\tb\n1,5\t2\n", "a.tsv").text == "| a,x | b |\n| --- | --- |\n| 1,5 | 2 |"


def test_csv_with_spaces_after_the_delimiter() -> None:
    assert document('a, b\n1, "2, 3"\n', "a.csv").text.splitlines()[2] == "| 1 | 2, 3 |"


def test_csv_of_one_column() -> None:
    assert document("name\nAda\nBob\n", "a.csv").text == "| name |\n| --- |\n| Ada |\n| Bob |"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"5"" pipe",x\n"unclosed,y\n"c, d",z\n', ['| 5" pipe | x |', '| "unclosed | y |', "| c, d | z |"]),
        ('"c\nd",x\n"last,y', ["| c d | x |", '| "last | y |']),
        ('"x" ,"y "z" w"\n"c\nd",x\n', ['| x | y z" w" |', "| c d | x |"]),
    ],
)
def test_a_stray_quote_concerns_one_line(text: str, rows: list[str]) -> None:
    assert document(f"a,b\n{text}", "a.csv").text.splitlines()[2:] == rows


def test_an_unclosed_quote_hides_no_rows() -> None:
    parsed = document('a,b\n"x,1\n' + "y,2\n" * 50_000, "a.csv")
    assert parsed.metadata == {"rows": 50_001}


def test_an_unclosed_quote_hides_no_rows_with_a_raised_field_limit() -> None:
    before = csv.field_size_limit(100 * 2**20)
    try:
        assert document('a,b\n"x,1\n' + "y,2\n" * 50_000, "a.csv").metadata == {"rows": 50_001}
    finally:
        csv.field_size_limit(before)


def test_long_csv_takes_linear_time() -> None:
    start = time.thread_time()
    parsed = document("h," * 20_000 + "\n" + "a,b\n" * 20_000, "a.csv")
    assert parsed.metadata == {"rows": 20_000}
    assert document('a,b\n"x\n' + 'x,"b" c\n' * 20_000 + '"a""b\n' * 20_000, "a.csv").metadata == {"rows": 40_001}
    assert time.thread_time() - start < 5


# --- JSON --------------------------------------------------------------------------------------------------------


def test_notebooks_are_texts_code_and_what_it_printed() -> None:
    picture = {"image/png": "iVBORw0KGgo=" * 100, "text/plain": "<Figure size 640x480 with 1 Axes>"}
    cells = [
        {"cell_type": "markdown", "source": ["# Sales\n", "\n", "By **region**."]},
        {
            "cell_type": "code",
            "source": "for row in rows:\n    print(row)",
            "outputs": [
                {"output_type": "stream", "text": ["north 3\n", "south 5\n"]},
                {"output_type": "display_data", "data": picture},
                {"output_type": "execute_result", "data": {"text/plain": ["8"]}},
                {"output_type": "error", "ename": "KeyError", "evalue": "'west'", "traceback": ["\x1b[0m"]},
                {"output_type": "execute_result", "data": {"text/markdown": "| a |\n| --- |\n| 1 |"}},
            ],
        },
        {"cell_type": "code", "source": [], "outputs": []},
        "damaged",
        {"cell_type": "code", "source": "'```'", "outputs": [{"data": 5}]},
    ]
    notebook = {"nbformat": 4, "metadata": {"language_info": {"name": "python"}}, "cells": cells}
    parsed = document(json.dumps(notebook), "sales.ipynb")
    assert parsed.text == (
        "# Sales\n\nBy **region**.\n\n```python\nfor row in rows:\n    print(row)\n```\n\n"
        "```\nnorth 3\nsouth 5\n```\n\n```\n8\n```\n\n```\nKeyError: 'west'\n```\n\n| a |\n| --- |\n| 1 |\n\n"
        "````python\n'```'\n````"
    )
    assert marked(parsed, "heading") == ["# Sales"]
    assert len(marked(parsed, "code")) == 5


def test_json_becomes_lines() -> None:
    text = '[{"a": {"b": "x\\r\\ny"}, "c": [1, true, null], "d": [{"e": 1.5}]}, {"f": ""}, "\\ud800z"]'
    assert document(text, "a.json").text == "a.b: x\ny\nc: 1, true\nd[0].e: 1.5\n\n\ufffdz"
    assert document('["a", "b"]', "a.json").text == "a\nb"


def test_libraries_are_imported_with_the_first_document() -> None:
    heavy = {"pypdfium2", "selectolax", "markdown_it", "yaml", "defusedxml", "python_calamine", "email", "tree_sitter"}
    code = f"import sys, ragfm.parsing; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- Real files --------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["unstructured", "markitdown", "docling", "malformed"])
def test_real_files_end_in_a_document_or_a_reason(data: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.parsing.own.media.ocr.find_spec", lambda _: None)  # the many scans would take minutes
    parsed = 0
    for path in sorted(path for path in (data / "documents" / folder).rglob("*") if path.is_file()):
        start = time.thread_time()
        try:
            check_invariants(parse(Blob(path.read_bytes()), path.name))
            parsed += 1
        except ParseError as error:
            assert path.name in str(error)  # noqa: PT017  either outcome is right
        assert time.thread_time() - start < 10, path
    assert parsed > 20


@pytest.mark.data
def test_real_files_are_read_correctly(data: Path) -> None:
    def read(path: str) -> Document:
        return document((data / "documents" / path).read_bytes(), path)

    page = read("unstructured/fake-html-cp1252.html")
    assert "Die schöne Frau" in page.text
    assert "4,25 €" in page.text
    law = read("unstructured/fake-html-pre.htm")
    assert "UNITING AND STRENGTHENING AMERICA" in law.text
    assert read("unstructured/fake-text-utf-16-le.txt").text == read("unstructured/fake-text-utf-32.txt").text
    duck = read("docling/html/sources/wiki_duck.html")
    assert (2, "Taxonomy") in [(level, words.split("[")[0].strip()) for level, words in headings(duck)]
    cups = read("unstructured/stanley-cups-utf-16.csv")
    assert cups.text.splitlines()[-1] == read("unstructured/stanley-cups.csv").text.splitlines()[-1]
