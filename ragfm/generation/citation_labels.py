"""Labels of citations, by people: whether the quote states what the sentence says. Promises rest on them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ragfm.answering.grounding import VERIFIED
from ragfm.core.promise import VerifiedPromise
from ragfm.generation.log_entries import LogEntry

EVIDENCE = 20
"""Evidence from which labels contradict a promise: a true one is contradicted with a probability of at most 1 / 20."""


@dataclass(frozen=True, slots=True)
class CitationLabel:
    """Whether citation number `citation` (from 1) of a log entry is `right`, by whom and when it was labelled.

    `probability` is the judge's, and `fingerprint` that of the collection and models of the answer. They are kept here,
    so that a label counts after its entry was forgotten. `rated`: it is a user's rating of the answer, `by` the name of
    the API key. Users choose what they rate, so ratings may end a promise, but no promise rests on them.
    """

    entry: int
    citation: int
    right: bool
    by: str
    at: str
    probability: float
    fingerprint: Mapping[str, str]
    rated: bool = False


def accepted(entry: LogEntry, citation: int) -> bool:
    """Whether a citation is verified, or would be without a promise.

    Labels are drawn from all of these, whatever the threshold was at that time: else those above a raised threshold
    would be too frequent among the labels, and the next promise too good.
    """
    if not entry.finished or entry.fingerprint is None:
        return False
    one = entry.citations[citation - 1]
    return (one["probability"] or 0.0) >= VERIFIED and one["fault"] in (None, "unclear")


def to_review(
    entries: Sequence[LogEntry], labelled: Collection[tuple[int, int]], seed: int = 0
) -> list[tuple[LogEntry, int]]:
    """The accepted citations without a label, in random order.

    Only those of answers that were made as the newest one are of use: labels of others allow no promise for it.
    """
    current = next((one.fingerprint for one in reversed(entries) if one.fingerprint), None)
    found = [
        (entry, number)
        for entry in entries
        if entry.fingerprint == current
        for number in range(1, len(entry.citations) + 1)
        if accepted(entry, number) and (entry.id, number) not in labelled
    ]
    random.Random(seed).shuffle(found)  # noqa: S311  a sample
    return found


def why_lapsed(promise: VerifiedPromise, fingerprint: Mapping[str, str], labels: Sequence[CitationLabel]) -> str | None:
    """Why a promise does not hold for answers with this fingerprint, in view of later labels; None if it holds."""
    changed = [name for name, value in fingerprint.items() if promise.fingerprint.get(name) != value]
    if changed:
        return f"{' and '.join(changed)} changed since {promise.date[:10]}"
    later = [
        one
        for one in labels
        if one.at > promise.date and one.fingerprint == fingerprint and one.probability >= promise.threshold
    ]
    if not later:
        return None
    from ragfm.answering.risk_control import evidence_against  # scipy takes long to import

    # Apart: many ratings of what pleased must not outweigh labels of a random sample.
    for rated, name in ((False, "later labels are wrong"), (True, "later ratings are down")):
        wrong = [not one.right for one in later if one.rated == rated]
        if wrong and evidence_against(wrong, promise.error).max() >= EVIDENCE:
            return f"{sum(wrong)} of {len(wrong)} {name}"
    return None
