"""Promises about the errors among verified citations and answers, as labels allow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Promise:
    """At most the share `error` of the items with a score of at least `threshold` is wrong, with a `confidence`.

    It rests on `labels` items with such a score, of which `wrong` are wrong. `bound` is the error that they prove.
    """

    threshold: float
    error: float
    confidence: float
    labels: int
    wrong: int
    bound: float


@dataclass(frozen=True, slots=True)
class Guarantee(Promise):
    """A promise as users see it, and why it does not hold for an answer or its verified citations: `lapsed`."""

    date: str
    sentence: str
    lapsed: str | None


@dataclass(frozen=True, slots=True)
class VerifiedPromise(Promise):
    """The promise for verified citations: given on a `date`, for the collection and models of the `fingerprint`."""

    date: str
    fingerprint: Mapping[str, str]
    about: ClassVar[str] = "verified"

    # Unknown keys in ragfm.toml are errors, here too.
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    def guarantee(self, lapsed: str | None) -> Guarantee:
        """The promise in words, without the fingerprint: it may have names of this machine."""
        day = date.fromisoformat(self.date[:10])
        sentence = (
            f"{self.about}: at most {100 * self.error:g} % wrong, {100 * self.confidence:g} % confidence, "
            f"{self.labels} labels, {day.day} {day:%B %Y}"
        )
        values = {one.name: getattr(self, one.name) for one in fields(Promise)}
        return Guarantee(**values, date=self.date, sentence=sentence, lapsed=lapsed)


@dataclass(frozen=True, slots=True)
class AnsweredPromise(VerifiedPromise):
    """The promise for answers that are `answered`: `threshold` is of their confidence, `labels` are such answers."""

    about: ClassVar[str] = "answered"

    @property
    def wrong_cost(self) -> float:
        """The least `ask.wrong_cost` with which it holds."""
        # Confidences have four decimals: the threshold is between this one and the next lower.
        least = max(0.0, self.threshold - 0.00005)
        return round(least / (1 - least), 6)
