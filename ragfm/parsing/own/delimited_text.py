"""CSV and TSV: one Markdown table."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from typing import Literal

from ragfm.core.errors import ParseError
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText

_SAMPLE = 4096  # characters for the sniffer, which takes quadratic time over quotes
_DELIMITERS = ",;\t|"
_MAX_FIELD = 131_072  # characters; csv's default limit, which other code in the process may have raised


def read_tsv(text: str, name: str) -> ParsedText:
    """The same as `read_csv` for values separated by tabs."""
    return read_csv(text, name, prefer_tabs=True)


def read_csv(text: str, name: str, *, prefer_tabs: bool = False) -> ParsedText:
    """Return the rows as one Markdown table whose first row is the header. Metadata: `rows`, without the header."""
    text = text.replace("\r", "\n")
    sample = text[:_SAMPLE]
    if len(text) > _SAMPLE:
        sample = sample[: sample.rfind("\n") + 1] or sample
    first_line = sample.strip("\n").partition("\n")[0]
    delimiter = "\t" if prefer_tabs and "\t" in first_line else ""
    if not delimiter:
        with suppress(csv.Error):
            delimiter = csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
        if not delimiter or delimiter not in first_line:
            delimiter = max(_DELIMITERS, key=first_line.count)  # a comma where the line has no delimiter
    try:
        rows = _rows(text, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error:  # an unclosed quote makes the rest of the file one field
        try:
            rows = _rows(text, delimiter, csv.QUOTE_NONE)
        except csv.Error as error:
            raise ParseError(f"{name} cannot be read as a table: {error}.") from error
    if not rows:
        return ParsedText("")
    builder = MarkdownBuilder()
    builder.add_table(rows)
    return builder.build({"rows": len(rows) - 1})


def _rows(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[list[str]]:
    # Only the delimiter comes from the sniffer: its dialect has no doubled quotes where the sample has none.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, quoting=quoting)
    rows = []
    for row in reader:
        if any(len(field) > _MAX_FIELD for field in row):
            raise csv.Error(f"field larger than field limit ({_MAX_FIELD})")
        if any(map(str.strip, row)):
            rows.append(row)
    return rows
