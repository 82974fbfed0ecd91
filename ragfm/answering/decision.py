"""Decide: compose the answer from its cited sentences, or abstain; and the text that users see.

If a reader's policy is to quote, its answer is shown with the unit of the documents that most likely has the answer, or
replaced by it. If there is no answer, users see one unit of each of the best passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ragfm.answering.evidence import row_with_cell
from ragfm.answering.grounding import Answered, CitedAnswer, CitedSentence, Grounding, Support
from ragfm.answering.units import Rarity, Unit, passage_citation, words
from ragfm.core.abstention import ABSTENTION
from ragfm.core.status_sentences import ENGLISH, StatusSentences
from ragfm.core.text import MARKER, QUESTION_MARKS, escape_markers
from ragfm.core.types import AnswerStatus, Citation, Contradiction

if TYPE_CHECKING:
    from ragfm.answering.judge import Judge
    from ragfm.answering.policy import AnswerPolicy
    from ragfm.core.config import AskSection
    from ragfm.core.table_rows import TableRow
    from ragfm.core.types import Hit

NEAREST = 3
"""Number of units to show if there is no answer."""
LIKELY = 0.5
"""Likelihood from which an answer to "How do I …?" is one of a few words."""
_WORDS_WEIGHT = 0.1  # of the share of the question's words, next to the likelihood; fitted to SQuAD 2.0 and RGB
_MAX_OPENING = 400  # characters
_INSTRUCTIONS = re.compile(
    r"\W*(?:please\s+)?(?:(?:tell|show) me\s+)?"
    r"(?:how\s+to\b|how\s+(?:do|can|could|may|might|must|shall|should|would)\s+(?:i|we|you|one|people)\b"
    r"|what\s+(?:do|can|must|shall|should)\s+(?:i|we|you|one|people)\s+(?:(?:have|need)\s+to\s+)?do\b)",
    re.IGNORECASE,
)
"""English questions how to do something. What a small reader shows is useful for 26 of 46 of them instead of 14
(decision 059)."""


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

    `quote` is the unit of the documents that is shown with an answer. If there is no answer, `nearest` are the units
    that come closest to one.
    """

    status: AnswerStatus
    answer: ComposedAnswer
    shown: str
    quote: Citation | None
    nearest: tuple[Citation, ...]


def decide(
    cited: CitedAnswer,
    confidence: float | None,
    policy: AnswerPolicy,
    settings: AskSection,
    *,
    threshold: float,
    doubtful: bool = False,
    sentences: StatusSentences = ENGLISH,
) -> Decision:
    """Decide whether to answer, and what to show.

    An answer is withheld if no sentence is left, if `strict` mode has no citation for it, or if its confidence is below
    the `threshold`. Otherwise it is `answered` where giving it has the higher expected utility than saying nothing: a
    right answer counts 1, a wrong one minus `ask.wrong_cost` (Chow 1970). An answer of unknown confidence is given, as
    are all in `open` mode. An abstention of the reader keeps its wording. The answers of a reader that `quotes` are
    `answered` only if they come from the unit that most likely has the answer, or if that one has their words. Where
    documents disagree, an answer is unsure, except in `open` mode; the other answers are its contradictions. If the
    question is how to do something and no short answer is likely, the answers are unsure, and the quote is how the best
    passage begins.

    `doubtful` answers are never more than unsure. `sentences` are those of the question's language; a reader that says
    `ABSTENTION` says it in that language.
    """
    strict, is_open = settings.mode == "strict", settings.mode == "open"
    answer = compose(cited.sentences, strict=strict, contradictions=settings.contradictions)
    if is_open:  # the passages say little about an answer from memory
        confidence = None
    asks_how = policy.quotes and not is_open and _INSTRUCTIONS.match(cited.question)
    read = bool(cited.readings) or not cited.output
    instructions = bool(asks_how) and read and all(one.likelihood < LIKELY for one in cited.readings)
    status: AnswerStatus = "answered"
    if cited.abstains:
        answer, status = ComposedAnswer(sentences.unknown if cited.text == ABSTENTION else cited.text), "not_found"
    elif not answer.text or (confidence is not None and confidence < threshold) or (strict and not answer.citations):
        answer, status = ComposedAnswer(sentences.unknown), "not_found"
    elif instructions or doubtful or (confidence is not None and confidence < settings.wrong_cost * (1 - confidence)):
        status = "unsure"

    nearest: Sequence[tuple[float, Citation]] = ()
    if instructions:
        nearest = openings(cited)
    elif status != "answered" or policy.quotes:
        nearest = nearest_units(cited)
    if status == "not_found":
        likeliest_first = sorted(nearest, key=lambda one: -one[0])[:NEAREST]
        return Decision(status, answer, answer.text, None, tuple(citation for _, citation in likeliest_first))

    supporting = sorted((one for one in answer.citations if one.supports), key=lambda one: not one.verified)
    others = cited.alternatives if settings.contradictions and not instructions else ()
    if status == "answered" and not is_open:
        elsewhere = {one.uri for one in answer.contradictions} - {one.uri for one in supporting}
        if elsewhere or unstated_places(others, answer.text, supporting):
            status = "unsure"
    quote = supporting[0] if supporting and (policy.quotes or status == "unsure") else None
    if policy.quotes and nearest:
        _, likeliest = max(nearest, key=lambda one: one[0])
        if status == "unsure" or quote is None:
            quote = likeliest
        elif cited.readings and not any(_overlap(one, likeliest) for one in supporting):
            quote = likeliest
            if not words(MARKER.sub("", answer.text)) <= words(quote.quote):
                status = "unsure"
    replaced = policy.quotes and status == "unsure" and quote is not None
    if replaced and quote:
        answer = add_alternatives(answer, others, quote.quote, [quote])
    else:
        answer = add_alternatives(answer, others, answer.text, supporting)

    shown = answer.text
    if quote:
        quoted = escape_markers(quote.displayed)
        section = " > ".join(next(one.hit.headings for one in cited.units if one.hit.n == quote.n)[-2:])
        under = f", under “{escape_markers(section)}”" if instructions and section else ""
        if replaced:
            shown = f"{sentences.unsure} {sentences.quoting}{under}: {quoted} [{quote.n}]"
        elif quoted.strip("“”.") not in MARKER.sub("", answer.text):
            shown = f"{answer.text}\n\n{sentences.quoting}: {quoted} [{quote.n}]"
    if status == "unsure" and not replaced:
        head, _, tail = shown.partition("\n\n") if shown != answer.text else (answer.text, "", "")
        shown = f"{head}\n\n{' '.join(filter(None, (sentences.doubt, tail)))}"
    return Decision(status, answer, shown, quote, ())


def compose(sentences: Sequence[CitedSentence], *, strict: bool = False, contradictions: bool = True) -> ComposedAnswer:
    """Put cited sentences together. `strict` leaves out sentences that no passage supports."""
    text = ""
    citations, contradicting = list[Citation](), list[Contradiction]()
    unsupported, output_spans = list[tuple[int, int]](), list[tuple[int, int]]()
    for sentence in sentences:
        claims = bool(words(sentence.plain))
        if strict and claims and not sentence.supported:
            continue
        stripped = sentence.text.lstrip()
        text += sentence.text[: len(sentence.text) - len(stripped)] if text else ""
        start, end = len(text), len(text) + len(stripped)
        text += stripped
        if claims and not sentence.supported:
            unsupported.append((start, end))
        citations += [citation_of(one, start, end) for one in sentence.evidence]
        output_spans += [(sentence.start, sentence.end)] * len(sentence.evidence)
        if contradictions and sentence.supported and sentence.contradiction:
            against = citation_of(sentence.contradiction, start, end)
            if not any(_overlap(against, one) for one in contradicting):
                contradicting.append(contradiction_of(against))
    return ComposedAnswer(text, tuple(citations), tuple(contradicting), tuple(unsupported), tuple(output_spans))


def ground(
    question: str, output: str, passages: Sequence[Hit], language: str | None, judge: Judge | None
) -> tuple[str, tuple[Citation, ...]]:
    """The answer's text with corrected markers, and a citation for each marker, in their order."""
    answer = compose(Grounding(question, passages, language, judge).cite(output))
    return answer.text, answer.citations


def unstated_places(others: Sequence[Answered], text: str, evidence: Sequence[Citation]) -> list[Citation]:
    """Of the answers that different documents give, the places of those that neither a text nor its evidence has."""
    own = words(MARKER.sub("", text))
    places = [unit_citation(one.unit, one.row) for one in others if one.unit and not words(one.text) <= own]
    return [place for place in places if not any(_overlap(place, cited) for cited in evidence)]


def add_alternatives(
    answer: ComposedAnswer, others: Sequence[Answered], text: str, evidence: Sequence[Citation]
) -> ComposedAnswer:
    """The answer with the contradictions to the `text` that users see, which rests on `evidence`."""
    start, end = (evidence[0].answer_start, evidence[0].answer_end) if evidence else (0, 0)
    contradicting = [one for one in answer.contradictions if not any(_overlap(one, cited) for cited in evidence)]
    for place in unstated_places(others, text, evidence):
        if not any(_overlap(place, one) for one in contradicting):
            place = replace(place, answer_start=start, answer_end=end or len(answer.text))
            contradicting.append(contradiction_of(place))
    return replace(answer, contradictions=tuple(contradicting))


def nearest_units(cited: CitedAnswer) -> list[tuple[float, Citation]]:
    """The unit of each passage that most likely has the answer, with its score.

    The score is the share of the question's words that the unit has and how likely the judge finds the answer in it;
    or its closeness, if the units are known by that. Headings and questions are left out. The citations are not
    verified, and have no place in an answer.
    """
    rarity, asked = Rarity(cited.units), words(cited.question)
    closeness = {id(unit): score for score, unit in cited.close}
    judgements = {one.hit.n: one.judgement for one in cited.readings}

    def score(unit: Unit) -> float:
        if closeness:
            return closeness[id(unit)]
        judgement = judgements.get(unit.hit.n)
        likelihood = judgement.within(unit.start, unit.end) if judgement else 0.0
        return _WORDS_WEIGHT * rarity.share(asked, unit.all_words) + likelihood

    best: dict[int | None, tuple[float, Unit]] = {}
    for unit in cited.units:
        if not unit.is_heading and not unit.text.endswith(QUESTION_MARKS):
            best[unit.hit.n] = max(best.get(unit.hit.n, (-1.0, unit)), (score(unit), unit), key=lambda one: one[0])
    found: list[tuple[float, Citation]] = []
    for n, (of_unit, unit) in best.items():
        judgement = judgements.get(n)
        position = judgement.best((unit.start, unit.end))[1] if judgement and unit.row else None
        found.append((of_unit, unit_citation(unit, row_with_cell(unit, position, cited.question))))
    return found


def openings(cited: CitedAnswer) -> list[tuple[float, Citation]]:
    """How each passage begins, without its headings, and a score that falls with its number."""
    found: list[tuple[float, Citation]] = []
    for n in sorted({unit.hit.n or 0 for unit in cited.units}):
        units = [unit for unit in cited.units if unit.hit.n == n and not unit.is_heading]
        if units:
            prose = takewhile(lambda one: one.line is None, units)
            end = max((one.end for one in prose if one.end - units[0].start <= _MAX_OPENING), default=units[0].end)
            found.append((1 / n, unit_citation(replace(units[0], end=end), units[0].row)))
    return found


def citation_of(evidence: Support, answer_start: int = 0, answer_end: int = 0) -> Citation:
    """The citation of evidence for a sentence at `answer_start:answer_end` of the answer's text."""
    return replace(
        unit_citation(evidence.unit, evidence.row),
        verified=evidence.verified,
        fault=evidence.fault,
        missing=evidence.missing,
        answer_start=answer_start,
        answer_end=answer_end,
        probability=evidence.probability,
    )


def unit_citation(unit: Unit, row: TableRow | None = None) -> Citation:
    """The citation of a unit, not verified, and without a place in an answer."""
    return passage_citation(unit.hit, unit.start, unit.end, row)


def contradiction_of(place: Citation) -> Contradiction:
    """The contradiction of a citation's quote to its sentence."""
    return Contradiction(**{one.name: getattr(place, one.name) for one in fields(Contradiction)})


def _overlap(one: Citation | Contradiction, other: Citation | Contradiction) -> bool:
    return one.uri == other.uri and one.start < other.end and other.start < one.end
