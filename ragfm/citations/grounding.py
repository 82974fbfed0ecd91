"""Grounding: from a reader's output to citations that can be checked, without generating anything.

`cite` compares each sentence of the answer with the sentences of the passages (see `support`). The best evidence
becomes the quote: a slice of the document, character for character. A bare number in an answer gets the unit and scale
that its quote, table header or caption gives it:

    31        "31 days of leave"                                 31 days
    36,386    "| Cost of sales | 36,386 |" under "$ in millions"  $36,386 million

A citation that is not verified has a fault. `fabricated`: no passage says so. `misattributed`: another passage does.
`stitched`: its parts occur in several places, and nowhere together. `subject`: a name or period of the question is not
found with the quote. Where a verifier reads the passages, it adds `unclear`: the quote may not answer the question.
`picture`: no text says so, but the reader saw the picture of the cited passage, which nothing here can read.

The text of a figure, such as the labels of a chart, has words without the relations between them. So its words alone
verify nothing: the sentence is verbatim in it and states something, or the verifier finds the answer there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragfm.citations.support import (
    Analysis,
    Claim,
    Evidence,
    Subject,
    Terms,
    Window,
    about_other_periods,
    added_terms,
    analyze,
    best_evidence,
    best_spans,
    differ,
    find_contradiction,
    find_fault,
    find_quotes,
    is_unit,
    missing_in,
    nearest_window,
    row_with_answer,
    subject_of,
    terms_of,
)
from ragfm.core.abstention import is_abstention
from ragfm.core.table_rows import row_cells
from ragfm.core.text import MARKER, escape_markers, sentence_spans
from ragfm.core.types import embedded_text
from ragfm.parsing.table_layout import shared_scale

if TYPE_CHECKING:
    from ragfm.citations.verifier import Reading
    from ragfm.core.types import Hit

MIN_LIKELIHOOD = 0.5
"""How likely the verifier must find the answer in a quote for it to be verified: decision 045."""
MIN_ALTERNATIVE = 0.2
"""How likely the verifier must find each of the answers for documents to disagree: decision 033."""
MIN_QUESTION_SHARE = 0.5
"""The share of the question's terms that a verified quote has, with its headings and table header."""
SELF_CONTAINED = 4
"""Minimum number of new terms with which a sentence of a longer answer is a statement of its own."""
MIN_OVERLAP = 0.5
"""Minimum term overlap of two answers that count as the same."""

_YES = re.compile(r"\W*yes\b", re.IGNORECASE)
_BARE = re.compile(r"\s*(?P<number>[-−(]?\d+(?:[.,]\d+)*\)?)[\s.]*")
_SCALE = re.compile(
    r"(?:\b(?:in|of)\s+|\()(?P<dollars>[^\W\d]*\s?\$\s?)?(?P<scale>thousand|million|billion)s?\b", re.IGNORECASE
)
_DOLLARS = re.compile(r"\$|\b(?:US\s+)?dollars?\b|\bUSD\b", re.IGNORECASE)
_OWN_SCALE = re.compile(r"per[\s-]+share|%|percent|\bratio\b|\bnumber\b|\bshares\b", re.IGNORECASE)
_SIGNS = "$€£¥"
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)  # in Markdown
_SUBSCRIPT = re.compile(r"(?<=[\w\])])\[")


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of the answer with its markers, the white space before it, and the evidence that each marker names.

    `start` and `end` are its span in the reader's output. `terms` are those of the sentence, `new_terms` those of them
    that the question lacks. `question_shares` has, for each evidence, the share of the question's terms that it has
    with the headings above it. `claims`: the sentence has terms that a passage could support, or is a "Yes." that is
    the whole answer. `contradiction` has another number or name than the evidence. `likelihood` is the verifier's: how
    likely the answer to the question is where the sentence or its evidence is.
    """

    text: str
    start: int
    end: int
    terms: Terms
    new_terms: frozenset[str]
    evidence: tuple[Evidence, ...]
    question_shares: tuple[float, ...]
    claims: bool
    contradiction: Evidence | None = None
    likelihood: float = 0.0

    @property
    def plain(self) -> str:
        """The sentence without markers."""
        return MARKER.sub("", self.text).strip()

    @property
    def supported(self) -> bool:
        """Whether some of its evidence supports it."""
        return any(evidence.supports for evidence in self.evidence)

    @property
    def grounded(self) -> bool:
        """Whether some of its evidence supports it and has the subject of the question."""
        return any(evidence.supports and not evidence.missing for evidence in self.evidence)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of several answers that different documents give: the verifier's words, and the sentence that has them."""

    text: str
    evidence: Evidence

    def stated_in(self, text: str) -> bool:
        """Whether a text has all words of the answer."""
        return terms_of(self.text).all <= terms_of(MARKER.sub("", text)).all


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """The answer to a question, sentence by sentence; without sentences if it says nothing.

    `output` is the reader's own text. `text` may be the verifier's, or have a unit. `readings` are the verifier's, and
    `agreement` is the term overlap of the output with its likeliest answer. `close` are the sentences of the passages
    by their closeness to a question in another language. `alternatives` are empty where the documents agree.
    """

    output: str
    text: str
    sentences: Sequence[CitedSentence]
    analysis: Analysis
    readings: Sequence[Reading] = ()
    agreement: float = 0.0
    close: Sequence[tuple[float, Window]] = ()
    alternatives: tuple[Alternative, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether the reader abstained."""
        return is_abstention(self.output)

    @property
    def abstains(self) -> bool:
        """Whether the answer is an abstention."""
        return is_abstention(self.text)


def cite_answer(
    question: str,
    output: str,
    passages: Sequence[Hit],
    language: str | None,
    *,
    verifier: str | None,
    corrects: bool,
    pictured: Set[int] = frozenset(),
    asked: str | None = None,
    closeness: Callable[[Sequence[str]], Sequence[float]] | None = None,
) -> CitedAnswer:
    """The reader's `output`, cited.

    An abstention and an answer that repeats the question have no sentences. The `verifier` of this name reads the
    passages, and checks the citations; if it `corrects`, its answer replaces the output where they differ. In languages
    that it does not read, an output that no passage supports, such as an abstention, is replaced by the sentence that
    has most of the question's terms, or where the question is in another language the highest `closeness` to it.
    `language` is that of the passages, as ISO 639-1, `asked` that of the question if it is another. `pictured` are the
    numbers of the passages whose picture the reader saw.
    """
    asked = asked or language
    readings: list[Reading] = []
    if output and verifier:
        from ragfm.citations.verifier import load_verifier  # imports numpy

        readings = load_verifier(verifier).read(question, passages, asked)
    analysis = analyze(question, passages, language, subject=subject_of(question, asked))
    spans = best_spans(readings, analysis)
    text = correct_answer(output, spans) if spans and corrects else output
    agreement = term_overlap(output, spans[0][0]) if spans else 0.0

    sentences = _cite_text(text, question, analysis, pictured)
    unread = output and verifier and corrects and not readings
    close: list[tuple[float, Window]] = []
    if closeness:
        windows = [window for window in analysis.all_windows if not window.is_heading]
        texts = [embedded_text(window.hit.context, window.text) for window in windows]
        close = sorted(zip(closeness(texts), windows, strict=True), key=lambda one: -one[0])
    nearest = close[0][1] if close else nearest_window(analysis)
    if unread and nearest and not any(one.supported for one in sentences):
        text = f"{escape_markers(' '.join(nearest.text.split()))} [{nearest.hit.n}]"
        sentences = cite_sentences(text, analysis)
    if (named := name_unit(text, sentences)) != text:
        text, sentences = named, cite_sentences(named, analysis, pictured)
    if verifier:
        sentences = check_sentences(sentences, readings)
    if spans and len(sentences) == 1 and _agrees(text, spans[0][0]):  # a cell is as likely as what it was chosen for
        sentences = [replace(sentences[0], likelihood=max(sentences[0].likelihood, spans[0][2]))]
    alternatives = find_alternatives(readings, analysis)
    return CitedAnswer(output, text, sentences, analysis, readings, agreement, close, alternatives)


def _cite_text(text: str, question: str, analysis: Analysis, pictured: Set[int]) -> list[CitedSentence]:
    """The sentences of an answer with evidence; none if it says nothing."""
    words = MARKER.sub("", text)
    says_nothing = is_abstention(text) or not any(map(str.isalnum, words)) or _repeats(words, question)
    return [] if says_nothing else cite_sentences(text, analysis, pictured)


def _repeats(answer: str, question: str) -> bool:
    """Whether an answer is the question itself, or a part of it that ends with its question mark."""
    said, asked = ("".join(filter(str.isalnum, one)).casefold() for one in (answer, question))
    return answer.rstrip().endswith("?") and said in asked


def cite(question: str, output: str, passages: Sequence[Hit], *, subject: Subject | None = None) -> list[CitedSentence]:
    """The reader's output sentence by sentence, with citations; see `cite_sentences` and `analyze`."""
    return cite_sentences(output, analyze(question, passages, subject=subject))


def cite_sentences(output: str, analysis: Analysis, pictured: Set[int] = frozenset()) -> list[CitedSentence]:
    """The reader's output sentence by sentence, with evidence.

    Markers of passages that were not shown are removed. A sentence that cites no passage that supports it gets the
    marker of one that does, if there is one.
    """
    question, windows, all_windows = analysis.question, analysis.windows, analysis.all_windows
    plain, claims = _split(output, question.terms, analysis.language)
    only_yes = not any(claim.terms.all for claim in claims)
    sentences, done = [], 0
    for claim in claims:
        best = best_evidence(claim, question, all_windows)
        evidence: list[Evidence] = []
        for n in dict.fromkeys(claim.cited):
            found = best_evidence(claim, question, windows.get(n, ()))
            if found and not found.supports:
                fault = find_fault(claim, analysis, best, found.hit)
                found = replace(found, fault="picture" if fault == "fabricated" and n in pictured else fault)
            if found:
                evidence.append(found)
        supporting = [found for found in evidence if found.supports]
        if best and best.supports and not supporting:
            evidence.insert(0, best)  # users read the first one
            supporting = [best]
        states = len(claim.terms.all) >= SELF_CONTAINED
        evidence = [
            replace(found, fault="unclear")
            if found.verified and found.hit.image and not (states and any(find_quotes(claim.text, found.quote)))
            else found
            for found in evidence
        ]
        contradictions = (find_contradiction(claim, analysis, found) for found in supporting)

        shares: list[float] = []
        for found in evidence:
            of_passage = [window for window in all_windows if window.hit is found.hit]
            inside = (one.question_terms for one in of_passage if found.start <= one.start and one.end <= found.end)
            shares.append(len(frozenset[str]().union(*inside)) / len(question.terms) if question.terms else 1.0)
        words_end = len(plain[: claim.end].rstrip(".!?…。！？｡"))
        if plain[words_end : claim.end] == "..":  # the first one belongs to an abbreviation
            words_end += 1
        markers = "".join(f"[{found.hit.n}]" for found in evidence)
        text = f"{plain[done:words_end]}{f' {markers}' if markers else ''}{plain[words_end : claim.end]}"
        sentences.append(
            CitedSentence(
                text,
                *claim.output_span,
                terms=claim.terms,
                new_terms=claim.new_terms,
                evidence=tuple(evidence),
                question_shares=tuple(shares),
                claims=bool(claim.terms.all or (only_yes and _YES.match(claim.text))),
                contradiction=next(filter(None, contradictions), None),
            )
        )
        done = claim.end
    return sentences


def _split(output: str, question_terms: frozenset[str], language: str) -> tuple[str, list[Claim]]:
    """The output without markers, and its sentences with the passages that markers in or right after them name.

    The subscript of `sys.argv[1]` in code is not a marker.
    """
    plain, done = "", 0
    markers: list[tuple[int, int, tuple[int, ...]]] = []  # position in `plain`, length, passages
    code = [match.span() for match in _CODE.finditer(output)]
    for match in MARKER.finditer(output):
        plain += output[done : match.start()]
        if _SUBSCRIPT.match(output, match.start()) and any(start < match.start() < end for start, end in code):
            plain += escape_markers(match[0])
            markers.append((len(plain), -1, ()))
            done = match.end()
            continue
        markers.append((len(plain), len(match[0]), tuple(int(n) for n in re.findall(r"\d+", match[1]))))
        done = match.end()
    plain += output[done:]
    claims, previous_start = [], 0
    spans = sentence_spans(plain, language)
    for number, (start, end) in enumerate(spans):
        next_start = spans[number + 1][0] if number + 1 < len(spans) else len(plain) + 1
        cited = tuple(
            n
            for position, _, passages in markers
            if previous_start <= position < next_start and (position > start or not number)
            for n in passages
        )
        output_span = (
            start + sum(length for position, length, _ in markers if position < start),
            end + sum(length for position, length, _ in markers if position <= end),
        )
        terms = terms_of(plain[start:end])
        new_terms = added_terms(terms, question_terms)
        claims.append(Claim(plain[start:end], end, cited, terms, new_terms, output_span))
        previous_start = start + 1
    return plain, claims


# --- The verifier's readings ----------------------------------------------------------------------------------------


def check_sentences(sentences: Sequence[CitedSentence], readings: Sequence[Reading]) -> list[CitedSentence]:
    """The sentences with the verifier's likelihood, and the fault `unclear` where a quote may not answer the question.

    A quote stays verified if it has half of the question's terms, and the verifier, which has not seen the answer,
    finds the answer to the question there, with at least `MIN_LIKELIHOOD`: the words of the sentence, or others that
    say the same. If one sentence has such a quote, a different one that adds many terms to the question is a statement
    by itself, and need not be the answer. Without readings, in languages other than English, half of the question's
    terms suffice.
    """
    checked = [_check_sentence(sentence, readings) for sentence in sentences]
    if len(checked) == 1 or not any(found.verified for sentence in checked for found in sentence.evidence):
        return checked
    return [
        replace(
            after,
            evidence=tuple(
                found if found.verified and share >= MIN_QUESTION_SHARE else other
                for found, other, share in zip(before.evidence, after.evidence, after.question_shares, strict=True)
            ),
        )
        if len(before.new_terms) >= SELF_CONTAINED
        else after
        for before, after in zip(sentences, checked, strict=True)
    ]


def _check_sentence(sentence: CitedSentence, readings: Sequence[Reading]) -> CitedSentence:
    """The sentence with the verifier's likelihood; quotes in which it does not find the answer are unclear."""
    verbatim = [
        (reading, start, end, reading.within(start, end))
        for reading in readings
        for start, end in find_quotes(sentence.plain, reading.passage.text)
    ]
    evidence, quoted = list[Evidence](), list[float]()
    for found, share in zip(sentence.evidence, sentence.question_shares, strict=True):
        likely = [
            likelihood
            for reading, start, end, likelihood in verbatim
            if reading.passage.n == found.hit.n and found.start <= start and end <= found.end
        ]
        for reading in (one for one in readings if one.passage.n == found.hit.n):
            quoted.append(reading.within(found.start, found.end))
            _, start, end = reading.best_within(found.start, found.end)
            if term_overlap(sentence.plain, reading.passage.text[start:end]) >= MIN_OVERLAP:
                likely.append(reading.within(start, end))
        confirmed = not readings or max(likely, default=0.0) >= MIN_LIKELIHOOD
        if found.hit.image and found.fault == "unclear" and readings and confirmed:  # words of a figure's text
            found = replace(found, fault=None)
        unclear = found.verified and not (confirmed and share >= MIN_QUESTION_SHARE)
        evidence.append(replace(found, fault="unclear") if unclear else found)
    likelihood = max((one for *_, one in verbatim), default=0.0) or max(quoted, default=0.0)
    return replace(sentence, evidence=tuple(evidence), likelihood=likelihood)


def find_alternatives(readings: Sequence[Reading], analysis: Analysis) -> tuple[Alternative, ...]:
    """The different answers that different documents give, likeliest first; empty if there are not several.

    Passages that give the same answer count once, so copies of a text do not outweigh another text. A passage that
    lacks a name, number or period of the question that the likeliest one has is about something else.
    """
    found: list[tuple[Alternative, frozenset[str]]] = []
    for reading in readings:
        likelihood, start, end = reading.best
        if likelihood < MIN_ALTERNATIVE:
            continue
        hit, text = reading.passage, reading.passage.text[start:end]
        around = [one for one in analysis.windows.get(hit.n or 0, ()) if one.start <= start and end <= one.end]
        window = min(around, key=lambda one: one.end - one.start, default=None)
        if window is None or window.is_heading:
            continue
        absent = missing_in(window, analysis.question.subject, terms_of(text).numbers)
        row = row_with_answer(window, analysis.question.terms, position=start)
        evidence = Evidence(hit, window.start, window.end, likelihood, supports=False, row=row)
        found.append((Alternative(text, evidence), frozenset(absent)))
    found.sort(key=lambda one: -one[0].evidence.score)
    distinct: list[Alternative] = []
    for new, missing in found:
        if missing <= found[0][1] and all(_disagree(one, new, analysis.question.subject) for one in distinct):
            distinct.append(new)
    return tuple(distinct) if len(distinct) > 1 else ()


def _disagree(one: Alternative, other: Alternative, subject: Subject) -> bool:
    """Whether answers of two documents have different numbers, or different names: a year agrees with a date in it."""
    terms, others = terms_of(one.text), terms_of(other.text)
    if one.evidence.hit.uri == other.evidence.hit.uri:
        return False
    if about_other_periods(one.evidence.quote, other.evidence.quote, terms.numbers, subject):
        return False
    if terms.numbers and others.numbers:
        return differ(terms.numbers, others.numbers)
    return bool(terms.names and others.names) and not (terms.numbers | others.numbers or terms.all & others.all)


def term_overlap(answer: str, other: str) -> float:
    """The share of the shorter answer's terms that both have (overlap coefficient, Szymkiewicz 1934), in [0, 1]."""
    terms, others = (terms_of(MARKER.sub("", text)).all for text in (answer, other))
    return len(terms & others) / min(len(terms), len(others)) if terms and others else 0.0


def correct_answer(output: str, spans: Sequence[tuple[str, int | None, float]]) -> str:
    """The reader's output if it agrees with one of the likely answers, else the likeliest one with its marker."""
    best, n, _ = spans[0]
    agrees = not best or any(_agrees(output, span) for span, *_ in spans)
    return output if agrees else f"{escape_markers(best)} [{n}]."


def _agrees(answer: str, span: str) -> bool:
    """Whether two answers share half of their terms, and the numbers of the first are in the second: 2 is not 22."""
    numbers = terms_of(MARKER.sub("", answer)).numbers
    return term_overlap(answer, span) >= MIN_OVERLAP and numbers <= terms_of(span).numbers


# --- Units -------------------------------------------------------------------------------------------------------


def name_unit(text: str, sentences: Sequence[CitedSentence]) -> str:
    """The answer's text, with the unit of its number where evidence that supports it names one."""
    for evidence in sentences[0].evidence if len(sentences) == 1 else ():
        if evidence.supports:
            plain = sentences[0].plain
            named = with_unit(plain, evidence.quote, _above(evidence))
            return f"{named} [{evidence.hit.n}]" if named != plain else text
    return text


def _above(evidence: Evidence) -> str:
    """The text above a table row: the passage's context, the paragraph above its table, and the header."""
    lines = evidence.hit.text[: evidence.start].splitlines()
    caption = next((line for line in reversed(lines) if line.strip() and not line.startswith("|")), "")
    return "\n".join([evidence.hit.context, caption, *(evidence.row.header if evidence.row else ())])


def with_unit(answer: str, quote: str, above: str) -> str:
    """The answer, with the unit of its number if it is nothing but a number; else unchanged.

    In prose, the unit is next to the number: a currency sign, `%`, or a word such as `days` or `million`. In a
    table row, the scale and the currency are in the text `above`, the header and the caption; a negative number is in
    brackets there, which are part of it.
    """
    bare = _BARE.fullmatch(answer)
    found = re.search(rf"(?<![\w.,]){re.escape(bare['number'])}(?![\w]|[.,]\d)", quote) if bare else None
    if bare is None or found is None:
        return answer
    number = bare["number"]
    start, end = found.span()
    is_row = quote.startswith("|")
    if is_row and re.search(rf"\|\s*[{_SIGNS}]?\s*\($", quote[:start]) and quote[end : end + 1] == ")":
        start, end = start - 1, end + 1
    sign = quote[:start].rstrip()[-1:]
    sign = sign if sign in _SIGNS else ""
    after = re.match(r"\s?(%)|[\s-]{1,2}([^\W\d_]+)", quote[end:])
    unit = ""
    if after and (after[1] or is_unit(after[2])):
        unit = after[1] or f" {after[2]}"
    if is_row and not unit:
        label = row_cells(quote)[0]
        above = _above_column(above, quote[:start].count("|") - 1)
        scale = _SCALE.search(above)
        if scale and not _OWN_SCALE.search(label):
            unit = f" {scale['scale'].lower()}"
            sign = sign or ("$" if scale["dollars"] or _DOLLARS.search(above) else "")
    return answer.replace(number, f"{sign}{quote[start:end]}{unit}", 1)


def _above_column(above: str, column: int) -> str:
    """The text above a table row without the headers of other columns, but with a scale that holds for all of them."""
    lines = above.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("|"):
            cells = row_cells(line)
            lines[at] = " | ".join([cells[0], *cells[column : column + 1], shared_scale(cells)])
    return "\n".join(lines)
