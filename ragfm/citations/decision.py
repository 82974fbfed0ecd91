"""Decide: compose the answer from its cited sentences, or abstain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.grounding import CitedSentence, cite
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.types import AnswerStatus, Citation, Contradiction

if TYPE_CHECKING:
    from ragfm.core.calibration import Calibration
    from ragfm.core.config import AskSection
    from ragfm.core.types import Hit

__all__ = ["ComposedAnswer", "Decision", "compose", "decide", "ground"]


@dataclass(frozen=True, slots=True)
class ComposedAnswer:
    """An answer's text with its citations in the order of their markers.

    `unsupported` are the spans of sentences that no passage supports. `output_spans` has, for each citation, the
    span of its sentence in the reader's output.
    """

    text: str = ""
    citations: tuple[Citation, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    unsupported: tuple[tuple[int, int], ...] = ()
    output_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What the user gets: the status, and the composed answer, or the abstention text without citations."""

    answer: ComposedAnswer
    status: AnswerStatus


def decide(
    text: str,
    sentences: Sequence[CitedSentence],
    confidence: float | None,
    calibration: Calibration | None,
    settings: AskSection,
) -> Decision:
    """Decide whether to answer.

    An answer is withheld if no sentence is left, if `strict` mode has no citation for it, or if its confidence is below
    the threshold of the settings or the calibration. Otherwise it is `answered` where giving it has the higher expected
    utility than saying nothing: a right answer counts 1, a wrong one minus `ask.wrong_cost` (Chow 1970). An answer of
    unknown confidence is given, as are all in `open` mode. `text` is the answer without markers; an abstention stays as
    the reader phrased it.
    """
    if not text:
        return Decision(ComposedAnswer(ABSTENTION), "not_found")
    if is_abstention(text):
        return Decision(ComposedAnswer(text), "not_found")
    strict = settings.mode == "strict"
    answer = compose(sentences, strict=strict, contradictions=settings.contradictions)
    if settings.mode == "open":  # of an answer from memory, the passages tell little
        confidence = None
    withheld = calibration is not None and calibration.withholds(confidence, settings.min_confidence)
    if not answer.text or withheld or (strict and not answer.citations):
        return Decision(ComposedAnswer(ABSTENTION), "not_found")
    unsure = confidence is not None and confidence < settings.wrong_cost * (1 - confidence)
    return Decision(answer, "unsure" if unsure else "answered")


def compose(sentences: Sequence[CitedSentence], *, strict: bool = False, contradictions: bool = True) -> ComposedAnswer:
    """Put cited sentences together. `strict` leaves out sentences that no passage supports."""
    text = ""
    citations, contradicting = list[Citation](), list[Contradiction]()
    unsupported, output_spans = list[tuple[int, int]](), list[tuple[int, int]]()
    for sentence in sentences:
        if strict and sentence.claims and not sentence.supported:
            continue
        words = sentence.text.lstrip()
        white_space = sentence.text[: len(sentence.text) - len(words)] if text else ""
        text += white_space
        start, end = len(text), len(text) + len(words)
        text += words
        if sentence.claims and not sentence.supported:
            unsupported.append((start, end))
        citations += [replace(citation, answer_start=start, answer_end=end) for citation in sentence.citations]
        output_spans += [(sentence.start, sentence.end)] * len(sentence.citations)
        quote = sentence.contradiction
        known = {(one.n, one.start, one.end) for one in citations if one.verified}
        known |= {(one.n, one.start, one.end) for one in contradicting}
        if contradictions and quote and (quote.n, quote.start, quote.end) not in known:
            contradicting.append(
                Contradiction(
                    quote.n, quote.uri, quote.page, quote.start, quote.end, quote.quote, start, end, quote.name
                )
            )
    return ComposedAnswer(text, tuple(citations), tuple(contradicting), tuple(unsupported), tuple(output_spans))


def ground(question: str, output: str, passages: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with corrected markers, and a citation for each marker, in their order."""
    answer = compose(cite(question, output, passages))
    return answer.text, answer.citations
