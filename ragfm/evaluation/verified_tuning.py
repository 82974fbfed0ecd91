"""What labels allow to promise: of citations about `verified`, of answers about `answered`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from ragfm.answering.risk_control import choose_threshold, labels_needed
from ragfm.core.errors import DataError
from ragfm.core.promise import AnsweredPromise, VerifiedPromise
from ragfm.core.text import counted
from ragfm.evaluation.answer_evaluation import AnswersReport
from ragfm.generation.citation_labels import CitationLabel

P = TypeVar("P", bound=VerifiedPromise)


@dataclass(frozen=True, slots=True)
class PromiseReport(Generic[P]):
    """The promise, None if the labels allow none; `why` says what it rests on, or what is missing.

    `labels` count, of which `wrong` are wrong. `more` labels are needed if new ones are like these: 0 with a promise,
    None if no number of them is enough.
    """

    promise: P | None
    labels: int
    wrong: int
    more: int | None
    why: str


def promise_verified(
    labels: Sequence[CitationLabel], *, error: float, confidence: float = 0.95
) -> PromiseReport[VerifiedPromise]:
    """The laxest threshold of `verified` with at most this error, for answers made as that of the newest label.

    `labels` are all of the log, oldest first. Ratings, and labels of answers that were made otherwise, do not count.
    """
    labels = [one for one in labels if not one.rated]
    used = [one for one in labels if one.fingerprint == labels[-1].fingerprint]
    scored = [(one.probability, not one.right) for one in used]
    return _promise(VerifiedPromise, used[-1].fingerprint if used else {}, scored, error, confidence, "label")


def promise_answered(
    answers: AnswersReport, fingerprint: Mapping[str, str], *, error: float, confidence: float = 0.95
) -> PromiseReport[AnsweredPromise]:
    """The laxest confidence of `answered` with at most this error, for answers of the `fingerprint`.

    `answers` were made with `ask.wrong_cost = 0`: all are `answered` that a lower confidence alone would make unsure.
    An answer is right if users see a right answer. Raises DataError if no confidence decides.
    """
    outcomes = [(result, result.outcomes["retrieved"]) for result in answers.results]
    unknown = bool(outcomes) and all(outcome.confidence is None for _, outcome in outcomes)
    if unknown or not answers.about["calibrated"] or answers.about["settings"]["ask"]["mode"] == "open":
        raise DataError(
            "The confidence does not decide which answers are `answered`: none has one, or the mode is `open`.",
            "Change `ask.verifier` or `ask.mode`.",
        )
    given = [
        (1.0 if outcome.confidence is None else outcome.confidence, not result.shows_right_answer)
        for result, outcome in outcomes
        if outcome.status == "answered"
    ]
    return _promise(AnsweredPromise, fingerprint, given, error, confidence, "answer")


def _promise(
    kind: type[P],
    fingerprint: Mapping[str, str],
    scored: Sequence[tuple[float, bool]],
    error: float,
    confidence: float,
    unit: str,
) -> PromiseReport[P]:
    """The promise that scores, each with whether its item is wrong, allow now."""
    wrong, count = sum(is_wrong for _, is_wrong in scored), len(scored)
    scores, faults = [score for score, _ in scored], [is_wrong for _, is_wrong in scored]
    found = choose_threshold(scores, faults, error=error, confidence=confidence)
    if found:
        why = f"At most {100 * found.bound:.1f} % are wrong: {found.wrong} of {counted(**{unit: found.labels})} are."
        date = datetime.now(UTC).isoformat(timespec="milliseconds")
        return PromiseReport(kind(**asdict(found), date=date, fingerprint=fingerprint), count, wrong, 0, why)
    have = f"{wrong} of {counted(**{unit: count})} are wrong" if count else f"There are no {unit}s"
    rate = wrong / count if count else 0.0
    if rate >= error:
        why = f"{have}, which is not below {100 * error:g} %. Choose a larger --error."
        return PromiseReport(None, count, wrong, None, why)
    more = max(1, labels_needed(error, confidence, rate) - count)
    source = "`ragfm log review` asks for them" if unit == "label" else "add questions"
    why = f"{have}. About {more} more are needed if the share of wrong ones stays: {source}."
    return PromiseReport(None, count, wrong, more, why)
