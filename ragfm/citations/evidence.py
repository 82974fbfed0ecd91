"""Evidence: which sentence of the passages supports a claim best, and whether it does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from ragfm.citations.claim_details import addresses, differ
from ragfm.citations.word_match import Words, stands_in, words_of
from ragfm.core.text import sentence_spans

if TYPE_CHECKING:
    from ragfm.core.types import Fault, Hit

SUPPORT = 0.6
"""The share of a sentence's new words that a quote must have."""

ABOUT = 0.2
"""The share of the question's words that a quote of few words must have: a number alone stands in many places."""
NEAREST = 0.6
"""The same, beside the sentence that has most of the question's words."""
_BARE = 2  # words that a claim adds at most, for that
ECHO = 0.5
"""The share of the question's words from which on an answer of no other word only says the question again."""

_CLAUSE = re.compile(r"[,;:()—–]|\s-\s")
_DENIAL = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|cannot|can['’]t|won['’]t)\b|n['’]t\b", re.IGNORECASE
)
_REFERS_BACK = re.compile(r"(?:\w+\W+){0,3}?(?:he|she|it|they|his|her|its|their|this|these|those)\b", re.IGNORECASE)
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}\n]+){b}" for a, b in ('""', "“”", "«»", "„“")))
FEWEST = 3  # words in quotation marks that are taken for a quotation, not for a name or a term
_MADE_HARMLESS = re.compile("(?<=[\\[<])\u200c")  # what the prompt puts into markers and control tokens of documents
_NO_WORDS = words_of("")
_BELOW_HEADER = re.compile(r"[|:\-\s]+")
_ELLIPSIS = re.compile(r"\s*\[?(?:…|\.\.\.)\]?\s*")


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the answer without its markers, where its words end, and the passages that it names."""

    text: str
    end: int
    named: tuple[int, ...]
    words: Words

    @property
    def denies(self) -> bool:
        """Whether it says that something is not so."""
        return denies(self.text)


@dataclass(frozen=True, slots=True)
class Window:
    """A sentence of a passage, and what may be read out of it.

    Headings lend it their words, and the header of a table does to its rows. Where it refers back ("She was …"), the
    sentence before lends it its names, and the window begins there.
    """

    hit: Hit
    start: int
    end: int
    text: str
    words: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """The question's words, whether it denies something, and how many of the words a sentence has at most."""

    words: frozenset[str]
    denies: bool
    most: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """A part of a passage, how well it fits a claim, whether it supports it, and if not, what is wrong."""

    hit: Hit
    start: int
    end: int
    score: float
    supports: bool
    fault: Fault | None = None


def best_of(claim: Claim, asked: Asked, windows: Sequence[Window]) -> Evidence | None:
    """What supports a claim best, or comes nearest to it; None for a claim without words."""
    if not claim.words.all:
        return None
    quoted = quotations(claim.text)
    where = _quoting(quoted, windows) if quoted else windows
    new = new_words(claim, asked)
    found = [_evidence(claim, asked, new, window) for window in where or windows]
    best = max(found, key=lambda one: (one.supports, one.score), default=None)
    return replace(best, supports=False) if best and quoted and not where else best


def _evidence(claim: Claim, asked: Asked, new: frozenset[str], window: Window) -> Evidence:
    words = claim.words
    # The whole question again claims nothing; a part of it may choose among what it offers ("… easier or harder?").
    echo = not new and len(words.all) >= ECHO * len(asked.words)
    new = new or words.all
    found = found_words(claim, new, window)
    share = len(found) / len(new)
    about = common_words(asked.words, window)
    supports = (
        not echo
        # A number of the question ("Is it 28 days?") need not stand in the quote, unless it is all that is claimed.
        and share >= SUPPORT
        and found >= new & words.exact
        and (len(new) > _BARE or about >= max(ABOUT * len(asked.words), NEAREST * asked.most))
        and _agrees(claim, asked, found, window)
        and not differ(claim.text, window.text)
        and _has_addresses(claim, asked, window)
    )
    # What the sentence shares with the question breaks ties: it tells which "28 days" is meant.
    common = len(words.all & window.words) / len(words.all), about / (1 + len(asked.words))
    return Evidence(window.hit, window.start, window.end, 2 * share + sum(common), supports)


def common_words(words: Set[str], window: Window) -> int:
    """How many of the words a window has."""
    return sum(stands_in(word, window.words) for word in words)


def denies(text: str) -> bool:
    """Whether it says that something is not so."""
    return bool(_DENIAL.search(text))


def undenied(text: str) -> str:
    """The text without its words of denial."""
    return _DENIAL.sub(" ", text)


def _agrees(claim: Claim, asked: Asked, found: frozenset[str], window: Window) -> bool:
    """Whether a window denies what the claim does, and nothing else of it.

    Where the question denies, a claim may say its denial again, so that all its words count; one that denies nothing
    ("Earn much.") may answer it by a denial or by something that is so.
    """
    if asked.denies:
        return not claim.denies or denied(window.text, words_of(undenied(claim.text)).all)
    return claim.denies == denied(window.text, found)


def denied(text: str, found: frozenset[str]) -> bool:
    """Whether a clause of the text that has some of the words is a denial."""
    clauses = _CLAUSE.split(text)
    return any(denies(clause) and not found.isdisjoint(words_of(clause).all) for clause in clauses)


def _has_addresses(claim: Claim, asked: Asked, window: Window) -> bool:
    """Whether a window has each address of the claim that the question lacks."""
    known = addresses(window.text)
    return all(one in known or words_of(one).all <= asked.words for one in addresses(claim.text))


def new_words(claim: Claim, asked: Asked) -> frozenset[str]:
    """What a claim adds to the question."""
    exact = claim.words.exact
    return frozenset(w for w in claim.words.all if not (w in asked.words if w in exact else stands_in(w, asked.words)))


def found_words(claim: Claim, new: frozenset[str], window: Window) -> frozenset[str]:
    """Those of a claim's words that the window has; a name must be one there too, unless it opens the claim."""
    names, opening = claim.words.names, claim.words.first

    def stands(word: str) -> bool:
        if word not in names:
            return stands_in(word, window.words)
        return stands_in(word, window.words if word == opening else window.names, endings=2)

    return frozenset(filter(stands, new))


def windows_of(hit: Hit) -> Iterator[Window]:
    """The sentences of a passage."""
    lent = words_of(hit.context)
    before: tuple[int, Words] | None = None
    header = _NO_WORDS
    for start, end in sentence_spans(hit.text):
        text = hit.text[start:end]
        words = words_of(text)
        if not text.startswith("|"):
            header = _NO_WORDS
        elif before and _BELOW_HEADER.fullmatch(text):
            header = before[1]
        known = words.all | (lent.all - lent.numbers) | (header.all - header.numbers)
        names = words.names | lent.names | header.names
        yield Window(hit, start, end, text, known, names)
        if before and _REFERS_BACK.match(text):
            yield Window(hit, before[0], end, text, known | before[1].names, names | before[1].names)
        before = start, words


def quotations(text: str) -> list[str]:
    """What stands in quotation marks, cut at ellipses; a word or two in them are a term, not a quotation."""
    quoted = [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    return [part for whole in quoted if len(whole.split()) >= FEWEST for part in _ELLIPSIS.split(whole) if part.strip()]


def _quoting(quoted: Sequence[str], windows: Sequence[Window]) -> list[Window]:
    """For each passage that has all quotations verbatim, the sentences that they stand in, as one window."""
    found = []
    for hit, some in groupby(windows, key=lambda window: window.hit):
        places = [place(quotation, hit.text) for quotation in quoted]
        if all(places):
            inside = [w for w in some if any(at and w.start < at[1] and at[0] < w.end for at in places)]
            start, end = min(w.start for w in inside), max(w.end for w in inside)
            words, names = (
                frozenset[str]().union(*(getattr(w, which) for w in inside)) for which in ("words", "names")
            )
            found.append(Window(hit, start, end, " ".join(w.text for w in inside), words, names))
    return found


def place(quotation: str, text: str) -> tuple[int, int] | None:
    """The first place where a quotation stands, whatever its white space, first letter's case, and apostrophes."""
    return next(places(quotation, text), None)


def places(quotation: str, text: str) -> Iterator[tuple[int, int]]:
    """All places where it stands."""
    words = quotation.strip().strip(".,;:!?").split()
    if words:
        first, *rest = (re.sub("['’]", "['’]", _MADE_HARMLESS.sub("", re.escape(word))) for word in words)
        pattern = "".join([rf"(?<!\w)(?i:{first})", *(rf"\s+{word}" for word in rest), r"(?!\w)"])
        yield from (match.span() for match in re.finditer(pattern, text))
