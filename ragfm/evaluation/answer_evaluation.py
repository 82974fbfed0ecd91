"""Evaluate answers: how right they are, how well the reader abstains, and whether its citations hold the answer.

Each question is answered in up to three contexts, which shows where quality is lost:

    retrieved   from the passages that a search finds, as in `ragfm ask`
    gold        from the gold passage; the gap to `retrieved` is the cost of retrieval
    none        from the reader's memory, without passages
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ragfm.answering.confidence import adapter_hash
from ragfm.core.abstention import is_abstention
from ragfm.core.errors import CollectionError, DataError, FilterError, TooLongError
from ragfm.core.progress import ProgressCallback
from ragfm.core.text import sentence_spans
from ragfm.core.types import Hit, Message, Reader
from ragfm.evaluation.answer_matching import MARKER, contains_answer, normalize, passage_has_answer, token_f1
from ragfm.evaluation.metrics import Estimate, StatusCount, estimate_percentiles, estimate_ratios, matches_gold
from ragfm.evaluation.question_sets import Gold, Question, fingerprint
from ragfm.evaluation.reader_verdict import judge_answer, verdict_sampling
from ragfm.evaluation.retrieval_evaluation import collection_content, collection_facts, missing_gold
from ragfm.evaluation.run_file import load_finished, parse_records, run_questions
from ragfm.generation.reader_output import split_reasoning
from ragfm.rag import Rag
from ragfm.store.filters import quote_value

Context: TypeAlias = Literal["retrieved", "gold", "none"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
KINDS = ("right", "wrong", "not retrieved", "false abstention", "right abstention", "false answer")
"""The kinds of results in the context `retrieved`, see `AnsweredQuestion.kind`."""
STATUSES = {"answered": "answered", "unsure": "unsure", "withheld": "not_found"}
"""The names of statuses in reports, and the status of an answer that each stands for."""

_QUESTION_MEASURES = {
    "f1": "f1",
    "exact": "exact",
    "contained": "contained",
    "f1 as shown": "user_f1",
    "contained as shown": "user_contained",
}
"""The names of a question's measures, and the fields of `Outcome`."""

CLOSED_BOOK = 'Answer in one short sentence. If you do not know the answer, say "I don\'t know."'
_MEMORY_TOKENS = 64  # maximum length of an answer from memory
_GOLD_SEARCH_DEPTH = 50  # passages of a gold document that are searched for the best one

_Judge: TypeAlias = Callable[[str, Sequence[str], str], bool]
"""From question, right answers and answer: whether the answer is right."""


@dataclass(frozen=True, slots=True)
class ShownPassage:
    """A passage in the prompt with number `n`: `start:end` of `uri`.

    `holds`: it holds a right answer, see `_holds`, or the numbers from which one was calculated.
    """

    n: int
    uri: str
    start: int
    end: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer in one context, and its measures.

    - `exact`, `f1` (Rajpurkar et al. 2016), `contained`: match with the nearest right answer, in [0, 1]. For an
      unanswerable question all three are 1 if the reader abstained, else 0 (Rajpurkar et al. 2018).
    - `status`: that of the answer; empty without passages.
    - `user_text`: what users see, `Answer.shown`. `user_f1` and `user_contained` are its match with a right answer.
    - Of a calculated answer, both texts have the result without its working.
    - `shown`: a passage in the prompt holds a right answer; None without passages or without a right answer.
    - `citations`: number of citations that support their sentence; `holding`: those whose passage holds a right answer.
    - `sentences`: number of sentences of the answer; `supported`: those with a citation that supports them.
    - `seconds`: time of the answer.
    - `confidence`: confidence of the answer, from `signals`; without a judge of evidence, the best passage's cosine.
    - `judged`: 1 if the reader `judge` of `evaluate_answers` rates the answer as right, else 0; None without it, or
      without a right answer.
    - `error`: why the question could not be answered.
    - `passages`: all passages in the prompt.
    """

    answer: str = ""
    abstained: bool = False
    exact: float = 0.0
    f1: float = 0.0
    contained: float = 0.0
    status: str = ""
    user_text: str = ""
    user_f1: float = 0.0
    user_contained: float = 0.0
    shown: bool | None = None
    citations: int = 0
    holding: int = 0
    sentences: int = 0
    supported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    confidence: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    judged: float | None = None
    error: str | None = None
    passages: tuple[ShownPassage, ...] = ()


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question and its outcome in each context. `measures` are those that `compare_runs` compares."""

    id: str
    question: str
    gold: tuple[Gold, ...]
    answers: tuple[str, ...]
    unanswerable: bool
    measures: Mapping[str, float]
    outcomes: Mapping[str, Outcome]

    @property
    def kind(self) -> str:
        """The kind of result in the context `retrieved`, one of `KINDS`.

        An answer is right if it contains a right answer or consists of the same words.
        """
        outcome = self.outcomes["retrieved"]
        if self.unanswerable:
            return "right abstention" if outcome.abstained else "false answer"
        if not outcome.abstained and max(outcome.contained, outcome.exact) == 1:
            return "right"
        if not outcome.shown:
            return "not retrieved"
        return "false abstention" if outcome.abstained else "wrong"

    @property
    def shows_right_answer(self) -> bool:
        """Whether users see a right answer, from the retrieved passages."""
        return not self.unanswerable and self.outcomes["retrieved"].user_contained == 1


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """A run. `measures` by context with intervals; `latency_ms` by context: percentiles of the time of an answer.

    Questions that could not be answered are not in the times.
    """

    about: Mapping[str, Any]
    results: tuple[AnsweredQuestion, ...]
    measures: Mapping[str, Mapping[str, Estimate]]
    latency_ms: Mapping[str, Mapping[str, Estimate]]

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C ended the run early."""
        return len(self.results) < int(self.about["questions"]["count"])

    @property
    def kinds(self) -> dict[str, int]:
        """The number of questions of each kind; empty without the context `retrieved`."""
        if "retrieved" not in self.measures:
            return {}
        counts = Counter(result.kind for result in self.results)
        return {kind: counts[kind] for kind in KINDS}

    @property
    def statuses(self) -> dict[str, StatusCount]:
        """For each name of `STATUSES`, the answers in the context `retrieved`; empty without it or without statuses."""
        outcomes = [(result, result.outcomes["retrieved"]) for result in self.results if "retrieved" in result.outcomes]
        if not any(outcome.status for _, outcome in outcomes):
            return {}
        counts = {}
        for name, status in STATUSES.items():
            right = [
                result.unanswerable if status == "not_found" else result.shows_right_answer
                for result, outcome in outcomes
                if outcome.status == status
            ]
            counts[name] = StatusCount(
                len(right), estimate_ratios([(is_right, 1) for is_right in right]) if right else None
            )
        return counts


def evaluate_answers(
    rag: Rag,
    questions: Sequence[Question],
    *,
    contexts: Sequence[Context] = CONTEXTS,
    judge: Reader | None = None,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    partial: bool = False,
) -> AnswersReport:
    """Answer all questions in all contexts, and compare with the right answers. The answer log is not written.

    - `judge`: a reader that also says whether each answer is right.
    - `out`: run file; each question is written to it when it is finished, and an interrupted run is resumed from it.
    - `about`: further facts to store in the report and the run file.
    - `partial`: a Ctrl-C returns the report on the questions so far, if there are any.

    Raises, before the first question, DataError if a question has no right answer, if no gold document is in the
    collection, or if `out` belongs to a different run, and UnsupportedError if the judge gives no verdict.
    """
    if not questions or not contexts:
        raise ValueError(
            f"Questions and contexts must not be empty: {len(questions)} questions, {len(contexts)} contexts"
        )
    for question in questions:
        if not (question.answers or question.unanswerable or question.by_passage):
            raise DataError(f"The question {question.id!r} has no right answer.", "Load questions with `answers=True`.")
    rag = rag.with_options()
    rag.log = None
    uris, digest = collection_content(rag.collection)
    missing_gold(rag.collection, uris, questions)
    facts = {  # all that answers depend on: a run is resumed only if it is the same
        "run": "answers",
        "contexts": list(contexts),
        "judge": None if judge is None else type(judge).__name__,
        "questions": {"count": len(questions), "digest": fingerprint(questions, answers=True)},
        **collection_facts(rag.collection, digest),
        "reader": rag.reader_name,
        "strategy": rag.strategy.label,
        "adapter": rag.sampling.adapter,
        "learned": adapter_hash(rag.sampling.adapter),
        "k": rag.k,
        "calibrated": rag.judge is not None,
        "settings": rag.collection.settings.model_dump(mode="json", exclude={"sources", "reader", "files"}),
        **(about or {}),
    }
    judge_call = bind(judge_answer, judge, verdict_sampling(judge)) if judge else None
    records = run_questions(
        questions,
        lambda question: asdict(_evaluate_question(rag, question, contexts, judge_call)),
        load_finished(out, facts),
        out,
        stage="answering",
        progress=progress,
        partial=partial,
    )
    return build_answers_report(facts, parse_records(AnsweredQuestion, records), contexts)


def build_answers_report(
    about: Mapping[str, Any], results: Sequence[AnsweredQuestion], contexts: Sequence[Context]
) -> AnswersReport:
    """Measure the results of a run."""
    measures: dict[str, dict[str, Estimate]] = {}
    latency: dict[str, dict[str, Estimate]] = {}
    for context in contexts:
        outcomes = [(result, result.outcomes[context]) for result in results]
        measures[context] = answer_measures(outcomes, passages=context != "none")
        latency[context] = estimate_percentiles(
            [1000 * outcome.seconds for _, outcome in outcomes if not outcome.error]
        )
    return AnswersReport(about, tuple(results), measures, latency)


def answer_measures(outcomes: Sequence[tuple[AnsweredQuestion, Outcome]], *, passages: bool) -> dict[str, Estimate]:
    """The measures of outcomes in one context; without `passages` those of passages and citations are left out.

    Each is a ratio of sums over all questions, so that its interval accounts for questions that it does not concern.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}

    def add(name: str, numerator: float, denominator: float) -> None:
        pairs.setdefault(name, []).append((numerator, denominator))

    for result, outcome in outcomes:
        answerable = not result.unanswerable
        right = answerable and outcome.contained == 1
        for name in ("f1", "exact", "contained"):
            add(f"{name}, answerable", answerable * getattr(outcome, name), answerable)
        add("f1, all", outcome.f1, 1)
        for name in ("f1", "contained") if outcome.status else ():
            add(f"{name} as shown, answerable", answerable * getattr(outcome, f"user_{name}"), answerable)
        add("judged right, answerable", outcome.judged or 0, outcome.judged is not None)
        add("abstention recall", result.unanswerable and outcome.abstained, result.unanswerable)
        add("abstention precision", result.unanswerable and outcome.abstained, outcome.abstained)
        if passages:
            add("answer shown", bool(outcome.shown), answerable)
            add("citation precision", outcome.holding, outcome.citations if answerable else 0)
            add("citation recall", right and outcome.holding > 0, right)
            add("faithfulness", outcome.supported, outcome.sentences)
    estimates = {name: estimate_ratios(values) for name, values in pairs.items()}
    return {name: estimate for name, estimate in estimates.items() if estimate}


def _evaluate_question(
    rag: Rag, question: Question, contexts: Sequence[Context], judge: _Judge | None
) -> AnsweredQuestion:
    answers = question.answers
    outcomes: dict[str, Outcome]
    try:
        if not answers and not question.unanswerable:  # the texts of the gold spans are the right answers
            texts = []
            for gold in question.gold:
                if gold.start is None:
                    continue
                text = rag.collection.document(gold.uri).text
                if gold.end is not None and gold.end > len(text):
                    raise DataError(
                        f"The span {gold.start}:{gold.end} ends beyond {gold.uri!r}: {len(text)} characters."
                    )
                texts.append(text[gold.start : gold.end])
            answers = tuple(texts)
    except (CollectionError, DataError) as error:
        outcomes = dict.fromkeys(contexts, Outcome(error=error.message))
    else:
        outcomes = {context: _evaluate_context(rag, question, answers, context, judge) for context in contexts}
    measures = {
        name if context == contexts[0] else f"{name}, {context}": float(getattr(outcome, field))
        for context, outcome in outcomes.items()
        for name, field in _QUESTION_MEASURES.items()
        if context != "none" or not field.startswith("user")
    }
    return AnsweredQuestion(
        question.id, question.text, question.gold, answers, question.unanswerable, measures, outcomes
    )


def _evaluate_context(
    rag: Rag, question: Question, answers: Sequence[str], context: Context, judge: _Judge | None
) -> Outcome:
    try:
        if context == "none":
            start = time.monotonic()
            messages = [Message("system", CLOSED_BOOK), Message("user", question.text)]
            # No adapter: adapters are trained on a different prompt.
            with rag.reader.stream(messages, replace(rag.sampling, max_tokens=_MEMORY_TOKENS, adapter=None)) as stream:
                _, text = split_reasoning("".join(stream))
            outcome = Outcome(
                answer=text,
                abstained=not text or is_abstention(text),
                prompt_tokens=stream.usage.prompt_tokens,
                completion_tokens=stream.usage.completion_tokens,
                seconds=round(time.monotonic() - start, 3),
            )
        else:
            outcome = _answer_from_passages(rag, question, answers, gold=context == "gold")
    except (FilterError, TooLongError) as error:
        return Outcome(error=error.message)
    if question.unanswerable or outcome.abstained:
        value = float(question.unanswerable and outcome.abstained)
        outcome = replace(outcome, exact=value, f1=value, contained=value, user_f1=value, user_contained=value)
    else:
        seen = outcome.user_text or outcome.answer
        outcome = replace(
            outcome,
            exact=float(any(normalize(outcome.answer) == normalize(answer) for answer in answers)),
            f1=max(token_f1(outcome.answer, answer) for answer in answers),
            contained=float(contains_answer(outcome.answer, answers)),
            user_f1=max(token_f1(seen, answer) for answer in answers),
            user_contained=float(contains_answer(seen, answers)),
        )
    if judge and not question.unanswerable:
        right = not outcome.abstained and judge(question.text, answers, outcome.answer)
        outcome = replace(outcome, judged=float(right))
    return outcome


def _answer_from_passages(rag: Rag, question: Question, answers: Sequence[str], *, gold: bool) -> Outcome:
    gold_hits: list[Hit] | None = None
    if gold:  # of each gold document the best passage that holds an answer, else the best one
        gold_hits = []
        for uri in dict.fromkeys(gold.uri for gold in question.gold):
            hits = rag.collection.search(question.text, _GOLD_SEARCH_DEPTH, filter=f"uri = {quote_value(uri)}")
            if hits:
                gold_hits.append(next((hit for hit in hits if passage_has_answer(hit, question, answers)), hits[0]))
    stream = rag.stream(question.text, hits=gold_hits)
    for _ in stream:
        pass
    answer = stream.answer
    text, user_text, operands = answer.text, answer.shown, set[int]()
    if answer.calculation:  # the numbers of its working are no answer, and no passage has its result
        text = answer.calculation.result
        user_text = user_text.replace(answer.text, text)
        if not question.gold and contains_answer(text, answers):
            operands = {citation.n for citation in answer.citations}
    passages = tuple(
        ShownPassage(hit.n, hit.uri, hit.start, hit.end, hit.n in operands or _holds(hit, question, answers))
        for hit in (stream.prompt.shown if stream.prompt else ())
        if hit.n is not None
    )
    holding = {passage.n: passage.holds for passage in passages}
    supporting = [citation.n for citation in answer.citations if citation.supports]

    # There is one citation for each marker, in the order of the markers.
    spans = [] if answer.abstained else sentence_spans(answer.text)
    remaining = iter(answer.citations)
    supported = 0
    for start, end in spans:
        citations = [next(remaining, None) for _ in MARKER.findall(answer.text[start:end])]
        supported += any(citation is not None and citation.supports for citation in citations)

    confidence = answer.confidence
    if rag.judge is None:
        confidence = max((hit.score for hit in answer.hits if hit.score is not None), default=None)
    return Outcome(
        answer=text,
        abstained=answer.abstained,
        status=answer.status,
        user_text=user_text,
        shown=None if question.unanswerable else any(holding.values()),
        citations=len(supporting),
        holding=sum(holding[n] for n in supporting),
        sentences=len(spans),
        supported=supported,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        seconds=answer.seconds,
        confidence=confidence,
        signals=answer.signals,
        passages=passages,
    )


def _holds(passage: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether a passage holds a right answer: it is of the gold, if that is known, else it contains the answer.

    Right answers in the data may explain what the documents say in other words.
    """
    if question.gold:
        return any(matches_gold(passage, gold) for gold in question.gold)
    return contains_answer(passage.text, answers)
