"""Whether the tables of real reports keep each number in a row with its label.

    python benchmarks/bench_tables.py [--tools ragfm,pdfplumber] [--filings NAME…]

Parses the 25 filings of FinanceBench with ragfm and, where they are installed, with pdfplumber and unstructured.

A row below a table's header is numeric if a cell is a number (with a sign, a currency, a percent sign or brackets) and
not all its numbers are years. It has a label if its first cell that is not empty holds a letter, or is a number that
text follows (an item and its name), or a year, a month or a rank that another number follows. A table is numeric if it
has two numeric rows. Some sums have no label on the page either: a row is bare if the text layer has its numbers on a
line of their own.

    labelled_tables  share of the numeric tables all of whose numeric rows have a label
    labelled_or_bare_tables  the same without the rows that are bare
    labelled_rows    share of the numeric rows, of all tables, that have a label
    coverage         share of the pages' numbers that are a cell of their own in a table
    questions        the evidence of questions whose answer holds a number: share of its rows (a label and its numbers)
                     that stand in one row of a table on that page, and of the rows that hold the answer itself
    cells            recall of the cells of docling's expected Markdown

The filings are sorted by name; those with an even position were used for development. With `--filings`, only those are
read, and the result is kept as `table_tools`. Speeds are in seconds of CPU time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import bench_parse
import measure
import pypdfium2
from data import DATA

from ragfm.core.errors import RagfmError
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.own.media import ocr
from ragfm.parsing.own.pdf.pdf_lines import rows_of
from ragfm.parsing.own.pdf.pdf_page import read_page
from ragfm.parsing.own.web.html import read_table

FOLDER = DATA / "financebench"
_CURRENCY = r"(?:[$€£¥]|US\$|A\$|C\$)"
_NUMBER = re.compile(rf"\(?[-\u2013\u2212+]?{_CURRENCY}?\(?[-\u2013\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)\)?[%x]?\)?")
_YEAR = re.compile(r"(?:19|20)\d\d")
_FOOTNOTE = re.compile(r"(?:\((?:\d|[a-z])\)|[*†‡])+$")
_IN_TEXT = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w,]|\.\d)")
_HYPHEN = re.compile(r"[\x02\ufffe]")

Table: TypeAlias = list[list[str]]
"""Rows of cells; the first row is the header."""
Pages: TypeAlias = dict[int, list[Table]]
"""The tables of each page, counted from 1."""


def is_number(cell: str) -> bool:
    text = _FOOTNOTE.sub("", "".join(cell.split()))
    return bool(_NUMBER.fullmatch(text or "".join(cell.split())))


def is_year(cell: str) -> bool:
    return bool(_YEAR.fullmatch(cell.strip()))


def numeric_rows(table: Table) -> list[list[str]]:
    """The rows below the header with a number that is not a year."""
    return [row for row in table[1:] if any(is_number(cell) and not is_year(cell) for cell in row)]


def has_label(row: Sequence[str]) -> bool:
    cells = [cell for cell in row if cell.strip()]
    if any(map(str.isalpha, cells[0])) or (len(cells) > 1 and re.search(r"[^\W\d_]{3}", cells[1])):
        return True
    numbers = sum(map(is_number, cells[1:]))
    return bool(numbers and (is_year(cells[0]) or re.fullmatch(r"\d{1,2}", cells[0])))


class PageText(NamedTuple):
    """The numbers in the text layer of a page, and those of each line that has no letters."""

    numbers: Counter[str]
    bare: list[Counter[str]]


def figures(pages: Pages, texts: Sequence[PageText]) -> Counter[str]:
    """Counts over a document."""
    counts: Counter[str] = Counter()
    for page, tables in pages.items():
        cells: Counter[str] = Counter()
        for table in tables:
            for cell in (cell for row in table for cell in row):
                if is_number(cell):
                    cells.update(_IN_TEXT.findall(cell))
            rows = numeric_rows(table)
            labelled = sum(map(has_label, rows))
            bare = sum(
                any(Counter(_IN_TEXT.findall(" ".join(row))) == line for line in texts[page - 1].bare)
                for row in rows
                if not has_label(row)
            )
            counts.update({"rows": len(rows), "labelled_rows": labelled, "bare_rows": bare})
            if len(rows) >= 2:
                counts.update({"tables": 1, "labelled_tables": labelled == len(rows)})
                counts["labelled_or_bare_tables"] += labelled + bare == len(rows)
        counts["covered"] += (cells & texts[page - 1].numbers).total()
    counts["numbers"] = sum(text.numbers.total() for text in texts)
    return counts


# --- Tools -------------------------------------------------------------------------------------------------------


def markdown_tables(text: str) -> list[Table]:
    tables = []
    for found in re.finditer(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        lines = found[0].strip().split("\n")
        rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in lines
            if not re.fullmatch(r"[|\s:-]+-[|\s:-]+", line)
        ]
        if rows:
            tables.append(rows)
    return tables


def ragfm_tool() -> Callable[[Path], Pages]:
    ocr.find_spec = lambda _: None  # type: ignore[assignment,attr-defined]

    def read(path: Path) -> Pages:
        document = parse(Blob(path.read_bytes()), path.name)
        return {
            int(mark.value): markdown_tables(document.text[mark.start : mark.end])
            for mark in document.marks
            if mark.kind == "page"
        }

    return read


def pdfplumber_tool() -> Callable[[Path], Pages]:
    pdfplumber = importlib.import_module("pdfplumber")

    def read(path: Path) -> Pages:
        with pdfplumber.open(path) as document:
            return {
                number: [[[cell or "" for cell in row] for row in table] for table in page.extract_tables()]
                for number, page in enumerate(document.pages, 1)
            }

    return read


def unstructured_tool() -> Callable[[Path], Pages]:
    partition = importlib.import_module("unstructured.partition.auto").partition
    html = importlib.import_module("selectolax.lexbor").LexborHTMLParser

    def read(path: Path) -> Pages:
        pages: Pages = {}
        for element in partition(file=io.BytesIO(path.read_bytes()), metadata_filename=path.name, strategy="fast"):
            node = html(element.metadata.text_as_html or "").css_first("table")
            if node is not None:
                pages.setdefault(element.metadata.page_number or 1, []).append(read_table(node).rows)
        return pages

    return read


TOOLS = {"ragfm": ragfm_tool, "pdfplumber": pdfplumber_tool, "unstructured": unstructured_tool}


# --- Questions ---------------------------------------------------------------------------------------------------


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def evidence_rows(text: str) -> Iterator[tuple[str, list[str]]]:
    """Labels and the numbers that follow them: one line each, or all in one line."""
    label, numbers = "", list[str]()
    for line in filter(str.strip, text.split("\n")):
        words = line.split()
        found = [word for word in words if is_number(word)]
        values = [value for word in found for value in _IN_TEXT.findall(word) if not is_year(value)]
        if any(map(str.isalpha, line)):
            if label and numbers:
                yield label, numbers
            trailing: list[str] = []
            while words and (is_number(words[-1]) or not any(map(str.isalnum, words[-1]))):
                trailing = _IN_TEXT.findall(words.pop()) + trailing
            label, numbers = " ".join(words), trailing
        else:
            numbers = numbers + values
    if label and numbers:
        yield label, numbers


def questions(results: dict[str, Pages]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    lines = (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    for question in map(json.loads, lines):
        answers = {value.replace(",", "").removesuffix(".00") for value in _IN_TEXT.findall(question["answer"])}
        pages = results.get(question["document"])
        if pages is None or not answers:
            continue
        for piece in question["evidence"]:
            rows = [
                (
                    letters(" ".join(cell for cell in row if not is_number(cell))),
                    Counter(_IN_TEXT.findall(" ".join(row))),
                )
                for table in pages.get(piece["page"], [])
                for row in table
            ]
            for label, numbers in evidence_rows(piece["text"]):
                if len(numbers) < 2 or len(label) > 100:
                    continue  # prose with a number
                whole = any(letters(label) in text and Counter(numbers) <= found for text, found in rows)
                counts.update({"rows": 1, "rows_whole": whole})
                if answers & {number.replace(",", "") for number in numbers}:
                    counts.update({"answers": 1, "answers_whole": whole})
    return {
        "rows": counts["rows"],
        "rows_whole": ratio(counts, "rows_whole", "rows"),
        "answer_rows": counts["answers"],
        "answer_rows_whole": ratio(counts, "answers_whole", "answers"),
    }


def ratio(counts: Counter[str], part: str, whole: str) -> float | None:
    return round(counts[part] / counts[whole], 4) if counts[whole] else None


def page_texts(path: Path) -> list[PageText]:
    texts = []
    with pypdfium2.PdfDocument(path) as document:
        for index, page in enumerate(document):
            numbers = Counter(_IN_TEXT.findall(_HYPHEN.sub("-", page.get_textpage().get_text_range())))
            lines = [" ".join(word.text for word in row) for row in rows_of(read_page(document, index).words)]
            bare = [Counter(_IN_TEXT.findall(line)) for line in lines if not any(map(str.isalpha, line))]
            texts.append(PageText(numbers, bare))
    return texts


def summary(counts: Counter[str]) -> dict[str, Any]:
    return {
        "tables": counts["tables"],
        "labelled_tables": ratio(counts, "labelled_tables", "tables"),
        "labelled_or_bare_tables": ratio(counts, "labelled_or_bare_tables", "tables"),
        "rows": counts["rows"],
        "labelled_rows": ratio(counts, "labelled_rows", "rows"),
        "bare_rows": counts["bare_rows"],
        "coverage": ratio(counts, "covered", "numbers"),
    }


def cell_recall() -> dict[str, Any]:
    """Of the cells in docling's expected Markdown, over the files that have tables."""
    found = {}
    for path in sorted((DATA / "documents" / "docling").rglob("*.pdf")):
        if (text := bench_parse.expected(path)) is not None and (wanted := bench_parse.cells(text)):
            try:
                got = parse(Blob(path.read_bytes()), path.name).text
            except RagfmError:
                got = ""
            found[path.name] = bench_parse.share(wanted, bench_parse.cells(got))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--filings", nargs="+", help="names without .pdf; default: all")
    options = parser.parse_args()
    os.environ["DO_NOT_TRACK"] = "1"
    paths = sorted((FOLDER / "pdfs").glob("*.pdf"))
    if options.filings:
        paths = [FOLDER / "pdfs" / f"{name}.pdf" for name in options.filings]
    texts = {path: page_texts(path) for path in paths}
    result = measure.about("tables", ("ragfm", "pypdfium2", "pdfplumber", "unstructured"))
    result["pages"] = sum(map(len, texts.values()))
    for name in options.tools.split(","):
        try:
            read = TOOLS[name]()
        except ModuleNotFoundError as error:
            print(f"{name}: {error}")
            continue
        seconds = 0.0
        results: dict[str, Pages] = {}
        halves: list[Counter[str]] = [Counter(), Counter()]
        for i, path in enumerate(paths):
            start = time.process_time()
            results[path.name] = read(path)
            seconds += time.process_time() - start
            halves[i % 2] += figures(results[path.name], texts[path])
        result[name] = {
            **summary(halves[0] + halves[1]),
            "development": summary(halves[0]),
            "held_out": summary(halves[1]),
            "questions": questions(results),
            "pages_per_s": round(result["pages"] / seconds, 1),
        }
        if name == "ragfm" and not options.filings:
            result[name]["cells"] = cell_recall()
        print(name, json.dumps(result[name]), flush=True)
    result["filings"] = [path.stem for path in paths]
    measure.save(result, "table_tools" if options.filings else "tables")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
