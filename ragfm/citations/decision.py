"""Decide: compose the answer from its cited sentences, or abstain; and the text that users see.

With a small or unsure reader, users see the sentence or table row of the documents that most likely contains the
answer, with the reader's answer or in its place. If there is no answer, they see one sentence of each of the best
passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ragfm.answering.units import passage_citation
from ragfm.citations.grounding import Alternative, CitedAnswer, CitedSentence, cite
from ragfm.citations.support import Analysis, Evidence, Window, row_with_answer, terms_of
from ragfm.core.abstention import ABSTENTION
from ragfm.core.status_sentences import ENGLISH, StatusSentences
from ragfm.core.text import MARKER, QUESTION_MARKS, escape_markers
from ragfm.core.types import AnswerStatus, Citation, Contradiction

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.calibration import Calibration
    from ragfm.core.config import AskSection
    from ragfm.core.types import Hit

NEAREST = 3
"""Number of sentences to show if there is no answer."""
_TERMS_WEIGHT = 0.5
"""Of 123 questions in seven sets whose passages contain the answer, the best sentence contains it for 90 with a weight
of 0.3 to 1, for 85 without the terms, and for 83 by the terms alone."""
_LIKELY = 0.5
"""Likelihood from which an answer to "How do I …?" is one of a few words. Over four manuals, none of 46 reached it."""
_MAX_OPENING = 400  # characters


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
    """The result: the status, the composed answer or the abstention without citations, and the text to show.

    `quote` is the sentence of the documents that is shown with an answer. If there is no answer, `nearest` are the
    sentences that come closest to one.
    """

    status: AnswerStatus
    answer: ComposedAnswer
    shown: str
    quote: Citation | None
    nearest: tuple[Citation, ...]


def decide(
    cited: CitedAnswer,
    confidence: float | None,
    calibration: Calibration | None,
    settings: AskSection,
    *,
    small: bool,
    abstention: str = ABSTENTION,
    instructions: bool = False,
    doubtful: bool = False,
    sentences: StatusSentences = ENGLISH,
) -> Decision:
    """Decide whether to answer, and what to show.

    An answer is withheld if no sentence is left, if `strict` mode has no citation for it, or if its confidence is below
    the threshold of the settings or the calibration. Otherwise it is `answered` where giving it has the higher expected
    utility than saying nothing: a right answer counts 1, a wrong one minus `ask.wrong_cost` (Chow 1970). An answer of
    unknown confidence is given, as are all in `open` mode. An abstention of the reader keeps its wording; any other is
    `abstention`. The answers of a `small` reader are shown with a quote, and replaced by it where they are unsure. They
    are `answered` only if they come from the sentence that most likely has the answer, or if that one has their words.
    Where documents disagree, an answer is unsure, except in `open` mode; the other answers are its contradictions. If
    the question asks for `instructions` and the verifier finds no likely answer, they are unsure, and the quote is
    how the best passage begins.

    `doubtful` answers are never more than unsure. `sentences` are those of the question's language; a reader that says
    `ABSTENTION` says it in that language.
    """
    strict = settings.mode == "strict"
    answer = compose(cited.sentences, strict=strict, contradictions=settings.contradictions)
    if settings.mode == "open":  # the passages say little about an answer from memory
        confidence = None
    instructions &= small and settings.mode != "open" and all(one.best[0] < _LIKELY for one in cited.readings)
    withheld = calibration is not None and calibration.withholds(confidence, settings.min_confidence)
    status: AnswerStatus = "answered"
    if cited.abstains:
        answer, status = ComposedAnswer(abstention if cited.text == ABSTENTION else cited.text), "not_found"
    elif not answer.text or withheld or (strict and not answer.citations):
        answer, status = ComposedAnswer(abstention), "not_found"
    elif instructions or doubtful or (confidence is not None and confidence < settings.wrong_cost * (1 - confidence)):
        status = "unsure"

    supporting = [one for one in answer.citations if one.supports]
    alternatives = cited.alternatives if settings.contradictions and not instructions else ()
    if status == "answered" and settings.mode != "open":
        others = unstated(alternatives, answer.text, supporting)
        if others or {one.uri for one in answer.contradictions} - {one.uri for one in supporting}:
            status = "unsure"

    nearest: Sequence[tuple[float, Citation]] = ()
    if instructions:
        nearest = openings(cited.analysis)
    elif status != "answered" or small:
        nearest = nearest_sentences(cited.analysis, cited.readings, cited.close)
    if status == "not_found":
        likeliest_first = sorted(nearest, key=lambda one: -one[0])[:NEAREST]
        return Decision(status, answer, answer.text, None, tuple(citation for _, citation in likeliest_first))
    quote = select_quote(status, answer.citations, nearest, small=small)
    if status == "answered" and small and nearest and cited.readings:
        _, likeliest = max(nearest, key=lambda one: one[0])
        if not any(_overlap(one, likeliest) for one in supporting):
            quote = likeliest
            if not terms_of(MARKER.sub("", answer.text)).all <= terms_of(quote.quote).all:
                status = "unsure"
    if small and status == "unsure" and quote:  # it is shown in place of the answer
        answer = add_alternatives(answer, alternatives, quote.quote, [quote])
    else:
        answer = add_alternatives(answer, alternatives, answer.text, supporting)
    section = _section_of(quote, cited.analysis) if instructions and quote else ""
    shown = shown_text(answer.text, status, quote, small=small, section=section, sentences=sentences)
    return Decision(status, answer, shown, quote, ())


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
        citations += [citation_of(evidence, start, end) for evidence in sentence.evidence]
        output_spans += [(sentence.start, sentence.end)] * len(sentence.evidence)
        if contradictions and sentence.contradiction:
            quote = citation_of(sentence.contradiction)
            known = {(one.n, one.start, one.end) for one in citations if one.verified}
            known |= {(one.n, one.start, one.end) for one in contradicting}
            if (quote.n, quote.start, quote.end) not in known:
                contradicting.append(_contradiction_of(quote, start, end))
    return ComposedAnswer(text, tuple(citations), tuple(contradicting), tuple(unsupported), tuple(output_spans))


def unstated(alternatives: Sequence[Alternative], text: str, evidence: Sequence[Citation]) -> list[Citation]:
    """Of the answers that different documents give, the places of those that neither a text nor its evidence has."""
    places = [citation_of(one.evidence) for one in alternatives if not one.stated_in(text)]
    return [place for place in places if not any(_overlap(place, cited) for cited in evidence)]


def add_alternatives(
    answer: ComposedAnswer, alternatives: Sequence[Alternative], text: str, evidence: Sequence[Citation]
) -> ComposedAnswer:
    """The answer with the contradictions to the `text` that users see, which rests on `evidence`."""
    start, end = (evidence[0].answer_start, evidence[0].answer_end) if evidence else (0, 0)
    contradicting = [one for one in answer.contradictions if not any(_overlap(one, cited) for cited in evidence)]
    for place in unstated(alternatives, text, evidence):
        if not any(_overlap(place, one) for one in contradicting):
            contradicting.append(_contradiction_of(place, start, end or len(answer.text)))
    return replace(answer, contradictions=tuple(contradicting))


def _overlap(one: Citation | Contradiction, other: Citation | Contradiction) -> bool:
    return one.uri == other.uri and one.start < other.end and other.start < one.end


def _contradiction_of(quote: Citation, start: int, end: int) -> Contradiction:
    """The contradiction of a quote to the sentence at `start:end` of the answer."""
    return Contradiction(
        n=quote.n,
        uri=quote.uri,
        page=quote.page,
        start=quote.start,
        end=quote.end,
        quote=quote.quote,
        answer_start=start,
        answer_end=end,
        name=quote.name,
        row=quote.row,
    )


def citation_of(evidence: Evidence, answer_start: int = 0, answer_end: int = 0) -> Citation:
    """The citation of a numbered passage's words, for a sentence at `answer_start:answer_end` of the answer's text."""
    place = passage_citation(evidence.hit, evidence.start, evidence.end, evidence.row)
    return replace(
        place,
        verified=evidence.verified,
        fault=evidence.fault,
        missing=evidence.missing,
        answer_start=answer_start,
        answer_end=answer_end,
    )


def ground(question: str, output: str, passages: Sequence[Hit]) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with corrected markers, and a citation for each marker, in their order."""
    answer = compose(cite(question, output, passages))
    return answer.text, answer.citations


def nearest_sentences(
    analysis: Analysis, readings: Sequence[Reading], close: Sequence[tuple[float, Window]] = ()
) -> list[tuple[float, Citation]]:
    """The sentence or table row of each passage that most likely contains the answer, with its score.

    The score is the share of the question's terms that the sentence contains and, with `readings`, how likely the
    verifier finds the answer in it; or its closeness, if the sentences are known by that. Headings, table headers and
    questions are left out. The citations are not verified, and have no place in an answer.
    """
    closeness = {id(window): score for score, window in close}
    number_of_terms = max(len(analysis.question.terms), 1)
    reading_of = {reading.passage.n: reading for reading in readings}
    nearest: list[tuple[float, Citation]] = []
    for n, windows in analysis.windows.items():
        reading = reading_of.get(n)
        scored = [
            (
                closeness[id(window)]
                if close
                else _TERMS_WEIGHT * len(window.question_terms) / number_of_terms
                + (reading.within(window.start, window.end) if reading else 0.0),
                window,
            )
            for window in windows
            if not window.is_heading and not window.text.endswith(QUESTION_MARKS)
        ]
        if scored:
            score, best = max(scored, key=lambda one: one[0])
            position = reading.best_within(best.start, best.end)[1] if reading else None
            row = row_with_answer(best, analysis.question.terms, position=position)
            evidence = Evidence(best.hit, best.start, best.end, score, supports=False, row=row)
            nearest.append((score, citation_of(evidence)))
    return nearest


def openings(analysis: Analysis) -> list[tuple[float, Citation]]:
    """How each passage begins, without its headings, and a score that falls with its number."""
    found: list[tuple[float, Citation]] = []
    for n, windows in sorted(analysis.windows.items()):
        text = [window for window in windows if not window.is_heading]
        if text:
            first, prose = text[0], takewhile(lambda one: one.line is None, text)
            end = max((one.end for one in prose if one.end - first.start <= _MAX_OPENING), default=first.end)
            row = row_with_answer(first, analysis.question.terms)
            found.append((1 / n, citation_of(Evidence(first.hit, first.start, end, 0.0, supports=False, row=row))))
    return found


def _section_of(quote: Citation, analysis: Analysis) -> str:
    """The two innermost headings above a quote."""
    return " > ".join(next(windows[0].hit.headings for n, windows in analysis.windows.items() if n == quote.n)[-2:])


def select_quote(
    status: AnswerStatus, citations: Sequence[Citation], nearest: Sequence[tuple[float, Citation]], *, small: bool
) -> Citation | None:
    """The quote to show with an answer: of a `small` reader its evidence, or the likeliest sentence if it is unsure.

    The text of another reader is shown, so only an unsure one has a quote, and never one that it does not rest on.
    """
    evidence = sorted((one for one in citations if one.supports), key=lambda one: not one.verified)
    if not small:
        return evidence[0] if evidence and status == "unsure" else None
    if evidence and (status == "answered" or not nearest):
        return evidence[0]
    return max(nearest, key=lambda one: one[0])[1] if nearest else None


def shown_text(
    text: str,
    status: AnswerStatus,
    quote: Citation | None,
    *,
    small: bool,
    section: str = "",
    sentences: StatusSentences = ENGLISH,
) -> str:
    """The text to show to users: that of the answer, and the quote with its marker.

    An unsure answer of a `small` reader is replaced by the quote, with the name of the `section` that it is from.
    """
    if status == "not_found":
        return text
    says = ""
    if quote:
        words = escape_markers(quote.displayed)
        if small and status == "unsure":
            under = f", under “{escape_markers(section)}”" if section else ""
            return f"{sentences.unsure} {sentences.quoting}{under}: {words} [{quote.n}]"
        if words.strip("“”.") not in MARKER.sub("", text):
            says = f"{sentences.quoting}: {words} [{quote.n}]"
    doubt = sentences.doubt if status == "unsure" else ""
    below = " ".join(filter(None, (doubt, says)))
    return f"{text}\n\n{below}" if below else text
