"""Words that are split at the end of a line: which of their hyphens belong to the word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ragfm.parsing.own.pdf.pdf_lines import Block
from ragfm.parsing.own.pdf.pdf_types import HYPHEN

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_SPLIT_WORD = re.compile(rf"([^\W_]+(?:-[^\W_]+)*){HYPHEN}(?=([^\W_]+(?:-[^\W_]+)*))")


def resolve_hyphens(blocks: Iterable[Block]) -> None:
    """Keep or drop the hyphen of each split word, in place: "long-term", but "reader".

    The more frequent spelling in the rest of the document decides. Other words follow the majority of those decided,
    since some programs split words into syllables and others only at hyphens; without a majority, the hyphen goes.
    """
    blocks = list(blocks)
    texts = [text for block in blocks for text in (block.text, *(cell for row in block.rows for cell in row))]
    split = {(one[1], one[2]) for text in texts if HYPHEN in text for one in _SPLIT_WORD.finditer(text)}
    if not split:
        return
    words = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    votes = {}
    for first, second in split:
        kept, dropped = words[f"{first}-{second}".lower()], words[f"{first}{second}".lower()]
        votes[first, second] = (kept > dropped) - (kept < dropped)
    usual = "-" if sum(votes.values()) > 0 else ""
    spelling = {-1: "", 0: usual, 1: "-"}

    def resolve(text: str) -> str:
        if HYPHEN in text:
            text = _SPLIT_WORD.sub(lambda one: one[1] + spelling[votes[one[1], one[2]]], text)
        return text.replace(HYPHEN, "-")

    for block in blocks:
        block.text = resolve(block.text)
        block.rows = [[resolve(cell) for cell in row] for row in block.rows]
