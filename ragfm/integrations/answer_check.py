"""Check an answer of any system: what passages say about each of its sentences. No model writes anything here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ragfm.answering.decision import citation_of
from ragfm.answering.grounding import Grounding
from ragfm.answering.judge import SMALL, load_judge, select_judge
from ragfm.collection import Collection
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.text import MARKER, check_characters, sentence_spans
from ragfm.core.types import Citation, Hit
from ragfm.integrations.passage_adapters import numbered_passages
from ragfm.retrieval.rerank import has_judge
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
    name. `contradiction` is the quote that says otherwise; a supported sentence may have one, too, of another passage.
    `probability`, in [0, 1], is how likely some passage supports it, as the judge reads them: numbers, dates and
    quotations, which are compared exactly, can still refute the sentence. None where no judge reads the language.
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
            A short answer has its meaning from it.
        k: Number of passages for each search in a collection. Default: `search.k`.

    The judge is that of the collection's settings, else the one that ships.

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
    verifier = SMALL
    if isinstance(passages, Collection):
        verifier = select_judge(passages.settings.ask.verifier, passages.settings.reader)
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
    judge = load_judge(verifier) if verifier != "none" and has_judge() else None
    grounding = Grounding(question, numbered, language, judge)
    checked = []
    for cited in grounding.cite(text):
        start, end, against = cited.start, cited.end, cited.contradiction
        checked.append(
            CheckedSentence(
                answer[start:end],
                start,
                end,
                "supported" if cited.supported else "contradicted" if against else "not_found",
                tuple(citation_of(evidence, start, end) for evidence in cited.evidence),
                citation_of(against, start, end) if against else None,
                cited.likelihood if grounding.judge else None,
            )
        )
    return checked


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
