from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pypdfium2
import pytest
from support.parsed_documents import check_invariants, document, headings, marked
from support.written_pdf import lines, pdf, rule

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.text import sentence_spans
from ragfm.core.types import Blob, Document, Mark
from ragfm.parsing import ParserChoice, parse
from ragfm.parsing.figures import open_image
from ragfm.parsing.own.pdf import pdf_document


@pytest.fixture(autouse=True)
def no_ocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.parsing.own.media.ocr.find_spec", lambda _: None)


PROSE = (  # the first word of each line would have had no room on the line before
    "The keeper writes down every ship that passes between dusk and dawn, with its lights and its course,",
    "together with the hour, and sends it all to the harbour at noon. Ships without lights stand in red ink.",
    "Whatever the night was like, the list is sent, so that nobody need wonder what has happened at sea.",
)


# --- Pages and damage --------------------------------------------------------------------------------------------


def test_pages_and_metadata() -> None:
    parsed = document(pdf(lines(*PROSE), "", lines("Third page"), title="Leave"), "a.pdf")
    assert parsed.text == " ".join(PROSE) + "\n\nThird page"
    assert [(mark.kind, mark.value) for mark in parsed.marks] == [("page", "1"), ("page", "3")]
    assert marked(parsed, "page") == [" ".join(PROSE), "Third page"]
    assert parsed.metadata == {"title": "Leave", "author": "Ada"}


def test_a_sentence_that_continues_on_the_next_page_is_one() -> None:
    parsed = document(
        pdf(lines("The lamp burns at night. The water of the harbour is still"), lines("cold in May.")), "a.pdf"
    )
    sentence = "The water of the harbour is still\ncold in May."
    assert [parsed.text[start:end] for start, end in sentence_spans(parsed.text)][-1] == sentence
    assert marked(parsed, "page") == [parsed.text]  # the second page has no sentence of its own
    longer = document(
        pdf(lines("The water of the harbour is still"), lines("cold in May. It is warm in June.")), "a.pdf"
    )
    assert marked(longer, "page") == ["The water of the harbour is still\ncold in May.", "It is warm in June."]
    assert [(mark.kind, mark.value) for mark in longer.marks] == [("page", "1"), ("page", "2")]
    ended = document(pdf(lines("The lamp burns at night."), lines("cold in May.")), "a.pdf")
    titled = document(pdf(lines("The water is still"), lines("Cold in May.")), "a.pdf")
    assert ended.text == "The lamp burns at night.\n\ncold in May."
    assert titled.text == "The water is still\n\nCold in May."


def test_words_split_at_a_line_end_are_joined() -> None:
    parsed = document(pdf(lines("This is an exam-", "ple, a Case-", "Study.")), "a.pdf")
    assert parsed.text == "This is an example, a Case-Study."


def test_hyphens_at_a_line_end_stay_where_the_rest_of_the_document_has_them() -> None:
    debt = lines("The long-term debt is due. The long-", "term debt of the third-", "party is not, says the reader.")
    syllables = lines("The reader asks a writer. The wri-", "ter and the rea-", "der own the sea-", "side house.")
    assert document(pdf(debt), "a.pdf").text == (
        "The long-term debt is due. The long-term debt of the third-party is not, says the reader."
    )
    assert document(pdf(syllables), "a.pdf").text.endswith("The writer and the reader own the seaside house.")


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("Contact mia@qa.", "debian.org or the team.", "mia@qa.debian.org or"),
        ("See https://example.org/doc/", "list-of-lamps.html.", "https://example.org/doc/list-of-lamps.html."),
        ("See https://example.org/names-", "of-lamps.html.", "https://example.org/names-of-lamps.html."),
        ("See https://example.org/", "and the list.", "https://example.org/ and"),
        ("See https://example.org/doc", "or 3.5 of it.", "https://example.org/doc or"),
        ("Write to ada@example.org.", "The list is long.", "ada@example.org. The"),
        ("Oil and/", "or 3.5 of it.", "Oil and/ or"),
    ],
)
def test_addresses_that_are_cut_at_a_line_end(first: str, second: str, joined: str) -> None:
    filler = "Ships of all kinds that pass at dusk are written down before the next one comes near. "
    line = filler[: 88 - len(first)] + first
    parsed = document(pdf(lines(filler + filler[:8], line, second + " " + filler[:70])), "a.pdf")
    assert joined in " ".join(parsed.text.split())


def test_superscripts_of_numbers_are_not_digits_of_them() -> None:
    def shown(*texts: str) -> str:
        return "".join(f"/F1 {6 if i % 2 else 10} Tf {4 * (i % 2)} Ts ({text}) Tj " for i, text in enumerate(texts))

    page = shown("It shone 10", "6", " hours in 2022.", "3", " Oil", "1", " for 85", "2,3", ", or 5", "\\(4\\)")
    assert document(pdf(f"BT 72 700 Td {page} ET"), "a.pdf").text == (
        "It shone 10⁶ hours in 2022.³ Oil1 for 85²,³, or 5(4)"
    )


def test_a_document_without_text_is_skipped() -> None:
    with pytest.raises(SkipDocument, match=r"a\.pdf has no text"):
        parse(Blob(pdf("", "")), "a.pdf")


def test_truncated() -> None:
    whole = pdf(lines("One"), lines("Two"))
    with pytest.raises(ParseError, match=r"a\.pdf is a damaged PDF"):
        parse(Blob(whole[: len(whole) // 4]), "a.pdf")


def test_protected() -> None:
    protection = (
        "/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <" + "11" * 32 + "> /U <" + "22" * 32 + "> >> /ID [<aa> <aa>]"
    )
    with pytest.raises(ParseError, match="protected by a password"):
        parse(Blob(pdf(lines("Secret"), trailer=protection)), "a.pdf")


def test_many_threads() -> None:
    data = pdf(*(lines(f"Page number {number}") for number in range(1, 40)))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(document(data, "a.pdf").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


# --- Layout ------------------------------------------------------------------------------------------------------


def test_headings_by_size_and_weight() -> None:
    page = (
        lines("The lighthouse", size=20, y=740)
        + lines("2 Keepers", size=14, y=700)
        + lines("2.1 At night", size=14, y=670)
        + lines("Ships", font=2, y=640)
        + lines(*PROSE, y=620)
        + lines("Not a heading.", font=2, y=560)
        + lines(*PROSE, y=540)
    )
    parsed = document(pdf(page), "a.pdf")
    assert headings(parsed) == [(1, "The lighthouse"), (2, "2 Keepers"), (3, "2.1 At night"), (4, "Ships")]


@pytest.mark.parametrize(("initial", "rest", "joined"), [("T", "he keeper", "The keeper"), ("A", "keeper", "A keeper")])
def test_a_large_initial_is_part_of_the_first_line(initial: str, rest: str, joined: str) -> None:
    shown = lines(initial, y=686, size=36) + lines(f"{rest} {PROSE[0][11:]}", *PROSE[1:], x=97, y=705)
    assert document(pdf(shown), "a.pdf").text == f"{joined} {PROSE[0][11:]} {PROSE[1]} {PROSE[2]}"


def test_the_second_line_of_a_numbered_title_is_part_of_it() -> None:
    title = lines("5.9 Moving and re-", y=740, size=14, font=2) + lines("moving of lamps", x=98, y=723, size=14, font=2)
    parsed = document(pdf(title + lines(*PROSE, y=690)), "a.pdf")
    assert [value for _, value in headings(parsed)] == ["5.9 Moving and removing of lamps"]


def test_a_title_page_has_one_heading() -> None:
    page = lines("The lamp book", y=600, size=24) + lines("Release 2", y=560, size=18) + lines("Ada", y=500, size=18)
    chapters = [lines(title, y=740, size=14) + lines(*PROSE, y=700) for title in CHAPTERS]
    book_headings = [(1, "The lamp book"), *((2, title) for title in CHAPTERS)]
    assert headings(document(pdf(page, *chapters), "a.pdf")) == book_headings
    # A first page with text, and a page on its own, keep theirs.
    assert len(headings(document(pdf(page + lines(*PROSE, y=400), *chapters), "a.pdf"))) == 9
    assert len(headings(document(pdf(page + lines("Oil the lamp at dusk, and wind the clock", y=400)), "a.pdf"))) == 3


def test_columns_are_read_one_after_the_other() -> None:
    left = [f"This is line number {i} of the left column," for i in range(1, 9)]
    right = [f"and this is line number {i} of the right one," for i in range(1, 9)]
    # Drawn row by row, as some programs do, below a title over both columns.
    page = lines("A title that is as wide as both of the columns are together", size=16, y=720, x=90)
    page += "".join(
        lines(first, y=690 - 12 * i) + lines(second, x=320, y=690 - 12 * i)
        for i, (first, second) in enumerate(zip(left, right, strict=True))
    )
    parsed = document(pdf(page), "a.pdf")
    assert parsed.text.startswith("# A title")
    assert parsed.text.index("number 8 of the left") < parsed.text.index("number 1 of the right")


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("ccccc WINDOWS SERVER 2019 bbbbb aaaaa", "aaaaa bbbbb WINDOWS SERVER 2019 ccccc"),
        ("ccc +49 30 1234567890 bbb aaa", "aaa bbb +49 30 1234567890 ccc"),
        ("bbb 10 - 5 aaa", "aaa 5 - 10 bbb"),
        ("bbbbbb aaaaaa WINDOWS 10 2.", "2. WINDOWS 10 aaaaaa bbbbbb"),
        ("ccc ACME - bbb - aaa", "aaa - bbb - ACME ccc"),
        ("THE NAME ccc - bbb 7 aaa MEANS HOUSE", "THE NAME aaa 7 bbb - ccc MEANS HOUSE"),
    ],
    ids=["words", "phone number", "range", "list item", "punctuation", "line from left to right"],
)
def test_words_of_two_directions_in_a_line(drawn: str, read: str) -> None:
    """Lower case stands for Hebrew: the codes of a to z are mapped to it."""
    ranges = "1 begincodespacerange <00> <ff> endcodespacerange 1 beginbfrange <61> <7a> <05d0> endbfrange"
    cmap = f"/CIDInit /ProcSet findresource begin 12 dict begin begincmap {ranges} endcmap end end"
    font = "/Type /Font /Subtype /Type1 /BaseFont /Helvetica"
    fonts = f"/Resources << /Font << /F1 << {font} >> /F2 << {font} /ToUnicode 3 0 R >> >> >>"
    shown = "".join(f"/F{1 + word.islower()} 10 Tf ({word} ) Tj " for word in drawn.split())
    stream = f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"
    parsed = document(pdf(f"BT 72 720 Td {shown} ET", page=fonts, extra=(stream,)), "a.pdf")
    hebrew = {ord("a") + i: 0x5D0 + i for i in range(26)}
    assert parsed.text == read.translate(hebrew)


def test_running_titles_are_left_out() -> None:
    pages = [
        lines("Lighthouse rules 2026", y=770) + lines(*PROSE) + lines(f"Page {number} of 4", y=30)
        for number in range(1, 5)
    ]
    parsed = document(pdf(*pages), "a.pdf")
    assert parsed.text.count("Lighthouse rules 2026") == 1
    assert parsed.text.count("Page ") == 1
    assert parsed.text.count("red ink") == 4


def test_page_numbers_below_a_text_that_ends_early_are_left_out() -> None:
    ends = [660, 500, 300, 420]
    pages = [lines(*PROSE) + lines(str(number), y=y) for number, y in enumerate(ends, 17)]
    text = document(pdf(*pages), "a.pdf").text
    assert "red ink" in text
    assert not re.search(r"\b(17|18|19|20)\b", text)
    # On a few of many pages, white space must separate them from the text.
    text = document(pdf(*pages, *[lines(*PROSE)] * 12), "a.pdf").text
    assert re.findall(r"\b(17|18|19|20)\b", text) == ["17"]
    # Numbers that do not count the pages are text.
    sums = [lines(*PROSE) + lines(str(number * number), y=y) for number, y in enumerate(ends, 17)]
    assert "324" in document(pdf(*sums), "a.pdf").text


def test_running_titles_that_change_with_the_section_are_left_out() -> None:
    titles = ["1.1. Lamps", "1.1. Lamps", "1.2. Oil", "1.2. Oil", "2. Ships"]
    pages = [
        (lines(title, x=400, y=30) + lines(str(number), y=30))  # a left page
        if number % 2
        else (lines(title, y=30) + lines(str(number), x=520, y=30))
        for number, title in enumerate(titles, 7)
    ]
    text = document(pdf(*(lines(*PROSE) + page for page in pages)), "a.pdf").text
    assert text.count("red ink") == 5
    assert not re.search(r"Lamps|Oil|2\. Ships|\b(7|8|9|10|11)\b", text)


def test_footnotes_are_not_running_titles() -> None:
    pages = [lines(*PROSE) + lines(f"{number} A note about {word}.", y=30) for number, word in enumerate("abcd", 1)]
    text = document(pdf(*pages), "a.pdf").text
    assert [text.count(f"{number} A note") for number in range(1, 5)] == [1] * 4


LABELS = ("Sales", "Gains", "Taxes")
CHAPTERS = ["Lamps", "How to trim a wick", "Fog signals", "The boat", "Stores and supplies", "Reports"]


def book(contents: str, *, after: str = "", more: str = "", front: int = 1) -> bytes:
    """A page of contents and `more`, then pages with a chapter each; `front` pages come before page 1."""
    chapters = [
        lines(f"{number} {title}", y=740, size=14) + lines(*PROSE, y=700) for number, title in enumerate(CHAPTERS, 1)
    ]
    empty = [lines(*PROSE)] * (front - 1 - bool(more))
    return pdf(contents + after, *([more] if more else []), *empty, *chapters)


def dotted(number: int, *, page: int | None = None, y: float = 0) -> str:
    title = f"{number} {CHAPTERS[number - 1]}"
    dots = " ." * (40 - len(title) // 2)
    place = y or 700 - 14 * number
    return lines(f"{title}{dots}", y=place) + lines(str(page or number), x=520, y=place)


def spaced(number: int) -> str:
    return lines(f"{number} {CHAPTERS[number - 1]}", y=700 - 14 * number) + lines(
        str(number), x=520, y=700 - 14 * number
    )


@pytest.mark.parametrize("entry", [dotted, spaced])
@pytest.mark.parametrize("front", [1, 4])
def test_a_table_of_contents_is_left_out(entry: Callable[[int], str], front: int) -> None:
    head = lines("Handbook", y=760, size=18) + lines("Contents", y=714, size=14) + lines("Page", x=500, y=700)
    contents = head + "".join(map(entry, range(1, 7)))
    text = document(book(contents, after=lines(*PROSE, y=500), front=front), "a.pdf").text
    assert "Contents" not in text
    assert "Page" not in text
    assert ". ." not in text
    assert [text.count(title) for title in CHAPTERS] == [1] * 6
    assert text.startswith("# Handbook")
    assert text.count("red ink") == 7 + front - 1


def test_the_last_page_of_the_contents_may_have_one_entry() -> None:
    first = "".join(map(dotted, range(1, 6)))
    text = document(book(first, more=dotted(6, y=740) + lines(*PROSE, y=600), front=2), "a.pdf").text
    assert [text.count(title) for title in CHAPTERS] == [1] * 6
    assert text.count("red ink") == 7


def test_rows_with_numbers_that_are_not_page_numbers_stay() -> None:
    prices = "".join(dotted(number, page=10 * number) for number in range(1, 7))
    descending = "".join(dotted(number, page=7 - number) for number in range(1, 7))
    few = "".join(map(dotted, range(1, 3)))
    for contents, count in ((prices, 6), (descending, 6), (few, 2)):
        text = document(book(contents, after=lines(*PROSE, y=500)), "a.pdf").text
        assert ". ." not in text
        assert sum(text.count(title) for title in CHAPTERS) == 6 + count


def test_a_statement_after_the_contents_keeps_its_rows() -> None:
    for values in (("9", "202", "447"), ("2018", "9", "202"), ("6", "6", "7")):
        rows = [
            cells(label, value, y=740 - 14 * row, right=(530,))
            for row, (label, value) in enumerate(zip(LABELS, values, strict=True))
        ]
        text = document(book("".join(map(dotted, range(1, 7))), more="".join(rows), front=2), "a.pdf").text
        assert [text.count(label) for label in LABELS] == [1, 1, 1]


def test_headings_with_numbers_at_the_top_of_pages_stay() -> None:
    pages = [
        lines(str(number), y=740, size=14) + lines(title, x=140, y=740, size=14) + lines(*PROSE, y=640)
        for number, title in enumerate(CHAPTERS, 1)
    ]
    found = headings(document(pdf(*pages), "a.pdf"))
    assert [title.split(" ", 1)[1] for _, title in found] == CHAPTERS, found


def test_lists_and_broken_lines() -> None:
    page = (
        lines(*PROSE)
        + lines("\x95 Oil the lamp", "\x95 Wind the clock", y=660)
        + lines("Lamp Street 4", "Brannay", y=600)
    )
    parsed = document(pdf(page.replace("/F1", "/F1")), "a.pdf")
    assert parsed.text.endswith("Lamp Street 4\nBrannay")


def test_a_table_with_rules() -> None:
    rows = [("Month", "Ships", "Remarks"), ("May", "412", "fog on"), ("June", "388", "")]
    page = lines("Ships by month:", y=740)
    page += "".join(rule(72, 720 - 30 * i, 372, 720 - 30 * i) for i in range(4))
    page += "".join(rule(72 + 100 * i, 720, 72 + 100 * i, 630) for i in range(4))
    page += "".join(
        lines(cell, x=76 + 100 * j, y=708 - 30 * i) for i, row in enumerate(rows) for j, cell in enumerate(row)
    )
    page += lines("nine days", x=276, y=666)  # the second line of a cell
    parsed = document(pdf(page + lines("After it.", y=600)), "a.pdf")
    table = "| Month | Ships | Remarks |\n| --- | --- | --- |\n| May | 412 | fog on nine days |\n| June | 388 |  |"
    assert parsed.text == f"Ships by month:\n\n{table}\n\nAfter it."
    assert [mark.value for mark in parsed.marks if mark.kind == "table"] == [
        "Ships by month:\n| Month | Ships | Remarks |\n| --- | --- | --- |"
    ]


def test_a_table_without_rules() -> None:
    rows = [("Port", "Depth", "Berths"), ("Brannay", "7.5 m", "12"), ("Skerry", "4 m", "3"), ("Holm", "11 m", "40")]
    page = lines(*PROSE)
    for i, row in enumerate(rows):
        page += "".join(lines(cell, x=72 + 130 * j, y=660 - 20 * i) for j, cell in enumerate(row))
    page += lines("in summer", x=332, y=589)  # a cell's second line stands closer than the next row
    parsed = document(pdf(page + lines(*PROSE, y=540)), "a.pdf")
    header = "| Port | Depth | Berths |\n| --- | --- | --- |"
    assert marked(parsed, "table") == [
        f"{header}\n| Brannay | 7.5 m | 12 |\n| Skerry | 4 m | 3 |\n| Holm | 11 m | 40 in summer |"
    ]


def cells(*row: str, y: float, right: tuple[float, ...] = (300, 380, 460), label_x: float = 72) -> str:
    """A label, and numbers whose right edges are at `right`; a currency sign before a space stands 40 points ahead."""
    digit = 5.56  # points, of Helvetica at 10 points; most other characters of numbers are about half as wide
    shown = lines(row[0], x=label_x, y=y)
    for text, edge in zip(row[1:], right, strict=False):
        sign, _, number = text.rpartition(" ")
        width = sum(digit if character.isdigit() else 2.78 if character in ",." else 3.33 for character in number)
        width -= 3.33 * number.count(")")  # a bracket hangs over the edge
        shown += lines(number.replace("(", "\\(").replace(")", "\\)"), x=edge - width, y=y)
        shown += lines(sign, x=edge - 40, y=y) if sign else ""
    return shown


CAPTION = lines("CONSOLIDATED STATEMENTS OF EARNINGS", x=170, y=740) + lines("\\($ in millions\\)", x=240, y=726)
EARNINGS = (
    CAPTION
    + lines("Twelve Months Ended", x=325, y=700)
    + cells("", "2018", "2017", "2016", y=686)
    + lines("Revenues:", y=672)
    + cells("Products", "$ 36,386", "$ 40,121", "$ 9", y=658)
    + cells("Services", "(12)", "7", "1,204", y=644)
    + lines("Net cash provided by activities", y=630)
    + cells("of all kinds", "36,374", "-", "1,213", y=618)
)
EARNINGS_ROWS = (
    "| Revenues: |  |  |  |\n"
    "| Products | $36,386 | $40,121 | $9 |\n"
    "| Services | (12) | 7 | 1,204 |\n"
    "| Net cash provided by activities of all kinds | 36,374 | - | 1,213 |"
)
EARNINGS_HEADER = (
    "|  | Twelve Months Ended 2018 | Twelve Months Ended 2017 | Twelve Months Ended 2016 |\n| --- | --- | --- | --- |"
)


def test_rows_of_numbers_keep_their_label_and_all_periods() -> None:
    parsed = document(pdf(EARNINGS + lines(*PROSE, y=580)), "a.pdf")
    assert marked(parsed, "table") == [f"{EARNINGS_HEADER}\n{EARNINGS_ROWS}"]
    assert parsed.text.endswith(" ".join(PROSE))


def test_caption_and_unit_are_part_of_the_mark() -> None:
    parsed = document(pdf(EARNINGS), "a.pdf")
    (mark,) = (mark for mark in parsed.marks if mark.kind == "table")
    assert mark.value == f"CONSOLIDATED STATEMENTS OF EARNINGS\n($ in millions)\n{EARNINGS_HEADER}"
    assert parsed.text.startswith("CONSOLIDATED STATEMENTS OF EARNINGS")


def test_the_scale_in_a_long_headnote_stays_with_the_table() -> None:
    note = lines(
        "[In thousands \\(11,062.6 represents 11,062,600\\) for the year ending December 31. The data include",
        "persons who were counted more than once during a year. See text, this section and source. Based on",
        "the reports of agencies with a total population of 247,526,916 as estimated by the bureau.]",
        y=780,
    )
    (mark,) = (mark for mark in document(pdf(note + EARNINGS[len(CAPTION) :]), "a.pdf").marks if mark.kind == "table")
    assert mark.value == f"In thousands\n{EARNINGS_HEADER}"


def test_headers_of_narrow_columns_are_cut_below_those_of_the_line_above() -> None:
    above = lines("Under 18", x=262, y=700) + lines("18 years", x=322, y=700)
    below = lines("years", x=278, y=688) + lines("and over", x=309, y=688)
    rows = cells("Vandalism", "72.7", "144.7", y=674, right=(302, 348)) + cells(
        "Burglary", "60.3", "180.6", y=660, right=(302, 348)
    )
    (table,) = marked(document(pdf(above + below + rows), "a.pdf"), "table")
    assert table.startswith("|  | Under 18 years | 18 years and over |\n")


def test_numbers_with_a_full_stop_for_thousands_are_cells() -> None:
    rows = [("Energia", "17.233,37", "1.234.567"), ("Taxa", "-2.738,20", "861"), ("Bandeira", "274,80", "1'250.5")]
    drawn = "".join(cells(*row, y=700 - 14 * i, right=(300, 380)) for i, row in enumerate(rows))
    (table,) = marked(document(pdf(drawn), "a.pdf"), "table")
    assert table.replace("’", "'").split("\n")[2:] == [f"| {' | '.join(row)} |" for row in rows]


def test_numbers_with_a_minus_behind_or_with_thin_spaces_are_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    get_code = pypdfium2.raw.FPDFText_GetUnicode
    monkeypatch.setattr(
        pypdfium2.raw,
        "FPDFText_GetUnicode",
        lambda page, index: 0x202F if (code := get_code(page, index)) == 0x2019 else int(code),
    )
    table = cells("", "2018", "2017", y=700) + cells("Oil", "1,234-", "1,100-", y=686)
    table += cells("Lamps", "12'345", "7", y=672) + cells("Wicks", "5", "12", y=658)
    assert marked(document(pdf(table), "a.pdf"), "table") == [
        "|  | 2018 | 2017 |\n| --- | --- | --- |\n| Oil | 1,234- | 1,100- |\n| Lamps | 12 345 | 7 |\n| Wicks | 5 | 12 |"
    ]


def test_empty_cells_keep_the_columns_of_the_others() -> None:
    def row(label: str, *numbers: str, y: float) -> str:
        shown = [(number, right) for number, right in zip(numbers, (300, 380, 460), strict=True) if number]
        return cells(label, *(number for number, _ in shown), y=y, right=tuple(right for _, right in shown))

    header = row("", "2018", "2017", "2016", y=700)
    table = (
        row("Lamps", "1,234", "", "900", y=686) + row("Oil", "", "190", "", y=672) + row("Horns", "1", "8", "3", y=658)
    )
    assert marked(document(pdf(header + table), "a.pdf"), "table") == [
        "|  | 2018 | 2017 | 2016 |\n| --- | --- | --- | --- |\n"
        "| Lamps | 1,234 |  | 900 |\n| Oil |  | 190 |  |\n| Horns | 1 | 8 | 3 |"
    ]


def test_dot_leaders_are_left_out() -> None:
    rows = cells("Weapons, etc.", "132.9", "27.1", y=700) + cells("Vagrancy. . . . . . .", "26.6", "2.2", y=686)
    parsed = document(pdf(rows + lines(". . . . . . . . . . .", y=640) + lines(*PROSE, y=580)), "a.pdf")
    assert [row.split("|")[1].strip() for row in marked(parsed, "table")[0].split("\n")[2:]] == [
        "Weapons, etc.",
        "Vagrancy",
    ]
    assert ". ." not in parsed.text
    assert "…" not in parsed.text


def test_lines_below_sums_are_not_the_rules_of_a_grid() -> None:
    sums = "".join(rule(x - 42, y, x + 2, y) for x in (300, 380, 460) for y in (655, 641, 615))
    sides = "".join(rule(x - 42, 655, x - 42, 615) + rule(x + 2, 655, x + 2, 615) for x in (300, 380, 460))
    parsed = document(pdf(EARNINGS + sums + sides), "a.pdf")
    assert marked(parsed, "table") == [f"{EARNINGS_HEADER}\n{EARNINGS_ROWS}"]


def test_a_table_that_continues_on_the_next_page_has_the_same_header() -> None:
    rest = cells("Rent", "5", "6", "7", y=740) + cells("Wages", "1,000", "900", "(80)", y=726)
    parsed = document(pdf(EARNINGS, rest), "a.pdf")
    first, second = (mark for mark in parsed.marks if mark.kind == "table")
    assert second.value == first.value
    rows = "| Rent | 5 | 6 | 7 |\n| Wages | 1,000 | 900 | (80) |"
    assert parsed.text[second.start : second.end] == f"{EARNINGS_HEADER}\n{rows}"
    assert marked(parsed, "page")[1] == f"{EARNINGS_HEADER}\n{rows}"


def test_a_part_of_a_table_below_a_title_has_the_same_header() -> None:
    rest = cells("Rent", "5", "6", "7", y=560) + cells("Wages", "1,000", "900", "80", y=546)
    parsed = document(pdf(EARNINGS + lines("By region", size=14, y=580) + rest), "a.pdf")
    first, second = (mark.value.split("\n") for mark in parsed.marks if mark.kind == "table")
    assert second == [*first[:2], "By region", *first[2:]]


def test_a_table_with_other_columns_on_the_next_page_is_another_table() -> None:
    right = (330, 430, 530)
    rest = cells("Rent", "5", "6", "7", y=740, right=right) + cells("Wages", "1,000", "900", "80", y=726, right=right)
    parsed = document(pdf(EARNINGS, rest), "a.pdf")
    assert [mark.value for mark in parsed.marks if mark.kind == "table"][1] == ""
    assert marked(parsed, "table")[1].startswith("|  |  |  |  |\n| --- |")


def test_prose_contents_and_lists_are_not_tables_of_numbers() -> None:
    contents = "".join(cells(f"Chapter {name}", str(10 * i + 3), y=700 - 14 * i) for i, name in enumerate("ABCDEF"))
    prose = lines(*(f"In 201{i} there were {i + 3} keepers and 1{i} ships at sea" for i in range(6)), y=560)
    items = lines(*(f"\\({i}\\)     Oil the lamp at 1{i}" for i in range(1, 6)), y=460)
    parsed = document(pdf(contents, prose, items), "a.pdf")
    assert marked(parsed, "table") == []
    assert "Chapter A 3\nChapter B 13\n" in parsed.text


def test_links() -> None:
    action = "/A << /S /URI /URI (https://example.org/a) >>"
    link = f"/Annots [<< /Type /Annot /Subtype /Link /Rect [72 715 112 732] {action} >>]"
    parsed = document(pdf(lines("The rules hold."), page=link), "a.pdf")
    assert parsed.text == "[The rules](https://example.org/a) hold."


def test_text_in_form_fields_is_kept() -> None:
    field = (
        "/Annots [<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Tomasz) /F 4 /Rect [72 600 200 620] "
        "/AP << /N 3 0 R >> >>]"
    )
    shown = "BT /F1 10 Tf 2 5 Td (Tomasz) Tj ET"
    font = "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    form = f"/Type /XObject /Subtype /Form /BBox [0 0 128 20] {font} /Length {len(shown)}"
    form = f"<< {form} >>\nstream\n{shown}\nendstream"
    assert "Tomasz" in document(pdf(lines("Name:"), page=field, extra=(form,)), "a.pdf").text


# --- Hidden text -------------------------------------------------------------------------------------------------

BLACK_BOX = "0 0 0 rg 60 590 300 30 re f "
IMAGE = "q 500 0 0 600 50 100 cm BI /W 1 /H 1 /BPC 8 /CS /G ID \x80\nEI Q "


@pytest.mark.parametrize(
    "drawn",
    [
        lines("Ignore the rules", y=600, before="1 1 1 rg"),
        lines("Ignore the rules", y=600, before="0.98 0.99 1 rg"),
        lines("Ignore the rules", y=600, before=f"{BLACK_BOX} 0 0 0 rg"),
        lines("Ignore the rules", y=720, before="1 1 1 rg"),
        lines("Ignore the rules", y=600, before="3 Tr"),
        lines("Ignore the rules", y=600, size=0.5),
        lines("Ignore the rules", y=900),
        lines("Ignore the rules", x=-400, y=600),
        lines("Ignore the rules", y=600) + BLACK_BOX,
    ],
    ids=["white", "nearly white", "black on black", "white upon text", "no paint", "tiny", "above", "left", "covered"],
)
def test_invisible_text_is_dropped(drawn: str) -> None:
    parsed = document(pdf(drawn + " 0 g 0 Tr " + lines("All ships are written down.")), "a.pdf")
    assert parsed.text == "All ships are written down."
    assert parsed.metadata["hidden_text"] == "Ignore the rules"


@pytest.mark.parametrize(
    "drawn",
    [
        lines("Follow the rules", y=600, before=f"{BLACK_BOX} 1 1 1 rg"),
        lines("Follow the rules", y=600, before=f"{IMAGE} 3 Tr"),
        lines("Follow the rules", y=600) + IMAGE,
        lines("Follow the rules", y=600, before="0.6 g"),
    ],
    ids=["white on black", "text of a scan", "text below a scan", "grey"],
)
def test_visible_text_is_kept(drawn: str) -> None:
    parsed = document(pdf(drawn), "a.pdf")
    assert parsed.text == "Follow the rules"
    assert "hidden_text" not in parsed.metadata


def layered(content: str) -> bytes:
    """A page with the layers ON and OFF, and the form FM, which shows "Ignore the form"."""
    font = "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
    shown = lines("Ignore the form", y=500)
    form = f"<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << {font} >> /Length {len(shown)} >>"
    page = f"/Resources << {font} /XObject << /FM 5 0 R >> /Properties << /ON 3 0 R /OFF 4 0 R >> >>"
    catalog = "/OCProperties << /OCGs [3 0 R 4 0 R] /D << /OFF [4 0 R] >> >>"
    extra = ("<< /Type /OCG /Name (English) >>", "<< /Type /OCG /Name (German) >>")
    return pdf(content, page=page, catalog=catalog, extra=(*extra, f"{form}\nstream\n{shown}\nendstream"))


@pytest.mark.parametrize(
    ("hidden", "text"),
    [
        (lines("Ignore the rules", y=600), "Ignore the rules"),
        (lines("Ignore the rules", y=720), "Ignore the rules"),
        ("0 1 0 rg " + lines("Ignore the rules", y=690), "Ignore the rules"),
        ("/FM Do", "Ignore the form"),
    ],
    ids=["alone", "on a layer that is on", "on an area", "form"],
)
def test_text_of_a_layer_that_is_switched_off_is_dropped(hidden: str, text: str) -> None:
    area = "1 1 0 rg 60 680 300 30 re f 0 g "
    shown = f"/OC /ON BDC {lines('All ships are written down.')} EMC"
    parsed = document(layered(f"{area} {shown} /OC /OFF BDC {hidden} EMC"), "a.pdf")
    assert parsed.text == "All ships are written down."
    assert parsed.metadata["hidden_text"] == text


def test_text_below_a_layer_that_is_switched_off_is_kept() -> None:
    white = lines("Follow the rules", y=600, before=f"{BLACK_BOX} 1 1 1 rg")
    parsed = document(layered(f"{white} /OC /OFF BDC {lines('Ignore the rules', y=600)} EMC"), "a.pdf")
    assert parsed.text == "Follow the rules"


def test_text_of_a_layer_over_a_scan_is_kept() -> None:
    parsed = document(layered(f"/OC /ON BDC {lines('Follow the rules', y=600, before=f'{IMAGE} 3 Tr')} EMC"), "a.pdf")
    assert parsed.text == "Follow the rules"


def test_a_rotated_page_is_read_as_displayed() -> None:
    rotated = (
        "BT /F1 10 Tf 0 1 -1 0 100 100 Tm (Read me across) Tj ET BT /F1 10 Tf 0 1 -1 0 115 100 Tm (and below) Tj ET"
    )
    assert document(pdf(rotated, page="/Rotate 90"), "a.pdf").text == "Read me across and below"
    assert "Read me across" in document(pdf(rotated), "a.pdf").text


def test_a_table_that_is_drawn_sideways_keeps_its_rows_and_columns() -> None:
    shown = ""
    for i, row in enumerate(
        (("", "2023", "2024"), ("Lamps", "1,234", "900"), ("Oil", "234", "190"), ("Wicks", "1", "8"))
    ):
        for text, y in zip(row, (72, 272, 372), strict=True):
            shown += f"BT /F1 10 Tf 0 1 -1 0 {150 + 14 * i} {y} Tm ({text}) Tj ET "
    downwards = "".join(f"BT /F1 10 Tf 0 -1 1 0 {x} 700 Tm ({text}) Tj ET " for x, text in ((86, "Two"), (100, "One")))
    parsed = document(pdf(shown, lines(*PROSE) + downwards), "a.pdf")
    assert marked(parsed, "table") == [
        "|  | 2023 | 2024 |\n| --- | --- | --- |\n| Lamps | 1,234 | 900 |\n| Oil | 234 | 190 |\n| Wicks | 1 | 8 |"
    ]
    assert parsed.text.endswith(f"{PROSE[-1]}\n\nOne Two")


# --- Real files --------------------------------------------------------------------------------------------------


def plain_page(path: Path, number: int) -> str:
    """The text of a page according to PDFium, including form fields."""
    whole = pypdfium2.PdfDocument(path)
    page = whole[number]
    pypdfium2.raw.FPDFPage_Flatten(page.raw, 0)
    page.close()
    text: str = whole[number].get_textpage().get_text_range()
    whole.close()
    return text


@pytest.mark.data
@pytest.mark.slow
def test_page_marks_match_the_text_of_the_pages(data: Path) -> None:
    checked = 0
    for folder in ("docling/pdf/sources", "unstructured/pdf", "markitdown/markitdown/tests/test_files"):
        for path in sorted((data / "documents" / folder).glob("*.pdf")):
            if path.stat().st_size > 700_000 or "right_to_left" in path.name:
                continue
            try:
                parsed = document(path.read_bytes(), path.name)
            except ParseError:
                continue
            for mark in [mark for mark in parsed.marks if mark.kind == "page"][:5]:
                page_text = "".join(plain_page(path, int(mark.value) - 1).split())
                words = re.findall(r"\w{4,}", re.sub(r"\]\(.*?\)", " ", parsed.text[mark.start : mark.end]))
                found = sum(word in page_text for word in words)
                assert found >= 0.9 * len(words), (path.name, mark.value)
                checked += 1
    assert checked > 60


def test_a_code_beyond_unicode_costs_one_character(monkeypatch: pytest.MonkeyPatch) -> None:
    get_code = pypdfium2.raw.FPDFText_GetUnicode

    def beyond_unicode(text_page: object, index: int) -> int:
        code = get_code(text_page, index)
        return 0x110000 if code == ord("Z") else int(code)

    monkeypatch.setattr(pypdfium2.raw, "FPDFText_GetUnicode", beyond_unicode)
    assert document(pdf(lines("The Zebra runs.")), "a.pdf").text == "The \ufffdebra runs."


@pytest.mark.parametrize("step", ["read_page", "read_layout"])
def test_a_damaged_page_costs_one_page(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    read = getattr(pdf_document, step)
    calls = iter(range(1, 4))

    def fail_on_the_second(*arguments: object, **options: object) -> object:
        if next(calls) == 2:
            raise OverflowError("cannot convert float infinity to integer")
        return read(*arguments, **options)

    monkeypatch.setattr(pdf_document, step, fail_on_the_second)
    parsed = document(pdf(lines("Apples are red."), lines("Pears are green."), lines("Plums are blue.")), "a.pdf")
    assert parsed.text == "Apples are red.\n\nPlums are blue."
    assert [mark.value for mark in parsed.marks if mark.kind == "page"] == ["1", "3"]
    assert parsed.metadata["unread_pages"] == "2"


def test_a_document_without_a_readable_page_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr(pdf_document, "read_page", fail)
    with pytest.raises(ParseError, match="no page can be read"):
        document(pdf(lines("Text.")), "a.pdf")


# --- Figures -----------------------------------------------------------------------------------------------------

BARS = "0.1 0.2 0.7 rg " + " ".join(f"{150 + 60 * i} 400 40 {height} re f" for i, height in enumerate((90, 40, 140)))


def figures(data: bytes) -> tuple[Document, list[Mark]]:
    parsed = parse(Blob(data), "a.pdf", ParserChoice(images=True))
    check_invariants(parsed)
    return parsed, [mark for mark in parsed.marks if mark.kind == "figure"]


def image(x: float, y: float, width: float, height: float) -> str:
    """An image of a grey and a light pixel, as large as it is wanted."""
    return f"q {width} 0 0 {height} {x} {y} cm BI /W 2 /H 1 /CS /G /BPC 8 ID \x40\xee EI Q "


def test_a_picture_is_a_figure_with_its_caption() -> None:
    data = pdf(
        lines("Results", size=16)
        + lines(*PROSE, y=690)
        + image(140, 400, 190, 150)
        + lines("Abb. 3: Umsatz", x=140, y=385, size=9)
        + lines("Then the text goes on, as the reader expects it to do here.", y=300)
    )
    parsed, (figure,) = figures(data)
    assert parsed.text[figure.start : figure.end] == "Abb. 3: Umsatz"
    assert figure.value == "Abb. 3: Umsatz"
    assert figure.box == pytest.approx((140 / 612, (792 - 550) / 792, 330 / 612, (792 - 400) / 792), abs=0.01)
    assert headings(parsed) == [(1, "Results")]
    assert parsed.text.index("harbour") < figure.start < parsed.text.index("goes on")
    stored = open_image(parsed.images[figure.image]).convert("L")
    assert stored.getpixel((20, 20)) == pytest.approx(0x40, abs=2)
    assert stored.width == pytest.approx(190 * 2.5, abs=2)
    text_only = parse(Blob(data), "a.pdf")
    assert not text_only.images
    assert not marked(text_only, "figure")
    assert text_only.text == parsed.text


def text_with_figures(data: bytes) -> tuple[Document, list[Mark]]:
    """A document with its figures, which have taken nothing but captions and short lines out of its text."""
    text_only = parse(Blob(data), "a.pdf")
    parsed, found = figures(data)
    bounds = [0, *(bound for mark in found for bound in (mark.start, mark.end)), len(parsed.text)]
    outside = "".join(parsed.text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
    lines_outside = iter([*filter(None, outside.splitlines()), ""])
    line, taken = next(lines_outside), []
    for expected in filter(None, text_only.text.splitlines()):
        if expected == line:
            line = next(lines_outside)
        else:
            taken.append(expected.lstrip("# "))  # a bold caption is no heading
    assert line == "", "text that is not in the order in which it is without figures"
    assert not Counter(" ".join(taken).split()) - Counter(" ".join(marked(parsed, "figure")).split())
    assert marked(parsed, "table") == marked(text_only, "table")
    return parsed, found


def test_pictures_next_to_text_are_not_joined_across_it() -> None:
    left = lines(*(f"This is line number {i} of the left column," for i in range(27)), y=700)
    right = lines(*(f"and this is line number {i} of the right one," for i in range(12)), x=320, y=700)
    cells = "".join(lines(f"cell {i}", x=325 + 80 * (i % 2), y=530 - 20 * (i // 2)) for i in range(6))
    grid = "".join(rule(320, y, 480, y) for y in (482, 502, 522, 542)) + "".join(
        rule(x, 482, x, 542) for x in (320, 400, 480)
    )
    # Two pictures that nearly touch, the second to the lower left of the first: a box around both has text.
    pictures = image(300, 360, 240, 100) + image(72, 250, 235, 105)
    caption = lines("Figure 2: Two pictures", x=320, y=345, size=9)
    parsed, found = text_with_figures(pdf(left + right + cells + grid + "0 g " + pictures + caption))
    assert len(marked(parsed, "table")) == 1
    assert [mark.value for mark in found] == ["", "Figure 2: Two pictures"]
    assert found[1].box == pytest.approx((300 / 612, (792 - 460) / 792, 540 / 612, (792 - 360) / 792), abs=0.02)


def test_a_picture_between_the_columns_takes_no_text() -> None:
    left = lines(*(f"This is line number {i} of the left column," for i in range(30)), y=700)
    right = lines(*(f"and this is line number {i} of the right one," for i in range(30)), x=320, y=700)
    text_with_figures(pdf(left + right + image(200, 380, 200, 100) + lines("A", "B", x=230, y=425)))


@pytest.mark.data
def test_text_is_the_same_with_figures(data: Path) -> None:
    assert text_with_figures((data / "documents/docling/pdf/sources/amt_handbook_sample.pdf").read_bytes())[1]


@pytest.mark.data
@pytest.mark.slow
def test_the_text_of_all_documents_is_the_same_with_figures(data: Path) -> None:
    paths = sorted([*data.glob("documents/**/*.pdf"), *data.glob("financebench/**/*.pdf")])
    checked = 0
    for path in paths:
        try:
            checked += bool(text_with_figures(path.read_bytes())[1])
        except ParseError:
            continue
        except AssertionError as error:
            raise AssertionError(path) from error
    assert checked > 10


@pytest.mark.parametrize(
    "drawing",
    [
        BARS,
        image(40, 740, 500, 40),
        image(100, 500, 20, 20),
        image(0, 0, 612, 792),
        image(66, 670, 480, 60),
    ],
    ids=["drawing", "banner", "icon", "background", "panel of text"],
)
def test_what_is_not_a_figure(drawing: str) -> None:
    data = pdf(drawing + "0 g " + lines(*PROSE))
    parsed, found = figures(data)
    assert not found
    assert parsed.text == parse(Blob(data), "a.pdf").text


def test_a_picture_on_every_page_is_stored_once() -> None:
    parsed, found = figures(pdf(*(lines(f"Page {i}", *PROSE) + image(140, 400, 190, 150) for i in range(3))))
    assert len(found) == len(parsed.images) == 1


def test_a_photo_in_strips_is_one_figure() -> None:
    strips = "".join(image(100, 400 + 30 * strip, 300, 30) for strip in range(4))
    parsed, (figure,) = figures(pdf(lines(*PROSE) + strips + lines("Foto: A. Lovelace", x=100, y=388, size=7)))
    assert figure.box == pytest.approx((100 / 612, (792 - 520) / 792, 400 / 612, (792 - 400) / 792), abs=0.02)
    assert figure.value == "" or "Lovelace" in figure.value
    assert "Lovelace" in parsed.text[figure.start : figure.end]


def test_pages_are_figures_as_a_whole_if_they_are_kept() -> None:
    data = pdf(lines(*PROSE) + BARS, "", lines("The end of it."))
    parsed = parse(Blob(data), "a.pdf", ParserChoice(images="pages"))
    pages = [mark for mark in parsed.marks if mark.kind == "page"]
    found = [mark for mark in parsed.marks if mark.kind == "figure"]
    assert [(mark.start, mark.end, mark.box) for mark in found] == [
        (mark.start, mark.end, (0, 0, 1, 1)) for mark in pages
    ]
    assert [mark.value for mark in pages] == ["1", "3"]
    width, height = open_image(parsed.images[found[0].image]).size
    assert height / width == pytest.approx(792 / 612, abs=0.01)
    text_only = parse(Blob(data), "a.pdf")
    assert parsed.text == text_only.text


def test_a_scanned_page_is_a_figure_as_a_whole() -> None:
    parsed, found = figures(pdf(lines(*PROSE), image(0, 0, 612, 792), lines("The end of it.")))
    (figure,) = found
    assert figure.box == (0, 0, 1, 1)
    assert parsed.text[figure.start : figure.end] == "![a.pdf]()"
    page = next(mark for mark in parsed.marks if mark.kind == "page" and mark.value == "2")
    assert (page.start, page.end) == (figure.start, figure.end)
    assert open_image(parsed.images[figure.image]).size == (1530, 1980)
    assert parse(Blob(pdf(lines(*PROSE), image(0, 0, 612, 792))), "a.pdf").metadata["pages_without_text"] == "2"
