"""Passages: from hits to the passages in the prompt.

    hits, best first ─distinct→ without near-duplicates ─arrange→ neighbours merged, in rank or document order

A passage is a `Hit`, so `document.text[start:end] == text`. docs/retrieval.md has the effect of each step.
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

NEAR_DUPLICATE = 0.9
"""Jaccard similarity of shingles from which on two passages are near-duplicates."""
_SHINGLE = 3  # words
_WORD = re.compile(r"\w+")
_HAS_DIGIT = re.compile(r"\d")
_ROWS = re.compile(r"(?:\s*\|[^\n]*)*")


def distinct(hits: Iterable[Hit], k: int) -> tuple[list[Hit], list[Dropped]]:
    """The first `k` hits that are not near-duplicates of better ones, and the near-duplicates between them.

    Near-duplicates share 90 % of their shingles of three words (Broder 1997) and have the same numbers: last year's
    prices or rules are not duplicates of this year's. Nor are figures with different pictures.
    """
    chosen: list[Hit] = []
    known: list[tuple[frozenset[str], frozenset[str], str | None]] = []
    dropped: list[Dropped] = []
    for hit in hits:
        if len(chosen) == k:
            break
        words = _WORD.findall(hit.text.casefold())
        starts = range(max(1, len(words) - _SHINGLE + 1))
        shingles = frozenset(" ".join(words[at : at + _SHINGLE]) for at in starts)
        numbers = frozenset(filter(_HAS_DIGIT.search, words))
        near = (
            at
            for at, (known_shingles, known_numbers, image) in enumerate(known)
            if known_numbers == numbers
            and (image == hit.image or not (image and hit.image))
            and len(known_shingles & shingles) >= NEAR_DUPLICATE * len(known_shingles | shingles)
        )
        same = next(near, None)
        if same is None:
            chosen.append(hit)
            known.append((shingles, numbers, hit.image))
        else:
            dropped.append(Dropped(hit.chunk_id, f"near-duplicate of a better hit in {chosen[same].uri}"))
    return chosen, dropped


def arrange(
    hits: Sequence[Hit], text_of: Callable[[str], str], *, merge: bool = True, order: Order = "rank"
) -> list[Hit]:
    """Turn hits into passages; with `merge`, consecutive hits of a section become one passage.

    A passage has the rank of its best hit. In `document` order, the passages of a document stand together, at the rank
    of its best hit. `text_of` returns the text of a document by uri; hits of a changed document are not merged.
    """
    groups: list[list[int]] = []  # ranks of the hits of each passage, in the order of the document
    for rank in sorted(range(len(hits)), key=lambda rank: (hits[rank].uri, hits[rank].start)):
        hit, before = hits[rank], hits[groups[-1][-1]] if groups else None
        follows = False
        if merge and before:
            section = (hit.uri, hit.page, hit.place, hit.headings, hit.image)
            if section == (before.uri, before.page, before.place, before.headings, before.image):
                text = text_of(hit.uri)
                unchanged = text[before.start : before.end] == before.text and text[hit.start : hit.end] == hit.text
                follows = unchanged and not text[before.end : hit.start].strip()
        if follows:
            groups[-1].append(rank)
        else:
            groups.append([rank])
    if order == "document":
        first = {hit.uri: rank for rank, hit in reversed(list(enumerate(hits)))}
        groups.sort(key=lambda group: (first[hits[group[0]].uri], hits[group[0]].start))
    else:
        groups.sort(key=min)
    passages: list[Hit] = []
    for group in groups:
        passage, first_hit = hits[min(group)], hits[group[0]]
        if len(group) > 1:
            start, end = first_hit.start, max(hits[rank].end for rank in group)
            text = text_of(passage.uri)[start:end]
            lines = [lines for rank in group if (lines := hits[rank].lines)]
            joined = (lines[0][0], max(last for _, last in lines)) if lines else None
            passage = replace(passage, text=text, start=start, end=end, context=first_hit.context, lines=joined)
        passages.append(passage)
    return passages


def table_around(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of `text[start:end]` together with the Markdown tables that it begins and ends in, or introduces.

    Tables with only space between them count as one: parsers cut a table of a PDF file where its columns change.
    """
    rest = _ROWS.match(text, end)
    assert rest
    if text.startswith("|", start):
        position = start
        for line in reversed(text[:start].splitlines(keepends=True)):
            position -= len(line)
            if line.startswith("|"):
                start = position
            elif line.strip():
                break
    return start, rest.end()


def passage_with(hit: Hit, passages: Iterable[Hit]) -> Hit | None:
    """The first passage that contains a hit."""

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
