"""What may not be learned from: the questions and paragraphs of the sets that the adapter will be judged by."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.evaluation.answer_matching import normalise
from ragfm.evaluation.question_sets import fingerprint, load_questions

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
        return _plain(question) in self.questions

    def asking(self, questions: Iterable[str]) -> HeldOut:
        """The same, with more questions."""
        return replace(self, questions=self.questions.union(map(_plain, questions)))

    def documents(self, collection: Collection) -> frozenset[str]:
        """The collection's documents that have one of the paragraphs; those that the questions are about, and copies.

        A copy has most of its paragraphs from one of these: that a footer is shared by all documents makes none.
        """
        if not (self.paragraphs or self.uris):
            return frozenset()
        texts = {info.uri: _told(collection.document(info.uri).text) for info in collection.documents()}
        about = set[str]().union(*(texts.get(uri, ()) for uri in self.uris))
        return self.uris | {
            uri for uri, has in texts.items() if has & self.paragraphs or len(has & about) > len(has) / 2
        }

    def unknown(self, collection: Collection) -> frozenset[str]:
        """What the questions are about and the collection does not have."""
        return self.uris - {info.uri for info in collection.documents()}


def held_out(paths: Sequence[str | Path]) -> HeldOut:
    """What the data of `paths` asks, and the paragraphs of the documents that it brings.

    Of a JSONL file, which is about a collection, the documents that its questions are about. Raises DataError.
    """
    questions, paragraphs, uris, sources = set[str](), set[str](), set[str](), []
    for path in paths:
        data = load_questions(path, answers=None)
        questions |= {_plain(question.text) for question in data.questions}
        for text in (data.documents or {}).values():
            paragraphs |= set(_paragraphs(text))
        if data.documents is None:
            uris |= {gold.uri for question in data.questions for gold in question.gold}
        sources.append({"name": data.name, "questions": len(data.questions), "digest": fingerprint(data.questions)})
    return HeldOut(frozenset(questions), frozenset(paragraphs), frozenset(uris), tuple(sources))


def _plain(text: str) -> str:
    """As `normalised`, and without the punctuation and the soft hyphens of any typesetter."""
    text = normalise(unicodedata.normalize("NFKC", text))
    return " ".join("".join(sign for sign in text if not unicodedata.category(sign).startswith(("P", "Cf"))).split())


def _told(text: str) -> set[str]:
    """The paragraphs of a document; the whole of one that has short ones alone."""
    return set(_paragraphs(text) or filter(None, [_plain(text)]))


def _paragraphs(text: str) -> list[str]:
    paragraphs = (_plain(paragraph) for paragraph in _BLANK.split(text))
    return [paragraph for paragraph in paragraphs if paragraph.count(" ") + 1 >= _LEAST_WORDS]
