"""Training examples of a retriever: a question, the passage that it should find, and hits that are hard negatives."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.core.types import embedded_text
from ragfm.evaluation.answer_matching import passage_has_answer
from ragfm.evaluation.question_sets import Question, fingerprint
from ragfm.store.filters import quote_value
from ragfm.training.dataset import connected_groups

_DEPTH = 30  # hits


@dataclass(frozen=True, slots=True)
class RankingExample:
    """A question, a passage that it should find, and hard negatives: other passages that a search finds, best first."""

    question: str
    positive: str
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuestionSplit:
    """Questions to train on, to choose the best epoch and weight by, and to test with; parts share no document."""

    learn: tuple[Question, ...]
    choose: tuple[Question, ...]
    test: tuple[Question, ...]


def split_questions(questions: Sequence[Question], held_out: float, seed: int = 0) -> QuestionSplit:
    """Split questions at random; those about the same documents stay together.

    `held_out` is the share of questions that are not trained on: half of them choose, the others test. Raises DataError
    if a part would be empty.
    """
    groups = connected_groups([[gold.uri for gold in question.gold] for question in questions])
    random.Random(seed).shuffle(groups)  # noqa: S311
    size = max(1, round(held_out * len(questions) / 2))
    groups.sort(key=lambda group: len(group) > size / 4)  # large groups are trained on: their questions are too alike
    learn: list[int] = []
    choose: list[int] = []
    test: list[int] = []
    for group in groups:
        part = test if len(test) < size else choose if len(choose) < size else learn
        part.extend(group)
    if not (learn and choose and test):
        raise DataError(
            f"{len(questions)} questions about {len(groups)} separate documents are too few for training, "
            "validation and test sets.",
            "Add questions about more documents.",
        )
    parts = (tuple(questions[index] for index in sorted(part)) for part in (learn, choose, test))
    return QuestionSplit(*parts)


def mine_hard_negatives(
    collection: Collection, questions: Sequence[Question], *, progress: ProgressCallback | None = None
) -> list[RankingExample]:
    """An example for each passage that a question should find, with negatives from a search of the collection.

    The positive of a gold document is its best-ranked passage, one with a known answer if there is one. Passages that
    hold a known answer are not negatives; without known answers, no other passage of the document is.
    Progress has the stage "mine negatives". Raises DataError if there is no example.
    """
    report = progress or ignore_progress
    examples: list[RankingExample] = []
    for number, question in enumerate(questions, 1):
        with suppress(TooLongError):
            hits = collection.search(question.text, _DEPTH)
            uris = {gold.uri for gold in question.gold}
            positives: dict[str, None] = {}  # without repetitions, in order
            for uri in sorted(uris):
                golds = [gold for gold in question.gold if gold.uri == uri]
                golds = [gold for gold in golds if gold.start is not None] or golds
                found = [hit for hit in hits if any(gold.overlaps(hit) for gold in golds)]
                if not found:
                    in_document = collection.search(question.text, _DEPTH, filter=f"uri = {quote_value(uri)}")
                    found = [hit for hit in in_document if any(gold.overlaps(hit) for gold in golds)]
                with_answer = [
                    hit for hit in found if any(answer and answer in hit.text for answer in question.answers)
                ]
                for hit in (with_answer or found)[:1]:
                    positives[embedded_text(hit.context, hit.text)] = None
            negatives: dict[str, None] = {}
            for hit in hits:
                text = embedded_text(hit.context, hit.text)
                near = any(gold.overlaps(hit) for gold in question.gold) if question.answers else hit.uri in uris
                answered = near or passage_has_answer(replace(hit, text=text), question, question.answers)
                if not answered and text not in positives:
                    negatives[text] = None
            examples += [RankingExample(question.text, positive, tuple(negatives)) for positive in positives]
        report(Progress("mine negatives", number, len(questions)))
    if not examples:
        raise DataError(
            "None of the questions finds a passage to train on.",
            "Check the uris of the questions; `ragfm documents --json` lists those of the collection.",
        )
    return examples


def load_or_mine(
    collection: Collection, questions: Sequence[Question], file: Path, progress: ProgressCallback | None = None
) -> list[RankingExample]:
    """The result of `mine_hard_negatives`, cached in `file`, so that a resumed training run does not search again."""
    key = {"questions": fingerprint(questions, answers=True), "generation": collection.status().generation}
    cache = json.loads(file.read_bytes()) if file.exists() else {}
    if cache.get("of") == key:
        return [RankingExample(question, positive, tuple(wrong)) for question, positive, wrong in cache["examples"]]
    examples = mine_hard_negatives(collection, questions, progress=progress)
    write_durably(file, json.dumps({"of": key, "examples": [astuple(example) for example in examples]}).encode())
    return examples
