"""Sentences: where they start and end in a text of any language; and what is no text.

Lines that open a block (heading, list item, table row) and blank lines end a sentence for sure; between them the rules
of `sentencex` decide (Wikimedia's segmenter, with fallback chains for some 300 languages).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

from ragfm.core.errors import UnsupportedError

__all__ = ["MARKER", "check_characters", "escape_markers", "is_english", "repetition_start", "sentence_spans"]

MARKER = re.compile(r"\s*\[(\d+(?:\s*[,;]\s*\d+)*)\]")
"""Of passages that a sentence names, as a reader may write it: `[1]`, `[1, 2]`."""
_NUMBER = re.compile(r"^([ \t]*\d{1,3})\.(?=[ \t])", re.MULTILINE)  # of a list item: its full stop ends no sentence
_LINE = re.compile(
    r"^(?:\s*$"  # blank lines
    r"|[ \t]*((?:#{1,6}[ \t]|\|).*|(?:={3,}|-{3,})[ \t]*)$"  # a line of its own: heading, table row, underline
    r"|[ \t]*(?:[-*+•]|\d{1,3}\))[ \t])",  # the first line of a list item
    re.MULTILINE,
)
_FEWEST_WORDS = 4
_WINDOW = 2048  # characters; sentencex takes quadratic time over a long paragraph that is not ASCII
# sentencex panics at "B\u2003." (a space of several bytes before a full stop), and Rust takes no lone surrogates.
_STAND_INS = {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()} | dict.fromkeys(
    range(0xD800, 0xE000), "\ufffd"
)


def check_characters(what: str, text: str) -> None:
    """Raises UnsupportedError for half of a surrogate pair, which no model takes: so Python reads what is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        said = f"The {what} has no character at {error.start}, but half of a surrogate pair."
        raise UnsupportedError(said, "Was it UTF-8?") from None


def is_english(query: str, language: str | None) -> bool:
    """Whether a model that knows English only may know the query and texts of `language` (ISO 639-1, or `simple`).

    At least half of the query's letters must be Latin.
    """
    if language not in (None, "en", "simple"):
        return False
    latin = [unicodedata.name(letter, "").startswith("LATIN") for letter in query if letter.isalpha()]
    return sum(latin) * 2 >= len(latin)


def escape_markers(text: str) -> str:
    """A document's words for an answer's text: nothing in them is a marker there, though it looks the same."""
    return MARKER.sub(lambda match: match[0].replace("[", "[\u200c"), text)


def sentence_spans(text: str, language: str = "en") -> list[tuple[int, int]]:
    """The sentences of a text as (start, end), in order, without the white space around them.

    They are disjoint and cover every character that is not white space. `language` is an ISO 639 code; an unknown one
    gets general rules. Takes time linear in the text's length.
    """
    spans = []
    plain = text if text.isascii() else text.translate(_STAND_INS)
    plain = _NUMBER.sub(r"\1)", plain)  # still as long as the text
    for start, end in pairwise(_block_bounds(plain)):
        for first, last in _segments(plain, start, end, language):
            words = text[first:last]
            if stripped := words.strip():
                first += len(words) - len(words.lstrip())
                spans.append((first, first + len(stripped)))
    return spans


def repetition_start(text: str) -> int | None:
    """Where the first sentence begins that was said before in the text, word for word; None where none was.

    A sentence of less than four words may come again ("Yes."), but not three times running. One that does not end yet
    is none.
    """
    said: set[tuple[str, ...]] = set()
    ended: list[tuple[tuple[str, ...], int]] = []
    for start, end in sentence_spans(text):
        words = tuple(text[start:end].split())
        if text[end - 1] not in ".!?":
            continue
        if words in said:
            return start
        if [before for before, _ in ended[-2:]] == [words, words]:
            return ended[-1][1]
        ended.append((words, start))
        if len(words) >= _FEWEST_WORDS:
            said.add(words)
    return None


def _block_bounds(text: str) -> list[int]:
    bounds = {0, len(text)}
    for line in _LINE.finditer(text):
        bounds.add(line.start())
        if line[1]:
            bounds.add(line.end())
    return sorted(bounds)


def _segments(text: str, start: int, end: int, language: str) -> Iterator[tuple[int, int]]:
    """Cut `text[start:end]` into sentences through a sliding window, which grows where a sentence is longer."""
    window = _WINDOW
    while start < end:
        stop = min(start + window, end)
        pieces = _segment(text[start:stop], language)
        if stop < end:
            pieces.pop()  # it may go on after the window
        for piece in pieces:
            yield start, start + len(piece)
            start += len(piece)
        window = _WINDOW if pieces else 2 * window


def _segment(text: str, language: str) -> list[str]:
    """Pieces that make up the text; one piece where sentencex fails."""
    import sentencex

    try:
        pieces: list[str] = sentencex.segment(language, text)
    except BaseException as error:  # a Rust panic is no Exception, and its class can't be imported
        if type(error).__name__ != "PanicException":
            raise
        return [text]
    return pieces if "".join(pieces) == text else [text]
