"""Questions that newcomers ask of the sample handbook: a right answer, a right quote, or none where there is none.

The questions were written before any answer was seen. Each line of the file has what a right answer must contain (one
of several), or nothing where the handbook has no answer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragfm import Collection, Rag, Settings
from ragfm.core.types import Answer
from ragfm.samples import copy_handbook

QUESTIONS = [json.loads(line) for line in Path(__file__).with_name("newcomer_questions.jsonl").open(encoding="utf-8")]
BEYOND_IT = {
    "Does the station have a gym?",  # it has none
    "How many vacation days do I have per year?",
    "What is the wifi password?",  # the handbook says "guest network"
    "What should I do if I am ill?",
    "When does the boat leave Brannay in winter?",  # it says "from 1 October to 31 March"
    "How much is a room in the staff house?",
    "Do I get paid for overtime?",
    "What is the salary of an observer?",
}
"""Questions that the bundled models do not answer right. With the judge `base`, four of the 30 are left."""


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> Rag:
    folder = tmp_path_factory.mktemp("handbook")
    collection = Collection.open(folder / ".ragfm", settings=Settings())
    collection.sync(copy_handbook(folder))
    return Rag(collection)


def _is_right(answer: Answer, expected: list[str]) -> bool:
    if not expected:
        return answer.status == "not_found"
    return answer.status != "not_found" and any(words in answer.shown for words in expected)


@pytest.mark.judge
@pytest.mark.slow
def test_questions_of_a_new_user_are_answered(rag: Rag) -> None:
    wrong = {
        one["question"]: answer.shown
        for one in QUESTIONS
        if not _is_right(answer := rag.ask(one["question"]), one["answers"])
    }
    assert wrong.keys() <= BEYOND_IT, wrong
    assert len(QUESTIONS) == 30
