"""CSV and TSV: one Markdown table."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from itertools import takewhile
from typing import Literal

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText

_SAMPLE = 4096  # characters from which the delimiter is guessed
_DELIMITERS = "\t;|,"  # where several fit equally well, the last is part of the values, such as a decimal comma
_EXCEL_HINT = re.compile(r"\s*\"?sep=([^\w\s\"]|\t)\"?[ \t]*\n", re.IGNORECASE)
_MAX_FIELD = 131_072  # characters; csv's default limit, which other code in the process may have raised


def read_tsv(text: str, name: str) -> ParsedText:
    """The same as `read_csv` for values separated by tabs."""
    return read_csv(text, name, prefer_tabs=True)


def read_csv(text: str, name: str, *, prefer_tabs: bool = False) -> ParsedText:
    """Return the rows as one Markdown table whose first row is the header. Metadata: `rows`, without the header.

    Lines above the table with one value each, such as the title of a report, become paragraphs.
    """
    text = text.replace("\r", "\n")
    try:
        if hint := _EXCEL_HINT.match(text):
            rows = _rows(text[hint.end() :], hint[1])
        else:
            rows = _rows(text, "\t" if prefer_tabs and "\t" in text[:_SAMPLE] else _guess_delimiter(text))
    except csv.Error as error:
        raise ParseError(f"{name} cannot be read as a table: {error}.") from error
    if not rows:
        return ParsedText("")
    builder = MarkdownBuilder()
    values = [sum(bool(field.strip()) for field in row) for row in rows]
    titles = len(list(takewhile(lambda count: count == 1, values)))
    if sum(count > 1 for count in values) <= (len(rows) - titles) / 2:  # a list of single values
        titles = 0
    builder.add_table(rows[titles:], titles=["".join(row).strip() for row in rows[:titles]])
    return builder.build({"rows": len(rows) - titles - 1})


def _guess_delimiter(text: str) -> str:
    sample = text[:_SAMPLE]
    if len(text) > _SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample

    def regular_rows(delimiter: str) -> int:
        widths = Counter(len(row) for row in _rows(sample, delimiter) if len(row) > 1)
        return max(widths.values(), default=0)

    return max(_DELIMITERS, key=regular_rows)


def _rows(text: str, delimiter: str) -> list[list[str]]:
    lines = list(io.StringIO(text))
    rows: list[list[str]] = []
    start = 0
    while start < len(lines):
        rest = (lines[index] for index in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=True, strict=True)
        first = start
        try:
            for row in reader:
                rows.append(_checked(row))
                start = first + reader.line_num
        except csv.Error:
            # Read the line by itself: a quote that is not closed makes the lines after it one field.
            quoting: Literal[0, 3] = csv.QUOTE_NONE if lines[start].count('"') % 2 else csv.QUOTE_MINIMAL
            reader = csv.reader([lines[start]], delimiter=delimiter, skipinitialspace=True, quoting=quoting)
            rows += map(_checked, reader)
            start += 1
    return [row for row in rows if any(map(str.strip, row))]


def _checked(row: list[str]) -> list[str]:
    if any(len(field) > _MAX_FIELD for field in row):
        raise csv.Error(f"field larger than field limit ({_MAX_FIELD})")
    return row
