"""Decide: an answer with its citations, or an abstention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfm.citations.grounding import CitedSentence, ComposedAnswer, compose
from ragfm.core.abstention import ABSTENTION, is_abstention

if TYPE_CHECKING:
    from ragfm.core.calibration import Calibration
    from ragfm.core.config import AskSection

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the user gets: the composed answer, or the abstention text without citations."""

    answer: ComposedAnswer
    abstained: bool


def decide(
    text: str,
    sentences: Sequence[CitedSentence],
    confidence: float | None,
    calibration: Calibration | None,
    settings: AskSection,
) -> Decision:
    """Decide whether to answer.

    An answer is withheld if no sentence is left, if `strict` mode has no citation for it, or if its confidence is below
    the threshold of the settings or the calibration. `text` is the answer without markers; an abstention stays as the
    reader phrased it.
    """
    if not text:
        return Decision(ComposedAnswer(ABSTENTION), abstained=True)
    if is_abstention(text):
        return Decision(ComposedAnswer(text), abstained=True)
    strict = settings.mode == "strict"
    answer = compose(sentences, strict=strict, contradictions=settings.contradictions)
    withheld = (
        calibration is not None
        and settings.mode != "open"
        and calibration.withholds(confidence, settings.min_confidence)
    )
    if not answer.text or withheld or (strict and not answer.citations):
        return Decision(ComposedAnswer(ABSTENTION), abstained=True)
    return Decision(answer, abstained=False)
