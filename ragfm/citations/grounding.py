"""Grounding: from a reader's words to citations that can be checked, without another model call.

Each sentence of the answer is held against the sentences of the passages. The one that supports it best becomes the
quote: a slice of the document, character for character. A quote supports a sentence when it has all numbers and names
that the sentence adds to the question, most of the other words that it adds, and denies something exactly when the
sentence does; nor may it have another unit or the opposite of what the sentence says. Words that the sentence puts in
quotation marks must stand there as they are. A sentence that only says the question again claims nothing that could be
supported.

A citation that is not verified has one of three faults: `fabricated`, what it is to show stands nowhere in the
passages; `misattributed`, another passage shows it; `stitched`, its parts stand in several places, and nowhere
together. Where the verifier was asked, there are two more: `irrelevant`, it shows what is said, but hardly what was
asked for, and `uncertain`, perhaps not what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.citation_faults import fault_of
from ragfm.citations.contradictions import against
from ragfm.citations.evidence import Asked, Claim, Evidence, Window, best_of, common_words, denies, windows_of
from ragfm.citations.word_match import words_of
from ragfm.core.text import MARKER, sentence_spans, unmarked
from ragfm.core.types import Citation

if TYPE_CHECKING:
    from ragfm.core.types import Hit

__all__ = ["Sentence", "composed", "ground", "grounded", "own_words", "said_otherwise"]

_LONGEST = 300  # characters of a contradiction that are quoted
_YES = re.compile(r"\W*yes\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of the answer with its markers, the white space before it, and a citation for each marker.

    `supported`: one of them supports it. `says`: it has words that could be, or is a "Yes." that stands for the whole
    answer. `otherwise` is a passage that has another number or name where the quote has the sentence's.
    """

    text: str
    citations: tuple[Citation, ...]
    says: bool
    otherwise: Citation | None = None

    @property
    def plain(self) -> str:
        """The sentence alone."""
        return MARKER.sub("", self.text).strip()

    @property
    def supported(self) -> bool:
        """Whether a citation supports it."""
        return any(citation.supports for citation in self.citations)


def ground(question: str, text: str, shown: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with its markers put right, and a citation for each marker, in their order."""
    text, citations, _ = composed(grounded(question, text, shown), contradictions=False)
    return text, citations


def grounded(question: str, text: str, shown: Sequence[Hit]) -> list[Sentence]:
    """The answer sentence by sentence.

    Markers of passages that were not shown go; a sentence that names none that supports it gets the marker of one that
    does, if there is one.
    """
    windows = {hit.n: list(windows_of(hit)) for hit in shown if hit.n is not None}
    words = words_of(question).all
    most = max((common_words(words, window) for some in windows.values() for window in some), default=0)
    asked = Asked(words, denies(question), most)
    sentences, done = [], 0
    plain, claims = _claims(text)
    bare = not any(claim.words.all for claim in claims)  # beside other sentences, "Yes." says no more than they do
    for claim in claims:
        evidence = list(_cited(claim, asked, windows))
        body_end = len(plain[: claim.end].rstrip(".!?…。！？｡"))
        markers = "".join(f"[{found.hit.n}]" for found in evidence)
        said = f"{plain[done:body_end]}{f' {markers}' if markers else ''}{plain[body_end : claim.end]}"
        citations = tuple(_citation(found) for found in evidence)
        other = next((w for found in evidence if found.supports and (w := against(claim, asked, found, windows))), None)
        otherwise = _citation(Evidence(other.hit, other.start, other.end, 0.0, supports=True)) if other else None
        says = bool(claim.words.all or (bare and _YES.match(claim.text)))
        sentences.append(Sentence(said, citations, says, otherwise))
        done = claim.end
    return sentences


def composed(
    sentences: Sequence[Sentence], *, strict: bool = False, contradictions: bool = True
) -> tuple[str, tuple[Citation, ...], tuple[tuple[int, int], ...]]:
    """The answer's text, its citations in the order of their markers, and where in the text nothing supports it.

    `strict` leaves out what nothing supports. With `contradictions`, a sentence that another passage contradicts is
    followed by one that says so, with a marker and a citation of its own.
    """
    text, citations, unsupported = "", list[Citation](), list[tuple[int, int]]()
    for sentence in sentences:
        if strict and sentence.says and not sentence.supported:
            continue
        said = sentence.text if text else sentence.text.lstrip()
        if sentence.says and not sentence.supported:
            unsupported.append((len(text) + len(said) - len(said.lstrip()), len(text) + len(said)))
        text += said
        citations += sentence.citations
        if contradictions and sentence.otherwise and sentence.otherwise not in citations:
            text += said_otherwise(sentence.otherwise.n, sentence.otherwise.quote)
            citations.append(sentence.otherwise)
    return text, tuple(citations), tuple(unsupported)


def own_words(text: str, cited: Iterable[tuple[int, str]]) -> tuple[str, list[bool]]:
    """An answer without the sentences on what other passages say, and for each citation whether it is still there.

    A citation is the number of a passage, and the quote.
    """
    own = []
    for n, quote in cited:
        added = said_otherwise(n, quote)
        own.append(added not in text)
        text = text.replace(added, "")
    return text, own


def said_otherwise(n: int, quote: str) -> str:
    """What follows a sentence that the passage `n` contradicts with these words."""
    quote = unmarked(" ".join(quote.split()))
    return f" But [{n}] says otherwise" + (f": “{quote}”" if len(quote) <= _LONGEST else ".")


def _claims(text: str) -> tuple[str, list[Claim]]:
    """The text without markers, and its sentences with the markers that stood in or right behind them."""
    plain, markers, done = "", [], 0
    for match in MARKER.finditer(text):
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
        claims.append(Claim(plain[start:end], end, named, words_of(plain[start:end])))
        before = start + 1
    return plain, claims


def _cited(claim: Claim, asked: Asked, windows: Mapping[int, Sequence[Window]]) -> Iterator[Evidence]:
    """The best evidence from each passage that a claim names; where none of it supports it, from the one that does."""
    every = [window for some in windows.values() for window in some]
    best = best_of(claim, asked, every)
    named = [found for n in dict.fromkeys(claim.named) if (found := best_of(claim, asked, windows.get(n, ())))]
    for found in named:
        yield found if found.supports else replace(found, fault=fault_of(claim, asked, best, windows, found.hit))
    if best and best.supports and not any(found.supports for found in named):
        yield best


def _citation(found: Evidence) -> Citation:
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
        fault=found.fault,
    )
