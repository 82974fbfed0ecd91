"""Data that is kept out of training: the questions and paragraphs of the sets that evaluate the adapter later."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.evaluation.answer_matching import normalize
from ragfm.evaluation.question_sets import fingerprint, load_questions

_BLANK_LINE = re.compile(r"\n\s*\n")
_MIN_PARAGRAPH_WORDS = 8  # shorter ones, such as headings, are the same in many documents


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Questions, paragraphs and documents that training examples may neither ask nor show.

    - `questions`, `paragraphs`: normalized texts.
    - `uris`: documents of the collection.
    - `sources`: name, number of questions and hash of each question set, for the data card.
    """

    questions: frozenset[str] = frozenset()
    paragraphs: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    sources: tuple[Mapping[str, Any], ...] = ()

    def contains_question(self, question: str) -> bool:
        """Whether a question is held out."""
        return _normalize(question) in self.questions

    def document_uris(self, collection: Collection) -> frozenset[str]:
        """The held-out documents of a collection: those in `uris`, their copies, and those with a held-out paragraph.

        A copy is a document that has most of its paragraphs from documents in `uris`; a shared footer does not count.
        """
        if not (self.paragraphs or self.uris):
            return frozenset()
        paragraphs: dict[str, set[str]] = {}
        for info in collection.documents():
            text = collection.document(info.uri).text
            # A document that has only short paragraphs counts as one paragraph.
            paragraphs[info.uri] = set(_paragraphs(text) or filter(None, [_normalize(text)]))
        held_out = set[str]().union(*(paragraphs.get(uri, ()) for uri in self.uris))
        return self.uris | {
            uri for uri, own in paragraphs.items() if own & self.paragraphs or len(own & held_out) > len(own) / 2
        }


def load_held_out(paths: Sequence[str | Path]) -> HeldOut:
    """The questions of some question sets, with the paragraphs of the documents that they include.

    A JSONL file is about a collection: the documents that its questions are about are held out. Raises DataError.
    """
    questions, paragraphs, uris, sources = set[str](), set[str](), set[str](), []
    for path in paths:
        data = load_questions(path, answers=None)
        questions |= {_normalize(question.text) for question in data.questions}
        for text in (data.documents or {}).values():
            paragraphs |= set(_paragraphs(text))
        if data.documents is None:
            uris |= {gold.uri for question in data.questions for gold in question.gold}
        sources.append({"name": data.name, "questions": len(data.questions), "digest": fingerprint(data.questions)})
    return HeldOut(frozenset(questions), frozenset(paragraphs), frozenset(uris), tuple(sources))


def _normalize(text: str) -> str:
    """The text as by `normalize`, without any Unicode punctuation and soft hyphens."""
    text = normalize(unicodedata.normalize("NFKC", text))
    kept = (character for character in text if not unicodedata.category(character).startswith(("P", "Cf")))
    return " ".join("".join(kept).split())


def _paragraphs(text: str) -> list[str]:
    paragraphs = (_normalize(paragraph) for paragraph in _BLANK_LINE.split(text))
    return [paragraph for paragraph in paragraphs if paragraph.count(" ") + 1 >= _MIN_PARAGRAPH_WORDS]
