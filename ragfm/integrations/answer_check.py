"""Check an answer of any system: what passages say about each of its sentences. No model writes anything here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ragfm.citations.decision import citation_of
from ragfm.citations.grounding import CitedSentence, check_sentences, cite_sentences
from ragfm.citations.support import (
    Analysis,
    Claim,
    Evidence,
    added_terms,
    analyze,
    best_evidence,
    denies,
    find_contradiction,
    terms_of,
    without_denials,
)
from ragfm.collection import Collection
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.text import MARKER, check_characters, sentence_spans
from ragfm.core.types import Citation, Hit
from ragfm.integrations.passage_adapters import numbered_passages
from ragfm.retrieval.rerank import has_verifier
from ragfm.store.views import language_of

SentenceStatus: TypeAlias = Literal["supported", "contradicted", "not_found"]
MAX_ANSWER, MAX_PASSAGES = 20_000, 200_000
"""Maximum number of characters of an answer, and of its passages together: each sentence is compared with each."""

_SAMPLE = 10_000  # characters by which the language is known


@dataclass(frozen=True, slots=True)
class CheckedSentence:
    """A sentence of an answer, `answer[start:end]`, and what the passages say about it.

    `status`: a passage says so (`supported`), none does but one says otherwise (`contradicted`), or neither
    (`not_found`). `citations` are the quotes that support it, and with a `fault` those of passages that its markers
    name. `contradiction` is the quote that says otherwise; a supported sentence may have one, too. `probability`, in
    [0, 1], is how likely a supported sentence or its quote answers the question; None without a question, or if the
    verifier does not read its language.
    """

    text: str
    start: int
    end: int
    status: SentenceStatus
    citations: tuple[Citation, ...] = ()
    contradiction: Citation | None = None
    probability: float | None = None


def check(
    answer: str, passages: Iterable[object] | Collection, *, question: str = "", k: int | None = None
) -> list[CheckedSentence]:
    """What passages say about each sentence of an answer, which any system or person may have written.

    Args:
        answer: The answer. Its markers `[1]` are the numbers of the passages, from 1.
        passages: Strings, dictionaries with `text`, documents of LangChain, LlamaIndex or Haystack, or hits. In a
            collection, passages are searched for each sentence and for the question.
        question: The question that was answered. With it, a citation is verified only if it is about the question.
        k: Number of passages for each search in a collection. Default: `search.k`.

    Raises DataError for an answer without sentences and a passage without text, TooLongError for an answer of more than
    20,000 characters or passages of more than 200,000, UnsupportedError for invalid text.

    """
    check_characters("answer", answer)
    check_characters("question", question)
    if len(answer) > MAX_ANSWER:
        raise TooLongError(
            f"The answer cannot be checked: it has {len(answer):,} characters, and the maximum is {MAX_ANSWER:,}.",
            "Check it in parts.",
        )
    unmarked = MARKER.sub(lambda match: " " * len(match[0]), answer)
    if not unmarked.strip():
        raise DataError(f"The answer '{answer[:80]}' cannot be checked: it has no sentence.", "Specify one with text.")
    if isinstance(passages, Collection):
        language, text = passages.language, unmarked  # its markers are the numbers of other passages
        sentences = [unmarked[start:end] for start, end in sentence_spans(unmarked, language or "en")]
        numbered = numbered_passages(_search(passages, [question, *sentences] if question.strip() else sentences, k))
    else:
        numbered, text = numbered_passages(passages), answer
        language = language_of(" ".join([question, *(hit.text for hit in numbered)])[:_SAMPLE])
    if (size := sum(len(hit.text) for hit in numbered)) > MAX_PASSAGES:
        raise TooLongError(
            f"The answer cannot be checked: its passages have {size:,} characters, and the maximum is "
            f"{MAX_PASSAGES:,}.",
            "Check it in parts, or give fewer passages.",
        )
    checked = check_against(question, text, numbered, language)
    return [replace(sentence, text=answer[sentence.start : sentence.end]) for sentence in checked]


def _search(collection: Collection, queries: Sequence[str], k: int | None) -> Iterable[Hit]:
    """The hits of all queries; for one over the embedder's window, those that have its words."""
    hits: dict[int, Hit] = {}
    for query in queries:
        try:
            found = collection.search(query, k)
        except TooLongError:
            found = collection.search(query, k, mode="keyword")
        hits |= {hit.chunk_id: hit for hit in found}
    return hits.values()


def check_against(question: str, answer: str, passages: Sequence[Hit], language: str | None) -> list[CheckedSentence]:
    """The sentences of an answer, checked against numbered passages in a language (ISO 639-1)."""
    from ragfm.citations.verifier import load_verifier  # imports numpy

    analysis = analyze(question, passages, language)
    read = question.strip() and passages and has_verifier()
    readings = load_verifier().read(question, passages, language) if read else []
    checked = []
    for sentence in check_sentences(cite_sentences(answer, analysis), readings):
        start, end = sentence.start, sentence.end
        contradiction = sentence.contradiction
        if not sentence.supported:
            contradiction = _contradiction(sentence, question, analysis)
        checked.append(
            CheckedSentence(
                answer[start:end],
                start,
                end,
                "supported" if sentence.supported else "contradicted" if contradiction else "not_found",
                tuple(citation_of(evidence, start, end) for evidence in sentence.evidence),
                citation_of(contradiction, start, end) if contradiction else None,
                sentence.likelihood if readings and sentence.supported else None,
            )
        )
    return checked


def _contradiction(sentence: CitedSentence, question: str, analysis: Analysis) -> Evidence | None:
    """What contradicts a sentence that no passage supports: all of its words with other numbers, or its negation."""
    terms, new, plain = sentence.terms, sentence.new_terms, sentence.plain
    claim = Claim(plain, 0, (), terms, new, (0, 0))
    nearest = best_evidence(claim, analysis.question, analysis.all_windows)
    if nearest is None:
        return None
    wrong = (terms.numbers & new) - terms_of(nearest.quote).all
    # A few words are an answer, which has the rest of its meaning from the question.
    text = (plain if len(terms.all - terms.numbers) > 1 else f"{question} {plain}").casefold()
    itself = Evidence(Hit("", text, 0, len(text), chunk_id=0, score=None, scores={}, n=0), 0, len(text), 0.0, False)
    others = replace(analysis, question=replace(analysis.question, terms=terms.all - wrong))
    if found := find_contradiction(replace(claim, new_terms=wrong), others, itself):
        return found
    affirmed = without_denials(plain)
    terms = terms_of(affirmed)
    negation = affirmed if denies(plain) else f"not {plain}"
    opposite = Claim(negation, 0, (), terms, added_terms(terms, analysis.question.terms), (0, 0))
    found = best_evidence(opposite, analysis.question, analysis.all_windows)
    if found and found.supports and not added_terms(terms, terms_of(found.quote).all):
        return replace(found, supports=False)
    return None
