"""CSV and TSV: one Markdown table."""

from __future__ import annotations

import csv
import io
from typing import Literal

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import Parsed, Rendering

_SAMPLE = 4096  # characters that the sniffer sees; it takes quadratic time over quotes
_DELIMITERS = ",;\t|"
_LONGEST = 131_072  # characters of a field: csv's own limit, which is the whole process's, so that others may raise it


def read_csv(text: str, name: str) -> Parsed:
    """The rows as one Markdown table, whose first row is the header. Metadata: `rows`, without the header."""
    return _read(text, name, tabs=False)


def read_tsv(text: str, name: str) -> Parsed:
    """The same for values between tabs."""
    return _read(text, name, tabs=True)


def _read(text: str, name: str, *, tabs: bool) -> Parsed:
    lines = text.replace("\r", "\n")
    delimiter = _delimiter(lines, tabs=tabs)
    try:
        rows = _rows(lines, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error:  # a quote that never ends swallows the rest
        try:
            rows = _rows(lines, delimiter, csv.QUOTE_NONE)
        except csv.Error as error:
            raise ParseError(f"{name} can't be read as a table: {error}.") from error
    if not rows:
        return Parsed("")
    rendering = Rendering()
    rendering.table(rows)
    return rendering.finish({"rows": len(rows) - 1})


def _rows(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[list[str]]:
    # Of the sniffed dialect the delimiter alone is taken: it denies doubled quotes wherever its sample has none.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, quoting=quoting)
    rows = []
    for row in reader:
        if any(len(field) > _LONGEST for field in row):
            raise csv.Error(f"field larger than field limit ({_LONGEST})")
        if any(map(str.strip, row)):
            rows.append(row)
    return rows


def _delimiter(text: str, *, tabs: bool) -> str:
    sample = text[:_SAMPLE]
    if len(text) > _SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample
    first = sample.strip("\n").partition("\n")[0]
    if tabs and "\t" in first:
        return "\t"
    try:
        delimiter = csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
    except csv.Error:
        delimiter = ""
    if delimiter and delimiter in first:
        return delimiter
    return max(_DELIMITERS, key=first.count)  # the comma where there is none
