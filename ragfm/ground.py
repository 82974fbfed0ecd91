"""Grounding: from a reader's words to citations that can be checked, without another model call.

Each sentence of the answer is held against the sentences of the passages. The one that supports it best becomes the
quote: a slice of the document, character for character. A quote supports a sentence when it has all numbers and names
that the sentence adds to the question, most of the other words that it adds, and denies something exactly when the
sentence does. Words that the sentence puts in quotation marks must stand there as they are. A sentence that only says
the question again claims nothing that could be supported.

A citation that does not hold has one of three faults: `fabricated`, what it is to show stands nowhere in the passages;
`misattributed`, another passage shows it; `stitched`, its parts stand in several places, and nowhere together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from ragfm.text import sentence_spans
from ragfm.types import Citation

if TYPE_CHECKING:
    from ragfm.types import Fault, Hit

SUPPORT = 0.6
"""The share of a sentence's new words that a quote must have."""

ABOUT = 0.2
"""The share of the question's words that a quote of few words must have: a number alone stands in many places."""
_BARE = 2  # words that a claim adds at most, for that
ECHO = 0.5
"""The share of the question's words from which on an answer of no other word only says the question again."""

_CLAUSE = re.compile(r"[,;:()—–]|\s-\s")
_MARKER = re.compile(r"\s*\[(\d+(?:\s*[,;]\s*\d+)*)\]")
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+")
_STOP = frozenset(
    """
    a according an and are as at based be been but by can did do does for from get gets go goes got had has have how i
    if in into is it its may more must my of on or our passage passages shall should so than that the their them then
    there these they this to up was we were what when where which who will with would you your yes
    """.split()
)
_DENIAL = re.compile(r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|cannot)\b|n['’]t\b", re.IGNORECASE)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split()
    )
} | {word: str(10 * number) for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)}
_ALSO_NAMES = ("may", "will")
_AMOUNTS = frozenset("dozen half hundred thousand million billion trillion".split())
_REFERS_BACK = re.compile(r"(?:\w+\W+){0,3}?(?:he|she|it|they|his|her|its|their|this|these|those)\b", re.IGNORECASE)
_QUOTED = re.compile("|".join(f"{a}([^{a}{b}\n]+){b}" for a, b in ('""', "“”", "«»", "„“")))
_FEWEST = 3  # words in quotation marks that are taken for a quotation, not for a name or a term
_ELLIPSIS = re.compile(r"\s*\[?(?:…|\.\.\.)\]?\s*")


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a text: `names` and `numbers` are among `all`; the `first` may have its capital from that."""

    all: frozenset[str]
    names: frozenset[str]
    numbers: frozenset[str]
    first: str

    @property
    def exact(self) -> frozenset[str]:
        """Those that a quote must have, each of them."""
        return self.names | self.numbers


@dataclass(frozen=True, slots=True)
class _Claim:
    """A sentence of the answer without its markers, where its words end, and the passages that it names."""

    text: str
    end: int
    named: tuple[int, ...]
    words: _Words

    @property
    def denies(self) -> bool:
        return bool(_DENIAL.search(self.text))


@dataclass(frozen=True, slots=True)
class _Window:
    """A sentence of a passage, and what may be read out of it.

    Headings lend it their words. Where it refers back ("She was …"), the sentence before lends it its names, and the
    window begins there.
    """

    hit: Hit
    start: int
    end: int
    text: str
    words: frozenset[str]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question's words, and whether it denies something."""

    words: frozenset[str]
    denies: bool


@dataclass(frozen=True, slots=True)
class _Evidence:
    hit: Hit
    start: int
    end: int
    score: float
    supports: bool
    fault: Fault | None = None


def ground(question: str, text: str, shown: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with its markers put right, and a citation for each marker.

    Markers of passages that were not shown go; a sentence that names no passage gets the marker of the one that
    supports it, if there is one. Citations come in the order of their markers.
    """
    windows = {hit.n: list(_windows(hit)) for hit in shown if hit.n is not None}
    asked = _Asked(_words(question).all, bool(_DENIAL.search(question)))
    pieces: list[str] = []
    citations: list[Citation] = []
    done = 0
    plain, claims = _claims(text)
    for claim in claims:
        evidence = list(_cited(claim, asked, windows))
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
        claims.append(_Claim(plain[start:end], end, named, _words(plain[start:end])))
        before = start + 1
    return plain, claims


def _cited(claim: _Claim, asked: _Asked, windows: Mapping[int, Sequence[_Window]]) -> Iterator[_Evidence]:
    """The best evidence from each passage that a claim names, or from the one that supports it."""
    every = [window for some in windows.values() for window in some]
    best = _best(claim, asked, every)
    named = [n for n in dict.fromkeys(claim.named) if n in windows]
    for n in named:
        if found := _best(claim, asked, windows[n]):
            yield found if found.supports else replace(found, fault=_fault(claim, asked, best, windows, n))
    if not named and best and best.supports:
        yield best


# --- Evidence ----------------------------------------------------------------------------------------------------


def _best(claim: _Claim, asked: _Asked, windows: Sequence[_Window]) -> _Evidence | None:
    if not claim.words.all:
        return None
    quotations = _quotations(claim.text)
    quoting = _quoting(quotations, windows) if quotations else windows
    new = _new(claim, asked)
    found = [_evidence(claim, asked, new, window) for window in quoting or windows]
    best = max(found, key=lambda one: (one.supports, one.score), default=None)
    return replace(best, supports=False) if best and quotations and not quoting else best


def _evidence(claim: _Claim, asked: _Asked, new: frozenset[str], window: _Window) -> _Evidence:
    words = claim.words
    # The whole question again claims nothing; a part of it may choose among what it offers ("… easier or harder?").
    echo = not new and len(words.all) >= ECHO * len(asked.words)
    new = new or words.all
    found = _found(claim, new, window)
    share = len(found) / len(new)
    about = sum(_stands_in(word, window.words) for word in asked.words)
    supports = (
        not echo
        # A number of the question ("Is it 28 days?") need not stand in the quote, unless it is all that is claimed.
        and share >= SUPPORT
        and found >= new & words.exact
        and (len(new) > _BARE or about >= ABOUT * len(asked.words))
        and (asked.denies or claim.denies == _denies(window.text, found))
    )
    # What the sentence shares with the question breaks ties: it tells which "28 days" is meant.
    common = len(words.all & window.words) / len(words.all), about / (1 + len(asked.words))
    return _Evidence(window.hit, window.start, window.end, 2 * share + sum(common), supports)


def _denies(text: str, found: frozenset[str]) -> bool:
    """Whether a clause of the text that has some of the words is a denial."""
    clauses = _CLAUSE.split(text)
    return any(_DENIAL.search(clause) and not found.isdisjoint(_words(clause).all) for clause in clauses)


def _new(claim: _Claim, asked: _Asked) -> frozenset[str]:
    """What a claim adds to the question."""
    exact = claim.words.exact
    return frozenset(w for w in claim.words.all if not (w in asked.words if w in exact else _stands_in(w, asked.words)))


def _found(claim: _Claim, new: frozenset[str], window: _Window) -> frozenset[str]:
    """Those of a claim's words that the window has; a name must be one there too, unless it opens the claim."""
    names = claim.words.names - {claim.words.first}
    return frozenset(
        word for word in new
        if (_stands_in(word, window.names, endings=2) if word in names else _stands_in(
            word, window.words, endings=2 if word in claim.words.names else None))
    )  # fmt: skip


def _stands_in(word: str, known: frozenset[str], *, endings: int | None = None) -> bool:
    """Whether a word is known, or with another ending; of `endings` letters more or less at most, where given."""
    if word in known or word[0].isdigit() or len(word) < 5:
        return word in known
    if endings is not None:
        return any(abs(len(word) - len(other)) <= endings and (word.startswith(other) or other.startswith(word))
                   for other in known)  # fmt: skip
    beginning = word[: max(5, len(word) - 3)]
    return any(other.startswith(beginning) for other in known)


def _windows(hit: Hit) -> Iterator[_Window]:
    lent = _words(hit.context)
    before: tuple[int, _Words] | None = None
    for start, end in sentence_spans(hit.text):
        text = hit.text[start:end]
        words = _words(text)
        known, names = words.all | (lent.all - lent.numbers), words.names | lent.names
        yield _Window(hit, start, end, text, known, names)
        if before and _REFERS_BACK.match(text):
            yield _Window(hit, before[0], end, text, known | before[1].names, names | before[1].names)
        before = start, words


# --- Quotations and faults ---------------------------------------------------------------------------------------


def _quotations(text: str) -> list[str]:
    """What stands in quotation marks, cut at ellipses; a word or two in them are a term, not a quotation."""
    quoted = [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    return [
        part for whole in quoted if len(whole.split()) >= _FEWEST for part in _ELLIPSIS.split(whole) if part.strip()
    ]


def _quoting(quotations: Sequence[str], windows: Sequence[_Window]) -> list[_Window]:
    """For each passage that has all quotations verbatim, the sentences that they stand in, as one window."""
    found = []
    for hit, some in groupby(windows, key=lambda window: window.hit):
        places = [_place(quotation, hit.text) for quotation in quotations]
        if all(places):
            inside = [w for w in some if any(place and w.start < place[1] and place[0] < w.end for place in places)]
            start, end = min(w.start for w in inside), max(w.end for w in inside)
            words, names = (
                frozenset[str]().union(*(getattr(w, which) for w in inside)) for which in ("words", "names")
            )
            found.append(_Window(hit, start, end, " ".join(w.text for w in inside), words, names))
    return found


def _place(quotation: str, text: str) -> tuple[int, int] | None:
    """Where a quotation stands, whatever the white space, its first letter's case, and the form of apostrophes."""
    words = quotation.strip().strip(".,;:!?").split()
    if not words:
        return None
    first, *rest = (re.sub("['’]", "['’]", re.escape(word)) for word in words)
    match = re.search("".join([rf"(?<!\w)(?i:{first})", *(rf"\s+{word}" for word in rest), r"(?!\w)"]), text)
    return match.span() if match else None


def _fault(
    claim: _Claim, asked: _Asked, best: _Evidence | None, windows: Mapping[int, Sequence[_Window]], named: int
) -> Fault:
    """Why passage `named` does not support a claim. `best` is the best evidence from all passages."""
    texts = {n: some[0].hit.text for n, some in windows.items() if some}
    missing = [quotation for quotation in _quotations(claim.text) if not _place(quotation, texts[named])]
    if missing:
        if any(all(_place(quotation, text) for quotation in missing) for text in texts.values()):
            return "misattributed"
        return "stitched" if all(_is_stitched(quotation, texts.values()) for quotation in missing) else "fabricated"
    if best and best.supports:
        return "misattributed"
    new = _new(claim, asked)
    every = [window for some in windows.values() for window in some]
    anywhere = set[str]().union(*(_found(claim, new, window) for window in every))
    alone = any(len(_found(claim, new, window)) == len(anywhere) for window in every)
    return "stitched" if new and anywhere == new and not alone else "fabricated"


def _is_stitched(quotation: str, texts: Collection[str]) -> bool:
    """Whether a quotation is made of pieces that stand verbatim in the passages, each of three words or more."""
    words = quotation.split()
    reachable = {0}
    for end in range(_FEWEST, len(words) + 1):
        if any(_place(" ".join(words[start:end]), text) for start in reachable if end - start >= _FEWEST
               for text in texts):  # fmt: skip
            reachable.add(end)
    return len(words) in reachable


# --- Words -------------------------------------------------------------------------------------------------------


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
        fault=found.fault,
    )


def _words(text: str) -> _Words:
    """Words without their endings, stop words left out; numbers as digits, without separators."""
    every, names, numbers, first = set[str](), set[str](), set[str](), ""
    for at, match in enumerate(_WORD.finditer(text)):
        word = match[0].casefold()
        capital = match[0][0].isupper()
        if word in _STOP and not (word in _ALSO_NAMES and capital and at):
            continue
        stem = _stem(word)
        every.add(stem)
        first = first if at else stem
        if stem[0].isdigit() or word in _AMOUNTS:
            numbers.add(stem)
        elif capital:
            names.add(stem)
    return _Words(frozenset(every), frozenset(names), frozenset(numbers), first)


def _stem(word: str) -> str:
    if word in _NUMBERS or word[0].isdigit():
        return _NUMBERS.get(word, word.replace(",", ""))
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
