"""Grounding: from a reader's words to citations that can be checked, without another model call.

Each sentence of the answer is held against the sentences of the passages. The one that supports it best becomes the
quote: a slice of the document, character for character. A quote supports a sentence when it has all numbers of the
sentence, most of the words that the sentence adds to the question, and denies something exactly when the sentence does.
A sentence that only says the question again claims nothing that could be supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfm.text import sentence_spans
from ragfm.types import Citation

if TYPE_CHECKING:
    from ragfm.types import Hit

SUPPORT = 0.6
"""The share of a sentence's new words that a quote must have."""

_MARKER = re.compile(r"\s*\[(\d+(?:\s*[,;]\s*\d+)*)\]")
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+")
_STOP = frozenset(
    """
    a an and are as at be been but by can do does for from had has have how i if in into is it its may more must my
    of on or our shall should so than that the their them then there these they this to up was we were what when
    where which who will with would you your yes
    """.split()
)


_DENIAL = re.compile(r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|cannot)\b|n['’]t\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A sentence of the answer without its markers, where its words end, and the passages that it names."""

    text: str
    end: int
    named: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Evidence:
    hit: Hit
    start: int
    end: int
    score: float
    supports: bool


def ground(question: str, text: str, shown: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with its markers put right, and a citation for each marker.

    Markers of passages that were not shown go; a sentence that names no passage gets the marker of the one that
    supports it, if there is one. Citations come in the order of their markers.
    """
    by_number = {hit.n: hit for hit in shown if hit.n is not None}
    asked = _words(question)
    pieces: list[str] = []
    citations: list[Citation] = []
    done = 0
    plain, claims = _claims(text)
    for claim in claims:
        named = [by_number[n] for n in dict.fromkeys(claim.named) if n in by_number]
        evidence = [found for hit in named if (found := _best(claim.text, asked, [hit]))]
        if not evidence:
            found = _best(claim.text, asked, list(by_number.values()))
            evidence = [found] if found and found.supports else []
        body_end = len(plain[: claim.end].rstrip(".!?…"))
        markers = "".join(f"[{found.hit.n}]" for found in evidence)
        pieces += [plain[done:body_end], f" {markers}" if markers else "", plain[body_end : claim.end]]
        done = claim.end
        citations += [_citation(found) for found in evidence]
    return "".join([*pieces, plain[done:]]).strip(), tuple(citations)


def _claims(text: str) -> tuple[str, list[_Claim]]:
    """The text without markers, and its sentences with the markers that stood in or right behind them."""
    plain, markers, done = "", [], 0
    for match in _MARKER.finditer(text):
        plain += text[done : match.start()]
        markers.append((len(plain), tuple(int(n) for n in re.findall(r"\d+", match[1]))))
        done = match.end()
    plain += text[done:]
    claims, before = [], 0
    spans = sentence_spans(plain)
    for number, (start, end) in enumerate(spans):
        until = spans[number + 1][0] if number + 1 < len(spans) else len(plain) + 1
        named = tuple(n for at, numbers in markers if before <= at < until and (at > start or not number)
                      for n in numbers)  # fmt: skip
        claims.append(_Claim(plain[start:end], end, named))
        before = start + 1
    return plain, claims


def _best(claim: str, asked: frozenset[str], hits: Sequence[Hit]) -> _Evidence | None:
    if not _words(claim):
        return None
    return max(_evidence(claim, asked, hits), key=lambda found: (found.supports, found.score), default=None)


def _evidence(claim: str, asked: frozenset[str], hits: Sequence[Hit]) -> Iterator[_Evidence]:
    words = _words(claim)
    echo = not words - asked
    new = words if echo else words - asked
    denies = bool(_DENIAL.search(claim))
    # A number of the question ("Is it 28 days?") need not stand in the quote, unless it is all that is claimed.
    numbers = {word for word in new if word[0].isdigit()}
    for hit in hits:
        for start, end in sentence_spans(hit.text):
            quote = _words(hit.text[start:end])
            share = len(new & quote) / len(new)
            agrees = denies == bool(_DENIAL.search(hit.text[start:end]))
            supports = not echo and agrees and share >= SUPPORT and numbers <= quote
            # What the sentence shares with the question breaks ties: it tells which "28 days" is meant.
            score = 2 * share + len(words & quote) / len(words) + len(asked & quote) / (1 + len(asked))
            yield _Evidence(hit, start, end, score, supports)


def _citation(found: _Evidence) -> Citation:
    hit = found.hit
    assert hit.n is not None
    return Citation(
        n=hit.n,
        uri=hit.uri,
        page=hit.page,
        start=hit.start + found.start,
        end=hit.start + found.end,
        quote=hit.text[found.start : found.end],
        verified=found.supports,
    )


def _words(text: str) -> frozenset[str]:
    """Numbers without their separators, and words without their endings, stop words left out."""
    return frozenset(_stem(word) for word in _WORD.findall(text.casefold()) if word not in _STOP)


def _stem(word: str) -> str:
    if word[0].isdigit():
        return word.replace(",", "")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
