"""Questions that a reader writes from a collection's own documents, for want of ones that people asked.

    a stretch of a document ─reader→ a question ─search→ kept, if one of the indexes finds the stretch again

They lean towards the words of the text, which people who don't know it would not use (Reddy et al. 2021).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import DataError, TooLongError, UnsupportedError
from ragfm.core.text import sentence_spans
from ragfm.core.types import Message, Sampling
from ragfm.evaluation.answer_matching import holds
from ragfm.evaluation.metrics import rank_hits
from ragfm.evaluation.question_sets import Gold, Question
from ragfm.evaluation.run_file import append, kept

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Reader

_CHARACTERS = 600  # of a stretch, at least, where the document has them
_SHORTEST = 80
_DEPTH, _SHARE = 20, 20  # how deep it may be found: in the first 20, but of few chunks in a twentieth of them
_TRIES = 4  # stretches for each question that is wanted, at most
_ASK = "Write one question that the text above answers. Name what it is about, as nobody sees the text."
_ASK_BOTH = (
    "Write one question that the text above answers, and its answer, a few words that stand in the text. Name what the "
    "question is about, as nobody sees the text."
)
_GRAMMAR = r"""root ::= "Question: " [^?\n]+ "?\nAnswer: " [^\n]+ "\n" """
_MOST_WORDS = 12
"""Of an answer that a reader writes."""
_NAMES_NOTHING = re.compile(r"\b(?:text|passage|paragraph|document|article|author|above)\b", re.IGNORECASE)


def write_questions(
    collection: Collection,
    reader: Reader,
    count: int,
    *,
    seed: int = 0,
    answers: bool = False,
    out: str | Path | None = None,
    reader_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> list[Question]:
    """As many questions as are wanted, each with the stretch of a document that it was written from; fewer at need.

    A question is kept where the stretch is among the first 20 hits of the dense or of the keyword index, fewer of few
    chunks. With `answers` the reader writes an answer too, and the question is kept where its words stand in the
    stretch. All that it wrote is kept in the file `out`, and a second run goes on there, for more questions, too.
    Raises DataError where the collection holds no text, and where `out` is of other documents, reader, or seed.
    """
    depth = max(1, min(_DEPTH, collection.status().chunks // _SHARE))
    questions: dict[str, Question] = {}
    before = dict[str, dict[str, Any]]()
    if out:
        about = {"written": "questions", "reader": reader_name, "seed": seed, "answers": answers,
                 "documents": _digest(collection)}  # fmt: skip
        before = kept(out, about)
    for number, gold in enumerate(_stretches(collection, count * _TRIES, seed)):
        if not (record := before.get(str(number))):
            text = collection.document(gold.uri).text[gold.start : gold.end]
            asked, answer = _question_and_answer(reader, text) if answers else (_question(reader, text), None)
            record = {"id": str(number), "question": asked, "answer": answer}
            if out:
                append(Path(out), record)
        asked, answer = record["question"], record["answer"]
        if asked and asked not in questions and not (answers and answer is None):
            question = Question(str(number), asked, (gold,), (answer,) if answer else ())
            if _found_again(collection, question, depth):
                questions[asked] = question
                if progress:
                    progress(len(questions), count)
                if len(questions) == count:
                    break
    if not questions:
        raise DataError(
            "The reader wrote no question that finds its text again.",
            "Name a larger one (--reader), or give a file of questions.",
        )
    return list(questions.values())


def _digest(collection: Collection) -> str:
    """Of all documents: the stretches depend on them."""
    digests = "".join(document.digest for document in collection.documents())
    return blake2b(digests.encode(), digest_size=16).hexdigest()


def _stretches(collection: Collection, most: int, seed: int) -> Iterator[Gold]:
    """Stretches of whole sentences, picked at random; long documents have as many more as they are longer."""
    documents = [document for document in collection.documents() if document.characters >= _SHORTEST]
    if not documents:
        raise DataError(f"{collection.path} holds no text to write questions from.", "Ingest documents first.")
    chance = random.Random(seed)  # noqa: S311
    lengths = list(accumulate(document.characters for document in documents))
    for _ in range(most):
        (document,) = chance.choices(documents, cum_weights=lengths)
        spans = sentence_spans(collection.document(document.uri).text)
        first = last = chance.randrange(len(spans))
        while spans[last][1] - spans[first][0] < _CHARACTERS and last + 1 < len(spans):
            last += 1
        while spans[last][1] - spans[first][0] < _CHARACTERS and first:
            first -= 1
        yield Gold(document.uri, spans[first][0], min(spans[last][1], spans[first][0] + 4 * _CHARACTERS))


def _question(reader: Reader, text: str) -> str | None:
    """The question that the reader writes; nothing where it is none, or makes no sense without the text."""
    with reader.stream([Message("user", f"{text}\n\n{_ASK}")], Sampling(max_tokens=64)) as stream:
        written = "".join(stream).strip()
    return _checked(written)


def _question_and_answer(reader: Reader, text: str) -> tuple[str | None, str | None]:
    """Both as the reader writes them; no answer where it does not stand in the text, or in the question already."""
    messages = [Message("user", f"{text}\n\n{_ASK_BOTH}")]
    try:
        stream = reader.stream(messages, Sampling(max_tokens=96, grammar=_GRAMMAR))
    except UnsupportedError:  # a reader without grammars may still write it so
        stream = reader.stream(messages, Sampling(max_tokens=96))
    with stream:
        written = "".join(stream).strip()
    asked, _, rest = written.partition("?")
    answer = (rest.partition("Answer:")[2].strip().splitlines() or [""])[0].strip(" *\"'“”.")
    question = _checked(f"{asked}?" if rest else "")
    words = answer.split()
    if not question or not 0 < len(words) <= _MOST_WORDS or not holds(text, [answer]) or holds(question, [answer]):
        return question, None
    return question, answer


def _checked(written: str) -> str | None:
    line = (written.split("?")[0].splitlines() or [""])[-1]
    question = line.strip(" *").removeprefix("Question:").strip(" *\"'“”")
    words = question.split()
    if "?" not in written or not 4 <= len(words) <= 40 or _NAMES_NOTHING.search(question):
        return None
    return f"{question}?"


def _found_again(collection: Collection, question: Question, depth: int) -> bool:
    try:
        return any(
            place.gold is not None
            for hits in (collection.search(question.text, depth, mode="dense"),
                         collection.search(question.text, depth, mode="keyword"))
            for place in rank_hits(question, hits, depth)[0]
        )  # fmt: skip
    except TooLongError:
        return False
