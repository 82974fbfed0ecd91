"""Which of several documents is the newer one: messages of one thread, and dated documents with the same title.

A later message may correct an earlier one in the same words, so search prefers neither. Dates decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ragfm.core.types import Hit, Scalar

MIN_SCORE = 0.75
"""Share of an older hit's score that a newer one needs to come first: the last message of a thread may say nothing."""
_MESSAGE_ID = re.compile(r"[^<>\s]+")
_REPLY = re.compile(r"(?:[^\W\d]{1,4}(?:\[\d+\])?:\s*)+")  # Re:, AW:, SV[2]:
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_NUMBER = re.compile(r"\d+")


class _Dated(NamedTuple):
    """A document with a date; documents that share one of the `keys` belong together."""

    date: str
    keys: frozenset[str]


class Superseded(NamedTuple):
    """A passage of an older document, and one of the newest document that belongs to it, with their dates."""

    older: Hit
    newer: Hit
    older_date: str
    newer_date: str


def newest_first(query: str, hits: Sequence[Hit], metadata_of: Callable[[str], Mapping[str, Scalar]]) -> list[Hit]:
    """Hits, best first, of which one goes before worse or better ones of older documents that belong to its document.

    It needs three quarters of their score, and all numbers of the query that they have: a year may ask for the
    older one.
    """
    dated = _dated(hits, metadata_of)
    ordered: list[Hit] = []
    for hit in hits:
        at = len(ordered)
        for before in reversed(range(len(ordered))):
            other = ordered[before]
            if _is_newer(hit, other, dated) and _score(hit) >= MIN_SCORE * max(_score(other), 0.0):
                asked = set(_NUMBER.findall(query))
                if asked.intersection(_NUMBER.findall(other.text)) <= set(_NUMBER.findall(hit.text)):
                    at = before
        ordered.insert(at, hit)
    return ordered


def find_superseded(hits: Sequence[Hit], metadata_of: Callable[[str], Mapping[str, Scalar]]) -> list[Superseded]:
    """The first hit of each document behind one of a newer document, with hits in the order of `newest_first`."""
    dated = _dated(hits, metadata_of)
    found = []
    for at, older in enumerate(hits):
        newer = [hit for hit in hits[:at] if _is_newer(hit, older, dated)]
        if newer and not any(hit.uri == older.uri for hit in hits[:at]):
            newest = max(newer, key=lambda hit: dated[hit.uri].date)
            found.append(Superseded(older, newest, dated[older.uri].date[:10], dated[newest.uri].date[:10]))
    return found


def _dated(hits: Sequence[Hit], metadata_of: Callable[[str], Mapping[str, Scalar]]) -> dict[str, _Dated]:
    found = {}
    for uri in dict.fromkeys(hit.uri for hit in hits):
        metadata = metadata_of(uri)
        date = str(metadata.get("date", ""))
        if _DATE.match(date):
            ids = (str(metadata.get(key, "")) for key in ("message_id", "in_reply_to", "references"))
            title = str(metadata.get("title", "")).casefold()
            prefix = _REPLY.match(title)
            keys = {f"<{one}>" for text in ids for one in _MESSAGE_ID.findall(text)}
            found[uri] = _Dated(date, frozenset({*keys, title[prefix.end() :] if prefix else title} - {""}))
    return found


def _is_newer(hit: Hit, other: Hit, dated: Mapping[str, _Dated]) -> bool:
    mine, others = dated.get(hit.uri), dated.get(other.uri)
    return mine is not None and others is not None and mine.date > others.date and not mine.keys.isdisjoint(others.keys)


def _score(hit: Hit) -> float:
    # Not the fused score, which is 0 for the worst hit, however good that is.
    scores = (hit.scores.get(name) for name in ("rerank", "dense", "keyword"))
    return next((score for score in scores if score is not None), 0.0)
