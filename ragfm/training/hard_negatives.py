"""What a retriever learns from: a question, the passages that it should find, and those that it finds instead."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.types import embedded_text
from ragfm.evaluation.answer_matching import passage_has_answer
from ragfm.evaluation.question_sets import fingerprint
from ragfm.store.filters import quote_value
from ragfm.training.grouping import linked

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Hit
    from ragfm.evaluation.question_sets import Question

_DEPTH = 30  # hits that are looked at


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question, a passage that it should find, and others that a search finds, best first: hard negatives."""

    question: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """Questions to learn from, to choose by, and to tell with whether it has paid. None shares a document."""

    learn: tuple[Question, ...]
    choose: tuple[Question, ...]
    test: tuple[Question, ...]


def parted(questions: Sequence[Question], held: float, seed: int = 0) -> Parts:
    """Questions about the same documents stay together; `held` is the share of those that are not learned from.

    Raises DataError where a part would be empty.
    """
    groups = linked([[gold.uri for gold in question.gold] for question in questions])
    random.Random(seed).shuffle(groups)  # noqa: S311
    wanted = max(1, round(held * len(questions) / 2))
    groups.sort(key=lambda group: len(group) > wanted / 4)  # large ones are learned from: they test one thing
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in groups:
        parts[2 if len(parts[2]) < wanted else 1 if len(parts[1]) < wanted else 0].extend(group)
    if not all(parts):
        raise DataError(
            f"{len(questions)} questions about {len(groups)} separate documents are too few to learn from some of them "
            "and to choose and to test by others.",
            "Give more questions, about more documents.",
        )
    learn, choose, test = (tuple(questions[at] for at in sorted(part)) for part in parts)
    return Parts(learn, choose, test)


def mine(
    collection: Collection, questions: Sequence[Question], *, progress: Callable[[int, int], None] | None = None
) -> list[Lesson]:
    """A lesson for each passage that a question should find, from what a search of the collection finds.

    Of a document that should be found, the passage is the one that fits the question best. What holds a known answer is
    no negative.
    """
    lessons: list[Lesson] = []
    for number, question in enumerate(questions, 1):
        with suppress(TooLongError):
            lessons += _lessons(collection, question)
        if progress:
            progress(number, len(questions))
    if not lessons:
        raise DataError(
            "None of the questions finds a passage to learn from.", "`ragfm documents` lists the addresses."
        )
    return lessons


def mined_once(
    collection: Collection, questions: Sequence[Question], file: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Lesson]:  # fmt: skip
    """What `mine` gives, from a file if it has just that, so that a training that goes on need not search again."""
    facts = {"questions": fingerprint(questions, answers=True), "generation": collection.status().generation}
    kept = json.loads(file.read_bytes()) if file.exists() else {}
    if kept.get("of") == facts:
        return [Lesson(one["question"], one["right"], tuple(one["wrong"])) for one in kept["lessons"]]
    lessons = mine(collection, questions, progress=progress)
    write_durably(file, json.dumps({"of": facts, "lessons": [asdict(lesson) for lesson in lessons]}).encode())
    return lessons


# --- Inside ------------------------------------------------------------------------------------------------------


def _lessons(collection: Collection, question: Question) -> list[Lesson]:
    hits = collection.search(question.text, _DEPTH)
    uris = {gold.uri for gold in question.gold}
    rights = [hit for hit in (_right(collection, question, uri, hits) for uri in sorted(uris)) if hit]
    texts = {_text(hit) for hit in rights}
    others = [replace(hit, text=_text(hit)) for hit in hits if hit.uri not in uris]
    wrong = [hit.text for hit in others if not passage_has_answer(hit, question, question.answers)]
    wrong = [text for text in dict.fromkeys(wrong) if text not in texts]
    return [Lesson(question.text, _text(hit), tuple(wrong)) for hit in rights]


def _right(collection: Collection, question: Question, uri: str, hits: Sequence[Hit]) -> Hit | None:
    """The best passage of a document that should be found; of a stretch of it, one that lies in it."""
    spans = [(gold.start, gold.end) for gold in question.gold if gold.uri == uri and gold.start is not None]

    def fits(hit: Hit) -> bool:
        return hit.uri == uri and (
            not spans or any(end is not None and hit.start < end and start < hit.end for start, end in spans)
        )

    found = next(filter(fits, hits), None)
    return found or next(
        filter(fits, collection.search(question.text, _DEPTH, filter=f"uri = {quote_value(uri)}")), None
    )


def _text(hit: Hit) -> str:
    return embedded_text(hit.context, hit.text)
