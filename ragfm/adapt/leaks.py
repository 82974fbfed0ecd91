"""What may not be learned from: the questions and paragraphs of the sets that the adapter will be judged by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.evaluate.data import fingerprint, load_questions
from ragfm.evaluate.matching import normalised

if TYPE_CHECKING:
    from ragfm.collection import Collection

_BLANK = re.compile(r"\n\s*\n")
_LEAST_WORDS = 8
"""Of a paragraph that is compared: shorter ones, as headings, are the same in many documents."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Questions and paragraphs, normalised, and documents of the collection that examples may neither ask nor show."""

    questions: frozenset[str] = frozenset()
    paragraphs: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    sources: tuple[Mapping[str, Any], ...] = ()

    def asks(self, question: str) -> bool:
        """Whether a question is among them."""
        return normalised(question) in self.questions

    def documents(self, collection: Collection) -> frozenset[str]:
        """The collection's documents that have one of the paragraphs, or that the questions are about."""
        if not self.paragraphs:
            return self.uris
        infos = collection.documents()
        return self.uris | {
            info.uri for info in infos if self.paragraphs & set(_paragraphs(collection.document(info.uri).text))
        }


def held_out(paths: Sequence[str | Path]) -> HeldOut:
    """What the data of `paths` asks, and the paragraphs of the documents that it brings.

    Of a JSONL file, which is about a collection, the documents that its questions are about. Raises DataError.
    """
    questions, paragraphs, uris, sources = set[str](), set[str](), set[str](), []
    for path in paths:
        data = load_questions(path, answers=None)
        questions |= {normalised(question.text) for question in data.questions}
        for text in (data.documents or {}).values():
            paragraphs |= set(_paragraphs(text))
        if data.documents is None:
            uris |= {gold.uri for question in data.questions for gold in question.gold}
        sources.append({"name": data.name, "questions": len(data.questions), "digest": fingerprint(data.questions)})
    return HeldOut(frozenset(questions), frozenset(paragraphs), frozenset(uris), tuple(sources))


def _paragraphs(text: str) -> list[str]:
    paragraphs = (normalised(paragraph) for paragraph in _BLANK.split(text))
    return [paragraph for paragraph in paragraphs if paragraph.count(" ") + 1 >= _LEAST_WORDS]
