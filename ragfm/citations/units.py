"""Units: a bare number in an answer gets the unit and scale that its quote, table header or caption gives it.

31        "31 days of leave"                                 31 days
36,386    "| Cost of sales | 36,386 |" under "$ in millions"  $36,386 million
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfm.citations.text_match import is_unit

if TYPE_CHECKING:
    from ragfm.citations.grounding import CitedSentence
    from ragfm.core.types import Hit

__all__ = ["name_unit", "with_unit"]

_BARE = re.compile(r"\s*(?P<number>[-−(]?\d+(?:[.,]\d+)*\)?)[\s.]*")
_SCALE = re.compile(
    r"(?:\b(?:in|of)\s+|\()(?P<dollars>[^\W\d]*\s?\$\s?)?(?P<scale>thousand|million|billion)s?\b", re.IGNORECASE
)
_DOLLARS = re.compile(r"\$|\b(?:US\s+)?dollars?\b|\bUSD\b", re.IGNORECASE)
_OWN_SCALE = re.compile(r"per[\s-]+share|%|percent|\bratio\b|\bnumber\b|\bshares\b", re.IGNORECASE)
_SIGNS = "$€£¥"


def name_unit(text: str, sentences: Sequence[CitedSentence], passages: Sequence[Hit]) -> str:
    """The answer's text, with the unit of its number where a cited quote that supports it names one."""
    for citation in sentences[0].citations if len(sentences) == 1 else ():
        passage = next(passage for passage in passages if passage.n == citation.n)
        if citation.supports:
            plain = sentences[0].plain
            named = with_unit(plain, citation.quote, _above(passage, citation.start - passage.start))
            return f"{named} [{citation.n}]" if named != plain else text
    return text


def _above(passage: Hit, start: int) -> str:
    """What stands above a table row: the passage's context, and the paragraph and the header of its table."""
    lines = passage.text[:start].splitlines()
    table = next((at for at in range(len(lines), 0, -1) if not lines[at - 1].startswith("|")), 0)
    caption = next((line for line in reversed(lines[:table]) if line.strip()), "")
    return "\n".join([passage.context, caption, *lines[table : table + 2]])


def with_unit(answer: str, quote: str, above: str) -> str:
    """The answer, with the unit of its number if it is nothing but a number; else unchanged.

    In prose, the unit stands next to the number: a currency sign, `%`, or a word such as `days` or `million`. In a
    table row, the scale and the currency are in the text `above`, the header and the caption.
    """
    bare = _BARE.fullmatch(answer)
    found = re.search(rf"(?<![\w.,]){re.escape(bare['number'])}(?![\w]|[.,]\d)", quote) if bare else None
    if bare is None or found is None:
        return answer
    number = bare["number"]
    sign = quote[: found.start()].rstrip()[-1:]
    sign = sign if sign in _SIGNS else ""
    after = re.match(r"\s?(%)|[\s-]{1,2}([^\W\d_]+)", quote[found.end() :])
    unit = ""
    if after and (after[1] or is_unit(after[2])):
        unit = after[1] or f" {after[2]}"
    if quote.startswith("|") and not unit:
        label = quote.strip("| ").partition("|")[0]
        scale = _SCALE.search(above)
        if scale and not _OWN_SCALE.search(label):
            unit = f" {scale['scale'].lower()}"
            sign = sign or ("$" if scale["dollars"] or _DOLLARS.search(above) else "")
    return answer.replace(number, f"{sign}{number}{unit}", 1) if sign or unit else answer
