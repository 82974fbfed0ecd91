"""Text utilities: sentence boundaries in any language, citation markers, and invalid characters.

Blank lines and lines that open a block (heading, list item, table row) always end a sentence. Between them `sentencex`
decides, Wikimedia's segmenter with fallback chains for some 300 languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from ragfm.core.errors import UnsupportedError

if TYPE_CHECKING:
    from ragfm.core.table_rows import TableRow

MARKER = re.compile(r"(?<!\s)\s*\[(\d{1,9}(?:\s*[,;]\s*\d{1,9})*)\]")
"""A citation marker, as readers write it: `[1]`, `[1, 2]`; with all white space before it, which takes linear time."""
IDENTIFIER = re.compile(r"(?<![\w.-])(?:--[a-z][\w-]+|[^\W\d]\w*_\w+(?:\.[a-z_]\w+)*|[^\W\d]\w+(?:\.[a-z_]\w+)+)")
"""An option, a name with underscores or full stops within it: `--all`, `shared_buffers`, `json.dump`."""
# Unicode's Bidi_Control, which reorders what is shown, and characters that look like slashes.
_DISGUISES = re.compile(
    "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\u2041\u2044\u2215\u2216\u2571\u2572\u27cb\u27cd\u29f5\u29f8\u29f9\ufe68\uff0f\uff3c]"
)
# The number of a list item: its full stop does not end a sentence.
_NUMBER = re.compile(r"^([ \t]*\d{1,3})\.(?=[ \t])", re.MULTILINE)
_EMPHASIS_END = re.compile(r"([.!?])([*_~]{1,3})(?=\s|$)")  # of Markdown: "**A title.** Its text."
_LINE = re.compile(
    r"^(?:\s*$"  # blank lines
    r"|[ \t]*((?:#{1,6}[ \t]|\|).*|(?:={3,}|-{3,})[ \t]*)$"  # a line of its own: heading, table row, underline
    r"|[ \t]*(?:[-*+•]|\d{1,3}\))[ \t])",  # the first line of a list item
    re.MULTILINE,
)
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))
_TO_PARTNER = 40  # characters up to the bracket that completes a pair
_LINE_END = re.compile(r"[\n|]")  # also that of a table cell
_HEADINGS_ABOVE = re.compile(r"(?:#{1,6}[ \t][^\n]*\n\s*)+(?=\S)")
QUESTION_MARKS = ("?", "\uff1f", "\u061f")  # also full-width and Arabic
_MAX_ROW = 400  # characters of a heading or table row that is one sentence; the cells of longer ones hold paragraphs
_MIN_REPEATED_WORDS = 4
_MAX_PERIOD, _MIN_REPETITIONS, _MIN_LOOP = 60, 6, 100  # characters, and of a loop: "|  |  |" until the tokens run out
_WINDOW = 2048  # characters; sentencex takes quadratic time on long paragraphs that are not ASCII
# sentencex panics at "B\u2003." (a multi-byte space before a full stop), and Rust accepts no lone surrogates.
_REPLACEMENTS = {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()} | dict.fromkeys(
    range(0xD800, 0xE000), "\ufffd"
)


def check_characters(what: str, text: str) -> None:
    """Raise UnsupportedError for a lone surrogate, which no model accepts; Python reads invalid UTF-8 as such."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"The {what} is not valid text: there is a lone surrogate at position {error.start}."
        raise UnsupportedError(message, "Check that it is encoded as UTF-8.") from None


def line_range(text: str, start: int, end: int) -> tuple[int, int]:
    """The first and the last line of `text[start:end]`, from 1."""
    first = text.count("\n", 0, start) + 1
    return first, first + text[start:end].rstrip("\n").count("\n")


def displayed_quote(quote: str, row: TableRow | None) -> str:
    """A quote in one line: in quotation marks and without the headings above it, or the table row that it is."""
    if row is not None:
        return " ".join(row.text.split())
    words = quote[match.end() if (match := _HEADINGS_ABOVE.match(quote)) else 0 :].split()
    return f"“{' '.join(words)}”"


def displayed_name(name: str) -> str:
    """A document's name with the characters escaped that could make it look like another one."""
    return _DISGUISES.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def complete_pairs(text: str, start: int, end: int) -> tuple[int, int]:
    """A span of text with the other one of each bracket or quotation mark that has its partner near, in the same line.

    Without a partner, it ends before a bracket that opens.
    """
    before = _LINE_END.split(text[max(start - _TO_PARTNER, 0) : start])[-1]
    after = _LINE_END.split(text[end : end + _TO_PARTNER])[0]
    for left, right in _PAIRS:
        inside = text[start:end]
        excess = inside.count(left) - inside.count(right)
        if excess > 0 and right in after:
            end += after.index(right) + 1
        elif excess > 0:
            end = start + (len(inside[: inside.rindex(left)].rstrip()) or len(inside))
        elif excess < 0 and left in before:
            start -= len(before) - before.rindex(left)
    if text.count('"', start, end) % 2:
        if before.endswith('"'):
            start -= 1
        elif after.startswith('"'):
            end += 1
    return start, end


def is_english(query: str, language: str | None) -> bool:
    """Whether a model trained on English only can handle the query and texts in `language` (ISO 639-1, or `simple`).

    At least half of the query's letters must be Latin.
    """
    if language not in (None, "en", "simple"):
        return False
    latin = [unicodedata.name(letter, "").startswith("LATIN") for letter in query if letter.isalpha()]
    return sum(latin) * 2 >= len(latin)


def escape_markers(text: str) -> str:
    """Escape citation markers in a document's text, so that it can be part of an answer. It looks the same."""
    return MARKER.sub(lambda match: match[0].replace("[", "[\u200c"), text)


def without_secrets(location: str) -> str:
    """An address without user, password and query, whatever characters a password has; a path as it is."""
    return re.sub(r"(?<=://)(?:.*@)?([^?]*).*", r"\1", location)


def counted(**counts: int) -> str:
    """Return counts with their nouns: `counted(document=1, chunk=2)` is `1 document, 2 chunks`."""
    return ", ".join(f"{count} {noun}" if count == 1 else f"{count} {noun}s" for noun, count in counts.items())


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """The sentences of a text as (start, end), in order, without surrounding white space.

    They are disjoint and cover all characters that are not white space. `language` is an ISO 639 code; general rules
    apply to unknown ones. Takes linear time.
    """
    spans = []
    plain = text if text.isascii() else text.translate(_REPLACEMENTS)
    plain = _EMPHASIS_END.sub(r"\2\1", _NUMBER.sub(r"\1)", plain))  # still as long as the text
    bounds, whole = {0, len(plain)}, set[int]()
    for line in _LINE.finditer(plain):
        bounds.add(line.start())
        if line[1]:
            bounds.add(line.end())
            if line[1].startswith(("#", "|")) and len(line[1]) <= _MAX_ROW:
                whole.add(line.start())
    for start, end in pairwise(sorted(bounds)):
        for first, last in [(start, end)] if start in whole else _segments(plain, start, end, language):
            words = text[first:last]
            if stripped := words.strip():
                first += len(words) - len(words.lstrip())
                spans.append((first, first + len(stripped)))
    return spans


def repetition_start(text: str) -> int | None:
    """Offset of the first sentence that repeats an earlier one verbatim, or None.

    A sentence of fewer than four words ("Yes.") may be repeated, but not three times in a row. Only complete sentences
    count.
    """
    seen: set[tuple[str, ...]] = set()
    ended: list[tuple[tuple[str, ...], int]] = []
    for start, end in sentence_spans(text):
        words = tuple(text[start:end].split())
        if text[end - 1] not in ".!?":
            continue
        if words in seen:
            return start
        if [before for before, _ in ended[-2:]] == [words, words]:
            return ended[-1][1]
        ended.append((words, start))
        if len(words) >= _MIN_REPEATED_WORDS:
            seen.add(words)
    return None


def loop_start(text: str) -> int | None:
    """Offset of the first repetition in a text that ends with the same characters again and again, or None."""
    for period in range(1, _MAX_PERIOD + 1):
        start = len(text) - max(_MIN_LOOP, _MIN_REPETITIONS * period)
        if start >= period and text[start:] == text[start - period : -period]:
            while start > period and text[start - 1] == text[start - 1 - period]:
                start -= 1
            return start
    return None


def _segments(text: str, start: int, end: int, language: str) -> Iterator[tuple[int, int]]:
    """Cut `text[start:end]` into sentences through a sliding window, which grows where a sentence is longer."""
    import sentencex

    window = _WINDOW
    while start < end:
        stop = min(start + window, end)
        part = text[start:stop]
        try:
            pieces: list[str] = sentencex.segment(language, part)
        except BaseException as error:  # a Rust panic is not an Exception, and its class cannot be imported
            if type(error).__name__ != "PanicException":
                raise
            pieces = [part]
        if "".join(pieces) != part:
            pieces = [part]
        if stop < end:
            pieces.pop()  # it may go on after the window
        for piece in pieces:
            yield start, start + len(piece)
            start += len(piece)
        window = _WINDOW if pieces else 2 * window
