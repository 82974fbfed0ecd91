"""How right a reader's answers are, how often it rightly doesn't know, and whether what it cites holds the answer.

Each question is answered in up to three contexts, so that one sees where quality is lost:

    retrieved   from the passages that a search finds, as `ragfm ask` does
    gold        from the passage that the question was asked about: what retrieval costs
    none        from the reader's memory alone: what it knows without documents
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from ragfm.citations.confidence import adapter_hash
from ragfm.core.abstention import is_abstention
from ragfm.core.errors import CollectionError, DataError, FilterError, TooLongError
from ragfm.core.text import sentence_spans
from ragfm.core.types import Hit, Message
from ragfm.evaluation.answer_matching import MARKER, answered_by, holds, normalised, token_f1
from ragfm.evaluation.judge import judged, way_of_judging
from ragfm.evaluation.metrics import Estimate, estimate_percentiles, estimate_ratios
from ragfm.evaluation.question_sets import Gold, Question, fingerprint
from ragfm.evaluation.retrieval_evaluation import collection_facts, content_of
from ragfm.evaluation.run_file import asked, kept
from ragfm.store.filters import quoted

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Document, Reader
    from ragfm.rag import Rag

Context: TypeAlias = Literal["retrieved", "gold", "none"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
KINDS = ("right", "wrong", "not retrieved", "false abstention", "right abstention", "false answer")
"""What can become of a question, in the context `retrieved`."""

CLOSED_BOOK = 'Answer in one short sentence. If you do not know the answer, say "I don\'t know."'
_MEMORY_TOKENS = 64  # of an answer from memory: more would be a story
_LOOKED_AT = 50  # passages of the document that a question is about


@dataclass(frozen=True, slots=True)
class Shown:
    """A passage that a reader was shown as number `n`: `start:end` of `uri`. `holds`: there is a right answer in it."""

    n: int
    uri: str
    start: int
    end: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reader answered in one context, without what ragfm says of contradictions, and what that is worth.

    `exact`, `f1` (Rajpurkar et al. 2016) and `contained` compare with the nearest right answer, in [0, 1]; for an
    unanswerable question all three are 1 where the reader abstained, else 0 (Rajpurkar et al. 2018). `shown`: a passage
    that it was shown holds a right answer; None where there were no passages or there is no answer. `passages` are all
    that it was shown; an older version's run has none. `citations` counts those that support their sentence, `holding`
    those of them whose passage holds a right answer. `sentences` counts those of the answer, `supported` those with
    such a citation. `confidence` is the answer's, from `signals`, where there is a calibration for the reader, else the
    best passage's cosine. `judged`: a judge holds the answer to be right, in {0, 1}; None without a judge, or where
    there is no right answer.
    """

    answer: str = ""
    abstained: bool = False
    exact: float = 0.0
    f1: float = 0.0
    contained: float = 0.0
    shown: bool | None = None
    citations: int = 0
    holding: int = 0
    sentences: int = 0
    supported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    confidence: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    judged: float | None = None
    error: str | None = None
    passages: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question and its outcome in each context. `measures` are those by which runs are compared."""

    id: str
    question: str
    gold: tuple[Gold, ...]
    answers: tuple[str, ...]
    unanswerable: bool
    measures: Mapping[str, float]
    outcomes: Mapping[str, Outcome]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AnsweredQuestion:
        """From a line of a run's file, which is a result as JSON."""
        changed = {
            "gold": tuple(Gold(**gold) for gold in record["gold"]),
            "answers": tuple(record["answers"]),
            "outcomes": {
                context: Outcome(**{**outcome, "passages": tuple(Shown(**one) for one in outcome.get("passages", ()))})
                for context, outcome in record["outcomes"].items()
            },
        }
        return cls(**{**record, **changed})

    @property
    def kind(self) -> str:
        """One of `KINDS`; an answer is right where it contains a right one, or says no other word than it does."""
        outcome = self.outcomes["retrieved"]
        if self.unanswerable:
            return "right abstention" if outcome.abstained else "false answer"
        if not outcome.abstained and max(outcome.contained, outcome.exact) == 1:
            return "right"
        if not outcome.shown:
            return "not retrieved"
        return "false abstention" if outcome.abstained else "wrong"


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """A run. `measures` by context, each with its interval; `latency_ms` the percentiles of an answer's time.

    A question that could not be asked has no time.
    """

    about: Mapping[str, Any]
    results: tuple[AnsweredQuestion, ...]
    measures: Mapping[str, Mapping[str, Estimate]]
    latency_ms: Mapping[str, Mapping[str, Estimate]]

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C came before all questions were answered."""
        return len(self.results) < int(self.about["questions"]["count"])

    @property
    def kinds(self) -> dict[str, int]:
        """How many questions are of which kind; empty without the context `retrieved`."""
        if "retrieved" not in self.measures:
            return {}
        counts = Counter(result.kind for result in self.results)
        return {kind: counts[kind] for kind in KINDS}


def evaluate_answers(
    rag: Rag,
    questions: Sequence[Question],
    *,
    contexts: Sequence[Context] = CONTEXTS,
    judge: Reader | None = None,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: bool = False,
) -> AnswersReport:
    """Ask all questions in all contexts, and hold the answers against the right ones; a `judge` does so, too.

    With `out`, each question is written to that file when it is done, and a run that was interrupted goes on there.
    `about` is kept with it. With `partial`, a Ctrl-C gives the report on what was answered until then, if anything was.
    None of it goes into the answer log, which is of what users asked. Raises DataError where `out` is of another run,
    UnsupportedError for a judge that gives no verdict, before the first question.
    """
    if not questions or not contexts:
        raise ValueError(f"{len(questions)} questions in {len(contexts)} contexts: at least one of each is needed")
    rag = rag.with_options()
    rag.log = None
    known, digest = content_of(rag.collection)
    golds = {gold.uri for question in questions for gold in question.gold}
    if golds and not golds & known:
        raise DataError(
            f"None of the {len(golds)} documents that are asked about is in {rag.collection.path}.",
            "`ragfm documents` lists the addresses there; name the collection with -c.",
        )
    facts = {
        "run": "answers",
        "contexts": list(contexts),
        "judge": None if judge is None else type(judge).__name__,
        **facts_of(rag, questions, digest),
        **(about or {}),
    }
    judges = bound(judged, judge, way_of_judging(judge)) if judge else None
    records = asked(
        questions, lambda one: asdict(_answered(rag, one, contexts, judges)), kept(out, facts), out, progress,
        partial=partial,
    )  # fmt: skip
    return _report(facts, [AnsweredQuestion.from_json(record) for record in records], contexts)


def facts_of(rag: Rag, questions: Sequence[Question], digest: str) -> dict[str, Any]:
    """All that answers depend on: a run goes on where it is the same. `digest` is that of the collection's content."""
    return {
        "questions": {"count": len(questions), "digest": fingerprint(questions, answers=True)},
        **collection_facts(rag.collection, digest),
        "reader": rag.reader_name,
        "strategy": rag.strategy.label,
        "adapter": rag.sampling.adapter,
        "learned": adapter_hash(rag.sampling.adapter),
        "k": rag.k,
        "calibrated": rag.calibration is not None,
        "settings": rag.collection.settings.model_dump(mode="json", exclude={"sources", "reader", "files"}),
    }


def risk_coverage(results: Sequence[AnsweredQuestion]) -> list[tuple[float, float]]:
    """(coverage, risk) as ever less confident answers are given: the share answered, and of these the share not right.

    El-Yaniv and Wiener 2010. An abstention is never given, nor an answer whose confidence is not known.
    """
    given = [
        (outcome.confidence, result.kind != "right")
        for result in results
        if not (outcome := result.outcomes["retrieved"]).abstained and outcome.confidence is not None
    ]
    given.sort(key=lambda item: -item[0])
    wrong = np.cumsum([failed for _, failed in given])
    return [((at + 1) / len(results), float(wrong[at]) / (at + 1)) for at in range(len(given))]


# --- Inside ------------------------------------------------------------------------------------------------------


def _answered(
    rag: Rag, question: Question, contexts: Sequence[Context], judges: Callable[[str, Sequence[str], str], bool] | None
) -> AnsweredQuestion:
    answers = tuple[str, ...]()
    outcomes: dict[str, Outcome]
    try:
        answers = _right_answers(rag.collection, question)
    except (CollectionError, DataError) as error:
        outcomes = dict.fromkeys(contexts, Outcome(error=error.message))
    else:
        outcomes = {context: _outcome(rag, question, answers, context, judges) for context in contexts}
    measures = {
        f"{name}{'' if context == contexts[0] else f', {context}'}": float(getattr(outcome, name))
        for context, outcome in outcomes.items()
        for name in ("f1", "exact", "contained")
    }
    return AnsweredQuestion(
        question.id, question.text, question.gold, answers, question.unanswerable, measures, outcomes
    )


def _right_answers(collection: Collection, question: Question) -> tuple[str, ...]:
    """Those that are given, else the words of the question's spans.

    Raises CollectionError and DataError where a span is of no document, or beyond its end.
    """
    if question.answers or question.unanswerable:
        return question.answers
    return tuple(_words(collection.document(gold.uri), gold) for gold in question.gold if gold.start is not None)


def _words(document: Document, gold: Gold) -> str:
    if gold.end is not None and gold.end > len(document.text):
        raise DataError(f"The span {gold.start}:{gold.end} ends beyond {gold.uri!r}: {len(document.text)} characters.")
    return document.text[gold.start : gold.end]


def _outcome(
    rag: Rag, question: Question, answers: Sequence[str], context: Context,
    judges: Callable[[str, Sequence[str], str], bool] | None,
) -> Outcome:  # fmt: skip
    try:
        if context == "none":
            outcome = _from_memory(rag, question)
        else:
            outcome = _from_passages(rag, question, answers, gold=context == "gold")
    except (FilterError, TooLongError) as error:
        return Outcome(error=error.message)
    outcome = _held_against(outcome, question, answers)
    if judges and not question.unanswerable:
        right = not outcome.abstained and judges(question.text, answers, outcome.answer)
        outcome = replace(outcome, judged=float(right))
    return outcome


def _held_against(outcome: Outcome, question: Question, answers: Sequence[str]) -> Outcome:
    if question.unanswerable or outcome.abstained:
        value = float(question.unanswerable and outcome.abstained)
        return replace(outcome, exact=value, f1=value, contained=value)
    return replace(
        outcome,
        exact=float(any(normalised(outcome.answer) == normalised(answer) for answer in answers)),
        f1=max(token_f1(outcome.answer, answer) for answer in answers),
        contained=float(holds(outcome.answer, answers)),
    )


def _from_passages(rag: Rag, question: Question, answers: Sequence[str], *, gold: bool) -> Outcome:
    stream = rag.stream(question.text, hits=_gold_hits(rag.collection, question, answers) if gold else None)
    for _ in stream:
        pass
    answer = stream.answer
    shown = stream.prompt.shown if stream.prompt else ()
    passages = tuple(
        Shown(hit.n, hit.uri, hit.start, hit.end, answered_by(hit, question, answers))
        for hit in shown
        if hit.n is not None
    )
    holding = {passage.n: passage.holds for passage in passages}
    text, own = answer.text, [True] * len(answer.citations)
    citations = [citation for citation, its in zip(answer.citations, own, strict=True) if its]
    supporting = [citation.n for citation in citations if citation.supports]
    sentences = [] if answer.abstained else [text[start:end] for start, end in sentence_spans(text)]
    flags = iter([citation.supports for citation in citations])  # one for each marker, in their order
    supported = [sum(next(flags, False) for _ in MARKER.findall(sentence)) > 0 for sentence in sentences]
    return Outcome(
        answer=text,
        abstained=answer.abstained,
        shown=None if question.unanswerable else any(holding.values()),
        citations=len(supporting),
        holding=sum(holding[n] for n in supporting),
        sentences=len(supported),
        supported=sum(supported),
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cost=answer.usage.cost,
        seconds=answer.seconds,
        confidence=_cosine(answer.hits) if rag.calibration is None else answer.confidence,
        signals=answer.signals,
        passages=passages,
    )


def _cosine(hits: Sequence[Hit]) -> float | None:
    return max((hit.score for hit in hits if hit.score is not None), default=None)


def _from_memory(rag: Rag, question: Question) -> Outcome:
    start = time.monotonic()
    messages = [Message("system", CLOSED_BOOK), Message("user", question.text)]
    room = _MEMORY_TOKENS + rag.strategy.thinking_tokens
    sampling = replace(rag.sampling, max_tokens=room, adapter=None)  # an adapter has learned another prompt
    with rag.reader.stream(messages, sampling) as stream:
        _, text = rag.strategy.split_reasoning("".join(stream))
    return Outcome(
        answer=text,
        abstained=not text or is_abstention(text),
        prompt_tokens=stream.usage.prompt_tokens,
        completion_tokens=stream.usage.completion_tokens,
        cost=stream.usage.cost,
        seconds=round(time.monotonic() - start, 3),
    )


def _gold_hits(collection: Collection, question: Question, answers: Sequence[str]) -> list[Hit]:
    """The passages that a question was asked about: of each document the best one that holds an answer."""
    found = []
    for uri in dict.fromkeys(gold.uri for gold in question.gold):
        hits = collection.search(question.text, _LOOKED_AT, filter=f"uri = {quoted(uri)}")
        best = next((hit for hit in hits if answered_by(hit, question, answers)), hits[0] if hits else None)
        found += [best] if best else []
    return found


def _report(
    about: Mapping[str, Any], results: Sequence[AnsweredQuestion], contexts: Sequence[Context]
) -> AnswersReport:  # fmt: skip
    measures: dict[str, dict[str, Estimate]] = {}
    latency: dict[str, dict[str, Estimate]] = {}
    for context in contexts:
        outcomes = [(result, result.outcomes[context]) for result in results]
        measures[context] = _measured(outcomes, passages=context != "none")
        latency[context] = estimate_percentiles([1000 * one.seconds for _, one in outcomes if not one.error])
    return AnswersReport(about, tuple(results), measures, latency)


def _measured(outcomes: Sequence[tuple[AnsweredQuestion, Outcome]], *, passages: bool) -> dict[str, Estimate]:
    """Ratios of sums over questions, so that an interval holds for those too that few questions have a part in."""
    part: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, value: float, of: float) -> None:
        part.setdefault(name, []).append((value, of))

    for result, outcome in outcomes:
        answerable = not result.unanswerable
        right = answerable and outcome.contained == 1
        for name in ("f1", "exact", "contained"):
            add(f"{name}, answerable", answerable * getattr(outcome, name), answerable)
        add("f1, all", outcome.f1, 1)
        add("judged right, answerable", outcome.judged or 0, outcome.judged is not None)
        add("abstention recall", result.unanswerable and outcome.abstained, result.unanswerable)
        add("abstention precision", result.unanswerable and outcome.abstained, outcome.abstained)
        if passages:
            add("answer shown", bool(outcome.shown), answerable)
            add("citation precision", outcome.holding, outcome.citations if answerable else 0)
            add("citation recall", right and outcome.holding > 0, right)
            add("faithfulness", outcome.supported, outcome.sentences)
    return {name: estimate for name, pairs in part.items() if (estimate := estimate_ratios(pairs))}
