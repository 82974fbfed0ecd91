"""What labels of citations allow to promise about `verified`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ragfm.answering.risk_control import choose_threshold, labels_needed
from ragfm.core.promise import VerifiedPromise
from ragfm.core.text import counted
from ragfm.generation.citation_labels import CitationLabel


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """The promise, None if the labels allow none; `why` says what it rests on, or what is missing.

    `labels` count, of which `wrong` are wrong. `more` labels are needed if new ones are like these: 0 with a promise,
    None if no number of them is enough.
    """

    promise: VerifiedPromise | None
    labels: int
    wrong: int
    more: int | None
    why: str


def promise_verified(labels: Sequence[CitationLabel], *, error: float, confidence: float = 0.95) -> VerifiedReport:
    """The laxest threshold of `verified` with at most this error, for answers made as that of the newest label.

    `labels` are all of the log, oldest first. Ratings, and labels of answers that were made otherwise, do not count.
    """
    labels = [one for one in labels if not one.rated]
    used = [one for one in labels if one.fingerprint == labels[-1].fingerprint]
    wrong = sum(not one.right for one in used)
    found = choose_threshold(
        [one.probability for one in used], [not one.right for one in used], error=error, confidence=confidence
    )
    if found:
        date = datetime.now(UTC).isoformat(timespec="milliseconds")
        promise = VerifiedPromise(**asdict(found), date=date, fingerprint=used[-1].fingerprint)
        why = f"At most {100 * promise.bound:.1f} % are wrong: {promise.wrong} of {counted(label=promise.labels)} are."
        return VerifiedReport(promise, len(used), wrong, 0, why)
    have = f"{wrong} of {counted(label=len(used))} are wrong" if used else "There are no labels"
    rate = wrong / len(used) if used else 0.0
    if rate >= error:
        why = f"{have}, which is not below {100 * error:g} %. Choose a larger --error."
        return VerifiedReport(None, len(used), wrong, None, why)
    more = max(1, labels_needed(error, confidence, rate) - len(used))
    why = f"{have}. About {more} more are needed if the share of wrong ones stays: `ragfm log review` asks for them."
    return VerifiedReport(None, len(used), wrong, more, why)
