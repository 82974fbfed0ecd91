"""Passages: what of the hits a reader is shown, and how.

    hits, best first ─distinct→ without near-duplicates ─arrange→ neighbours joined, in rank or document order

A passage is a `Hit`, and all that is true of hits holds: `document.text[start:end] == text`. docs/retrieval.md has what
each step changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from ragfm.core.types import Dropped

if TYPE_CHECKING:
    from ragfm.core.types import Hit

Order: TypeAlias = Literal["rank", "document"]

ALIKE = 0.9
"""Shingles that two passages share, of all that they have, from which on one says what the other says."""
_SHINGLE = 3  # words
_WORD = re.compile(r"\w+")
_HAS_DIGIT = re.compile(r"\d")


def distinct(hits: Iterable[Hit], k: int) -> tuple[list[Hit], list[Dropped]]:
    """The first `k` hits that say something that none before says, and those in between that don't.

    Two are near-duplicates where they share nine tenths of their runs of three words (Broder 1997) and have the same
    numbers: a table of prices or last year's rules are no duplicates of this year's.
    """
    chosen: list[Hit] = []
    known: list[tuple[frozenset[str], frozenset[str]]] = []
    dropped: list[Dropped] = []
    for hit in hits:
        if len(chosen) == k:
            break
        shingles, numbers = _shingles(hit)
        same = next((at for at, (s, n) in enumerate(known) if n == numbers and _alike(s, shingles)), None)
        if same is None:
            chosen.append(hit)
            known.append((shingles, numbers))
        else:
            dropped.append(Dropped(hit.chunk_id, f"says the same as {chosen[same].uri}, a better hit"))
    return chosen, dropped


def arrange(hits: Sequence[Hit], text_of: Callable[[str], str], *, merge: bool, order: Order) -> list[Hit]:
    """Hits as passages: with `merge`, those of a section that follow one another are one.

    A passage stands at the rank of its best hit, or in `document` order beside those of its document, whose best hit
    says where. `text_of` gives the text of a document; one that is another by now joins nothing.
    """
    groups: list[list[int]] = []  # ranks of the hits of each passage, in the order of the document
    for rank in sorted(range(len(hits)), key=lambda rank: (hits[rank].uri, hits[rank].start)):
        if merge and groups and _follows(hits[groups[-1][-1]], hits[rank], text_of):
            groups[-1].append(rank)
        else:
            groups.append([rank])
    if order == "document":
        first = {hit.uri: rank for rank, hit in reversed(list(enumerate(hits)))}
        groups.sort(key=lambda group: (first[hits[group[0]].uri], hits[group[0]].start))
    else:
        groups.sort(key=min)
    return [_joined([hits[rank] for rank in group], hits[min(group)], text_of) for group in groups]


def passage_with(hit: Hit, passages: Iterable[Hit]) -> Hit | None:
    """The first of the passages that a hit is, or is part of."""

    def has(passage: Hit) -> bool:
        start, end = hit.start - passage.start, hit.end - passage.start
        return passage.uri == hit.uri and start >= 0 and passage.text[start:end] == hit.text

    return next(filter(has, passages), None)


def match_hits(hits: Sequence[Hit], shown: Sequence[Hit]) -> tuple[tuple[Hit, ...], list[Hit]]:
    """Match hits with the passages that a prompt shows.

    Returns the hits, each with the number `n` of the passage that has it, followed by passages that have no hit (those
    of earlier turns); and the passages that have a hit, with the scores of the first one.
    """
    passages = [passage_with(hit, shown) for hit in hits]
    numbered = [replace(hit, n=passage.n if passage else None) for hit, passage in zip(hits, passages, strict=True)]
    scored = []
    for passage in shown:
        first = next((hit for hit in hits if passage_with(hit, [passage])), None)
        if first:
            scored.append(replace(passage, score=first.score, scores=first.scores))
    return (*numbered, *(passage for passage in shown if passage not in passages)), scored


def _joined(group: Sequence[Hit], best: Hit, text_of: Callable[[str], str]) -> Hit:
    """One passage of hits that follow one another; it is known by the best of them."""
    start, end = group[0].start, max(hit.end for hit in group)
    if len(group) == 1:
        return best
    return replace(best, text=text_of(best.uri)[start:end], start=start, end=end, context=group[0].context)


def _follows(before: Hit, hit: Hit, text_of: Callable[[str], str]) -> bool:
    """Whether nothing but white space lies between two hits of one section, page and place."""
    same = (before.uri, before.page, before.place, before.headings) == (hit.uri, hit.page, hit.place, hit.headings)
    if not same:
        return False
    text = text_of(hit.uri)
    unchanged = text[before.start : before.end] == before.text and text[hit.start : hit.end] == hit.text
    return unchanged and not text[before.end : hit.start].strip()


def _shingles(hit: Hit) -> tuple[frozenset[str], frozenset[str]]:
    """Runs of three words, and the words with a digit."""
    words = _WORD.findall(hit.text.casefold())
    runs = range(max(1, len(words) - _SHINGLE + 1))
    shingles = frozenset(" ".join(words[at : at + _SHINGLE]) for at in runs)
    return shingles, frozenset(filter(_HAS_DIGIT.search, words))


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)
