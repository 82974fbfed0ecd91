"""Make a dataset from its sources: questions with known answers, and the answer log."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import DataError
from ragfm.core.progress import ProgressCallback
from ragfm.evaluation.answer_matching import normalize
from ragfm.evaluation.log_questions import rated_entries
from ragfm.evaluation.question_sets import QuestionSet, fingerprint
from ragfm.rag import Rag
from ragfm.training.dataset import Dataset, Recipe, build_dataset
from ragfm.training.examples import Example
from ragfm.training.held_out import HeldOut
from ragfm.training.log_examples import examples_from_log
from ragfm.training.raft import examples_from_questions

_MIN_FOR_SHARE = 20
"""Of fewer examples, most may be abstentions by chance."""


def make_dataset(
    rag: Rag,
    questions: QuestionSet | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    *,
    from_log: bool = False,
    held_out: HeldOut = HeldOut(),  # noqa: B008  frozen
    licence: str | None = None,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
) -> Dataset:
    """Make training examples about the collection of `rag`, with the prompts of `rag`.

    The sources are `questions` with known answers, and if `from_log` the judged answers of the collection's log.
    `licence` and `limit`, the number of questions sampled, are noted in the card.
    Progress has the stage "make examples".

    Raises DataError if the sources yield no example to train with, or if far more of them are abstentions than
    `recipe.abstain`: the share is nearer to all of them, or there are only abstentions.
    """
    if questions is None and not from_log:
        raise DataError("There is no source of examples.", "Specify questions, or use the log.")
    examples: list[Example] = []
    left_out = Counter[str]()
    sources: list[dict[str, Any]] = []
    about: dict[str, Any] = {"questions": 0, "reader": rag.reader_name, "held_out": list(held_out.sources)}
    if questions is not None:
        asked = questions.questions
        examples, left_out = examples_from_questions(rag, asked, recipe, held_out=held_out, progress=progress)
        about |= {"questions": len(asked), "asked": fingerprint(asked, answers=True), "limit": limit}
        if examples or not from_log:
            sources.append({"name": questions.name, "licence": licence, "left_out": dict(questions.left_out)})
    if from_log:
        entries = rated_entries(rag.collection.answer_log.entries())
        if not entries and questions is None:
            raise DataError(
                "No answer in the log has been rated good or corrected.",
                "`ragfm log list` shows the answers, `ragfm log thumbs ID up` rates one as good.",
            )
        logged, counts = examples_from_log(rag, entries, held_out=held_out)
        if logged:
            sources.append({"name": "the answer log", "licence": licence, "left_out": dict(counts)})
        # Of two examples with the same question, that of the log stays.
        by_question = {normalize(str(example.meta["question"])): example for example in [*examples, *logged]}
        examples = list(by_question.values())
        left_out += counts
    dataset = build_dataset(rag, examples, recipe, left_out, {**about, "sources": sources})
    silent = sum(example.completion == ABSTENTION for example in examples)
    most = len(examples) * (1 + recipe.abstain) / 2 if len(examples) >= _MIN_FOR_SHARE else len(examples) - 1
    if silent > most:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise DataError(
            f"The examples teach little but abstention: {silent} of {len(examples)} have the answer “{ABSTENTION}”, "
            f"and --abstain is {recipe.abstain:.2f} (left out: {reasons or 'none'}).",
            "Use more questions whose answers the documents contain or support, or raise --abstain.",
        )
    return dataset
