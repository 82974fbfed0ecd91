"""Grounding: from a reader's output to citations that can be checked, without generating anything.

Each sentence of the answer is a claim. The judge reads it with the units that may support it, and the best one becomes
the quote: a slice of the document, character for character. What is exact is compared exactly, and can only refute.

A citation that is not verified has a fault. `fabricated`: no unit supports the claim. `misattributed`: a unit of a
different passage does. `stitched`: pieces of a quotation occur, but nowhere together. `subject`: a period, number or
identifier of the question is not found with the quote. `unclear`: the judge is not sure, or cannot read the language.
`picture`: no text says so, but the reader saw the picture of the cited passage, which is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from ragfm.answering.evidence import (
    Claim,
    candidates,
    find_quote,
    find_quotes,
    is_stitched,
    missing_subject,
    quotations,
    row_with_cell,
    split_claims,
    unstated,
)
from ragfm.answering.judge import Evidence
from ragfm.answering.quantities import Date, Quantity, dates, quantities
from ragfm.answering.units import Rarity, Unit, passage_units, words
from ragfm.core.abstention import is_abstention
from ragfm.core.table_rows import TableRow
from ragfm.core.text import MARKER, complete_pairs, escape_markers, is_english
from ragfm.core.types import embedded_text

if TYPE_CHECKING:
    from ragfm.answering.judge import Judge, Judgement
    from ragfm.core.types import Fault, Hit

SUPPORTED, VERIFIED, CONTRADICTED = 0.5, 0.9, 0.6
"""Probabilities of the judge from which a unit supports a claim, verifies it, and contradicts it (decision 065)."""
MIN_ALTERNATIVE = 0.3
"""How likely the judge must find each of the answers for documents to disagree."""
MIN_VERBATIM = 4
"""Words of a claim that is verified by being verbatim in a unit, where no judge reads it."""
MIN_SHARE = 0.6
"""Share of a claim's words that a unit must have to support it where no judge reads it."""
SAME = 0.5
"""Minimum share of words by which two answers count as the same."""


@dataclass(frozen=True, slots=True)
class Support:
    """A unit as evidence for a claim: how likely it supports or contradicts it, and why it is not verified.

    `probability` is how likely it supports the claim and answers the question, None if no judge read it: then,
    `likelihood` is the share of the claim's words that it has. `refutes`: it would support the claim, but has another
    number or date. `missing` are the periods, numbers and identifiers of the question that are not found with it. `row`
    is the table row that it is, with the likeliest cell.
    """

    unit: Unit
    likelihood: float
    contradicts: float
    supports: bool
    fault: Fault | None = None
    missing: tuple[str, ...] = ()
    row: TableRow | None = None
    refutes: bool = False
    probability: float | None = None

    @property
    def verified(self) -> bool:
        """Whether it supports the claim and has no fault."""
        return self.supports and self.fault is None


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of the answer with its markers, the white space before it, and the evidence that each marker names.

    `start` and `end` are its span in the reader's output. `likelihood` is that of the unit that supports it best.
    `contradiction` is a unit of another document than those that support it.
    """

    text: str
    start: int
    end: int
    evidence: tuple[Support, ...]
    likelihood: float
    contradiction: Support | None = None

    @property
    def plain(self) -> str:
        """The sentence without markers."""
        return MARKER.sub("", self.text).strip()

    @property
    def supported(self) -> bool:
        """Whether some of its evidence supports it."""
        return any(one.supports for one in self.evidence)


@dataclass(frozen=True, slots=True)
class Answered:
    """A passage as the judge read it with the question: how likely it has the answer, the likeliest one, and where."""

    hit: Hit
    answers: float
    likelihood: float
    text: str
    unit: Unit | None
    row: TableRow | None
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """The answer to a question, sentence by sentence; without sentences if it says nothing.

    `output` is the reader's own text; `text` may be the judge's. `readings` are the passages as the judge read them,
    likeliest answer first. `close` are units by their closeness to a question in another language. `alternatives` are
    the different answers that different documents give; empty where they agree.
    """

    question: str
    output: str
    text: str
    sentences: Sequence[CitedSentence]
    units: Sequence[Unit]
    readings: Sequence[Answered] = ()
    close: Sequence[tuple[float, Unit]] = ()
    alternatives: tuple[Answered, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether the answer is an abstention."""
        return is_abstention(self.text)

    @property
    def agreement(self) -> float:
        """The word overlap of the reader's output with the judge's likeliest answer, in [0, 1]."""
        return overlap(self.output, self.readings[0].text) if self.readings else 0.0


class Grounding:
    """A question and the passages that an answer is checked against."""

    def __init__(
        self,
        question: str,
        passages: Sequence[Hit],
        language: str | None,
        judge: Judge | None,
        *,
        asked: str | None = None,
        pictured: Set[int] = frozenset(),
        verified: float = VERIFIED,
    ) -> None:
        """`language` is that of the passages, as ISO 639-1; `asked` that of the question, None if it is not known.

        `pictured` are the numbers of the passages whose picture the reader saw. From the probability `verified` on, the
        judge verifies a claim.
        """
        self.question, self.language, self._pictured, self._verified = question, language, pictured, verified
        self.passages = [hit for hit in passages if hit.n is not None]
        self.units = [unit for hit in self.passages for unit in passage_units(hit, language or "en")]
        self._rarity = Rarity(self.units)
        self.is_english = is_english(question, language) and asked in (None, "en")
        self.judge = judge if self.is_english else None

    def nearest(self) -> Unit | None:
        """The unit that has most of the question's words; None if none has any."""
        asked = words(self.question)
        units = [unit for unit in self.units if not unit.is_heading and asked & unit.all_words]
        return max(units, key=lambda unit: self._rarity.share(asked, unit.all_words), default=None)

    def read(self) -> list[Answered]:
        """The passages as the judge reads them with the question, likeliest answer first."""
        if not self.judge or not self.passages:
            return []
        texts = [Evidence(hit.text, self.question, context=hit.context) for hit in self.passages]
        readings = []
        for hit, judgement in zip(self.passages, self.judge.read(texts), strict=True):
            units = [unit for unit in self.units if unit.hit is hit and not unit.is_heading]
            bounds = sorted({0, len(hit.text), *(edge for unit in units for edge in (unit.start, unit.end))})
            likelihood, start, end = judgement.best(bounds)
            start, end = complete_pairs(hit.text, start, end)
            unit = next((one for one in units if one.start <= start and end <= one.end), None)
            row = row_with_cell(unit, start, self.question) if unit else None
            text = row.cells[row.column] if row and row.column is not None else hit.text[start:end]
            readings.append(Answered(hit, judgement.answers, likelihood, text, unit, row, judgement))
        return sorted(readings, key=lambda one: -one.likelihood)

    def cite(self, output: str) -> list[CitedSentence]:
        """The output sentence by sentence, with evidence.

        Markers of passages that were not shown are removed. A sentence that cites no passage that supports it gets the
        marker of one that does, if there is one.
        """
        plain, claims = split_claims(output, self.language or "en", self.question)
        sentences, done = [], 0
        for claim, ranked in zip(claims, self.supports(claims), strict=True):
            best = ranked[0] if ranked and ranked[0].supports else None
            evidence: list[Support] = []
            for n in dict.fromkeys(claim.cited):
                evidence += [one for one in ranked if one.unit.hit.n == n][:1]
            evidence = [one if one.supports else replace(one, fault=self._fault(claim, one, best)) for one in evidence]
            if best and not any(one.supports for one in evidence):
                evidence.insert(0, best)  # users read the first one
            markers = "".join(f"[{one.unit.hit.n}]" for one in evidence)
            end = max(done, len(plain[: claim.end].rstrip(".!?…。！？｡")))
            if plain[end : claim.end] == "..":  # the first one belongs to an abbreviation
                end += 1
            text = f"{plain[done:end]}{f' {markers}' if markers else ''}{plain[end : claim.end]}"
            done = claim.end
            documents = {one.unit.hit.uri for one in evidence if one.supports}
            against = [
                one
                for one in ranked
                if one.unit.hit.uri not in documents
                and (one.contradicts >= CONTRADICTED or (one.refutes and not documents))
            ]
            contradiction = max(against, key=lambda one: one.contradicts, default=None)
            likelihood = max((one.likelihood for one in ranked), default=0.0)
            sentences.append(CitedSentence(text, *claim.output_span, tuple(evidence), likelihood, contradiction))
        return sentences

    def supports(self, claims: Sequence[Claim]) -> list[list[Support]]:
        """For each claim, the units that may support it, best first. The judge reads all of them in one batch."""
        pairs = [
            (number, unit)
            for number, claim in enumerate(claims)
            if words(claim.text)
            for unit in candidates(claim, claim.question, self.units, self._rarity)
        ]
        judgements: Sequence[Judgement | None] = [None] * len(pairs)
        if self.judge and pairs:
            judgements = self.judge.read(
                [
                    Evidence(unit.text, claims[number].question, claims[number].text, unit.context)
                    for number, unit in pairs
                ]
            )
        found: list[list[Support]] = [[] for _ in claims]
        for (number, unit), judgement in zip(pairs, judgements, strict=True):
            found[number].append(self._support(claims[number], unit, judgement))
        return [sorted(one, key=lambda it: (-it.supports, len(it.missing), -it.likelihood)) for one in found]

    def _support(self, claim: Claim, unit: Unit, judgement: Judgement | None) -> Support:
        """Whether a unit supports a claim. Without a judge, the claim must be a quotation for it to be verified."""
        verbatim = next(find_quotes(claim.text, unit.text), None)
        asked, claimed = words(claim.question), words(claim.text)
        exact = not unstated(claim.text, unit, claim.question, self.language, judged=judgement is not None)
        if judgement:
            likelihood, contradicts, threshold = judgement.supports, judgement.contradicts, SUPPORTED
            same = likelihood >= SUPPORTED
            probability = likelihood * judgement.answers if claim.question else likelihood
        else:
            rest = claim.text  # without numbers and dates: they are compared exactly, and may be written in other ways
            exactly: list[Quantity | Date] = [*quantities(rest, self.language), *dates(rest, self.language)]
            for one in exactly:
                rest = f"{rest[: one.start]}{' ' * (one.end - one.start)}{rest[one.end :]}"
            wanted = words(rest) - asked or (claimed if rest == claim.text else frozenset())
            likelihood = self._rarity.share(wanted, unit.all_words) if wanted else 1.0
            contradicts, threshold, probability = 0.0, MIN_SHARE, None
            same = bool(wanted) and wanted <= unit.all_words  # most of the words may be those of another subject
        cell = unit.start + verbatim[0] if verbatim else None  # of a row: the words of the claim, or the answer
        if judgement and not verbatim:
            cell = unit.start + judgement.best((0, len(unit.text)))[1]
        row = row_with_cell(unit, cell, "" if verbatim else claim.question)
        if likelihood < threshold or not exact:
            refutes = same and not exact and _disagree(claim.text, unit.text, self.language)
            return Support(
                unit, likelihood, contradicts, supports=False, row=row, refutes=refutes, probability=probability
            )
        missing = missing_subject(claim.question, unit, claim.text, self.language)
        if probability is not None:
            sure = probability >= self._verified
        else:
            sure = bool(verbatim and len(claimed) >= MIN_VERBATIM)
        fault: Fault | None = "subject" if missing else None if sure else "unclear"
        return Support(
            unit,
            likelihood,
            contradicts,
            supports=True,
            fault=fault,
            missing=missing,
            row=row,
            probability=probability,
        )

    def _fault(self, claim: Claim, found: Support, best: Support | None) -> Fault:
        """Why a cited passage does not support a claim. `best` is the evidence of another one that does."""
        absent = [one for one in quotations(claim.text) if not find_quote(one, found.unit.hit.text)]
        texts = [hit.text for hit in self.passages]
        if absent and not any(all(find_quote(one, text) for one in absent) for text in texts):
            if all(is_stitched(one, texts) for one in absent):
                return "stitched"
        elif best or absent:
            return "misattributed"
        return "picture" if found.unit.hit.n in self._pictured else "fabricated"


def cite_answer(
    grounding: Grounding,
    output: str,
    *,
    corrects: bool,
    closeness: Callable[[Sequence[str]], Sequence[float]] | None = None,
) -> CitedAnswer:
    """The reader's `output`, cited.

    An abstention and an answer that repeats the question have no sentences. If the judge `corrects`, its answer
    replaces the output where they differ. In languages that it does not read, an output that no passage supports, such
    as an abstention, is replaced by the unit that has most of the question's words, or where the question is in another
    language the highest `closeness` to it.
    """
    readings, text = grounding.read() if output else [], output
    likely = [one for one in readings if one.likelihood >= readings[0].likelihood / 2]
    if (
        corrects
        and likely
        and likely[0].text
        and not any(agrees(output, one.text, grounding.language) for one in likely)
    ):
        text = f"{escape_markers(likely[0].text)} [{likely[0].hit.n}]."
    plain = MARKER.sub("", text)
    says = not is_abstention(text) and words(plain) and not _repeats(plain, grounding.question)
    sentences = grounding.cite(text) if says else []
    units = [unit for unit in grounding.units if not unit.is_heading]
    close: list[tuple[float, Unit]] = []
    if closeness:
        scores = closeness([embedded_text(unit.hit.context, unit.text) for unit in units])
        close = sorted(zip(scores, units, strict=True), key=lambda one: -one[0])
    if output and corrects and not grounding.judge and not any(one.supported for one in sentences):
        nearest = close[0][1] if close else grounding.nearest()
        if nearest:
            text = f"{escape_markers(' '.join(nearest.text.split()))} [{nearest.hit.n}]"
            sentences = grounding.cite(text)
    different = alternatives(readings, grounding)
    return CitedAnswer(grounding.question, output, text, sentences, grounding.units, readings, close, different)


def alternatives(readings: Sequence[Answered], grounding: Grounding) -> tuple[Answered, ...]:
    """The different answers that different documents give, likeliest first; empty if there are not several.

    Passages that give the same answer count once, so copies of a text do not outweigh another text. A passage that
    lacks a period, number or identifier of the question that the likeliest one has is about something else.
    """
    question, language = grounding.question, grounding.language
    found = [
        (one, frozenset(missing_subject(question, one.unit, one.text, language)))
        for one in readings
        if one.likelihood >= MIN_ALTERNATIVE and one.unit
    ]
    distinct: list[Answered] = []
    for one, absent in found:
        differs = all(one.hit.uri != other.hit.uri and _disagree(one.text, other.text, language) for other in distinct)
        if differs and absent <= found[0][1]:
            distinct.append(one)
    return tuple(distinct) if len(distinct) > 1 else ()


def _disagree(answer: str, other: str, language: str | None) -> bool:
    """Whether two texts have no word in common, or different numbers: a year agrees with a date in it."""
    days, other_days = (dates(text, language) for text in (answer, other))
    if days and other_days:
        return not any(one.states(day) for one in other_days for day in days)
    numbers, others = (
        {value for one in quantities(text, language) for value in one.values}
        | {Decimal(one.year) for one in of_text if one.year}
        for text, of_text in ((answer, days), (other, other_days))
    )
    if numbers and others:
        return not (numbers <= others or others <= numbers)
    return not (numbers or others or words(answer) & words(other))


def agrees(answer: str, span: str, language: str | None) -> bool:
    """Whether two answers share half of their words, and the numbers of the first are in the second: 2 is not 22."""
    plain, stated, stated_days = MARKER.sub("", answer), quantities(span, language), dates(span, language)
    return (
        overlap(plain, span) >= SAME
        and all(any(map(one.is_stated_by, stated)) for one in quantities(plain, language))
        and all(any(map(day.states, stated_days)) for day in dates(plain, language))
    )


def overlap(answer: str, other: str) -> float:
    """The share of the shorter answer's words that both have (overlap coefficient, Szymkiewicz 1934), in [0, 1]."""
    own, others = (words(MARKER.sub("", text)) for text in (answer, other))
    return len(own & others) / min(len(own), len(others)) if own and others else 0.0


def _repeats(answer: str, question: str) -> bool:
    """Whether an answer is the question itself, or a part of it that ends with its question mark."""
    own, asked = ("".join(filter(str.isalnum, text)).casefold() for text in (answer, question))
    return answer.rstrip().endswith("?") and own in asked
