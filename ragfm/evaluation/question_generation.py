"""Generate questions from a collection's own documents with a reader, if there are none from users.

    passage of a document → reader → question → search → kept if the dense or the keyword index finds the passage

Generated questions share more words with the text than users' questions do (Reddy et al. 2021).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.errors import DataError, TooLongError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.text import sentence_spans
from ragfm.core.types import Message, Reader, Sampling
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.evaluation.metrics import rank_hits
from ragfm.evaluation.question_sets import Gold, Question
from ragfm.evaluation.run_file import append_record, load_finished
from ragfm.retrieval.search import Mode

_PASSAGE_CHARACTERS = 600  # minimum length of a passage, if the document is that long
_MIN_DOCUMENT_CHARACTERS = 80
_MAX_DEPTH, _DEPTH_SHARE = 20, 20  # the passage must be among the first 20 hits, and in the first twentieth of chunks
_PASSAGES_PER_QUESTION = 4  # maximum number of passages tried for each requested question
_QUESTION_PROMPT = "Write one question that the text above answers. Name what it is about, as nobody sees the text."
_QUESTION_AND_ANSWER_PROMPT = (
    "Write one question that the text above answers, and its answer, a few words that stand in the text. Name what the "
    "question is about, as nobody sees the text."
)
_GRAMMAR = r"""root ::= "Question: " [^?\n]+ "?\nAnswer: " [^\n]+ "\n" """
_MAX_ANSWER_WORDS = 12
# Questions that refer to "the text" cannot be understood without it.
_REFERS_TO_TEXT = re.compile(r"\b(?:text|passage|paragraph|document|article|author|above)\b", re.IGNORECASE)


def generate_questions(
    collection: Collection,
    reader: Reader,
    count: int,
    *,
    seed: int = 0,
    answers: bool = False,
    out: str | Path | None = None,
    reader_name: str = "",
    progress: ProgressCallback | None = None,
) -> list[Question]:
    """Generate up to `count` questions, each with the passage that it was generated from as gold.

    A question is kept if its passage is among the first 20 hits of the dense or the keyword index (fewer in a
    collection of fewer than 400 chunks). With `answers`, the reader also writes an answer, and the question is kept if
    the passage contains it. The reader's output is stored in the file `out`, and a later call continues from there,
    also for a larger `count`. Raises DataError if the collection contains no text, if no question is kept, and if `out`
    belongs to other documents, or to another reader or seed.
    """
    depth = max(1, min(_MAX_DEPTH, collection.status().chunks // _DEPTH_SHARE))
    modes: tuple[Mode, ...] = ("dense", "keyword")
    questions: dict[str, Question] = {}
    finished: dict[str, dict[str, Any]] = {}
    if out:
        digests = "".join(document.digest for document in collection.documents())
        about = {
            "written": "questions",
            "reader": reader_name,
            "seed": seed,
            "answers": answers,
            "documents": blake2b(digests.encode(), digest_size=16).hexdigest(),
        }
        finished = load_finished(out, about)
    for number, gold in enumerate(_sample_passages(collection, count * _PASSAGES_PER_QUESTION, seed)):
        record = finished.get(str(number))
        if not record:
            passage = collection.document(gold.uri).text[gold.start : gold.end]
            text, answer = _write_question(reader, passage, with_answer=answers)
            record = {"id": str(number), "question": text, "answer": answer}
            if out:
                append_record(Path(out), record)
        text, answer = record["question"], record["answer"]
        if not text or text in questions or (answers and answer is None):
            continue
        question = Question(str(number), text, (gold,), (answer,) if answer else ())
        try:
            rankings = [collection.search(text, depth, mode=mode) for mode in modes]
        except TooLongError:
            continue
        if any(place.gold is not None for hits in rankings for place in rank_hits(question, hits, depth)[0]):
            questions[text] = question
            if progress:
                progress(Progress("writing questions", len(questions), count))
            if len(questions) == count:
                break
    if not questions:
        raise DataError(
            "The reader wrote no question that retrieves its source text.",
            "Use a larger reader (--reader), or provide a file of questions.",
        )
    return list(questions.values())


def _sample_passages(collection: Collection, count: int, seed: int) -> Iterator[Gold]:
    """Random passages of whole sentences; a document is sampled in proportion to its length."""
    documents = [document for document in collection.documents() if document.characters >= _MIN_DOCUMENT_CHARACTERS]
    if not documents:
        raise DataError(f"{collection.path} contains no text to write questions from.", "Ingest documents first.")
    rng = random.Random(seed)  # noqa: S311
    lengths = list(accumulate(document.characters for document in documents))
    for _ in range(count):
        (document,) = rng.choices(documents, cum_weights=lengths)
        spans = sentence_spans(collection.document(document.uri).text)
        first = last = rng.randrange(len(spans))
        while spans[last][1] - spans[first][0] < _PASSAGE_CHARACTERS and last + 1 < len(spans):
            last += 1
        while spans[last][1] - spans[first][0] < _PASSAGE_CHARACTERS and first:
            first -= 1
        start = spans[first][0]
        yield Gold(document.uri, start, min(spans[last][1], start + 4 * _PASSAGE_CHARACTERS))


def _write_question(reader: Reader, passage: str, *, with_answer: bool) -> tuple[str | None, str | None]:
    """A question and its answer; the answer is None if it is not in the passage, too long, or in the question."""
    if not with_answer:
        messages = [Message("user", f"{passage}\n\n{_QUESTION_PROMPT}")]
        with reader.stream(messages, Sampling(max_tokens=64)) as stream:
            return _parse_question("".join(stream).strip()), None
    messages = [Message("user", f"{passage}\n\n{_QUESTION_AND_ANSWER_PROMPT}")]
    try:
        stream = reader.stream(messages, Sampling(max_tokens=96, grammar=_GRAMMAR))
    except UnsupportedError:  # a reader without grammars may still write this form
        stream = reader.stream(messages, Sampling(max_tokens=96))
    with stream:
        output = "".join(stream).strip()
    text, _, rest = output.partition("?")
    question = _parse_question(f"{text}?" if rest else "")
    answer_lines = rest.partition("Answer:")[2].strip().splitlines()
    answer = answer_lines[0].strip(" *\"'“”.") if answer_lines else ""
    usable = (
        question
        and 0 < len(answer.split()) <= _MAX_ANSWER_WORDS
        and contains_answer(passage, [answer])
        and not contains_answer(question, [answer])
    )
    return question, answer if usable else None


def _parse_question(output: str) -> str | None:
    """The first question in a reader's output; None if there is none, or it makes no sense without the text."""
    lines = output.split("?")[0].splitlines()
    question = lines[-1].strip(" *").removeprefix("Question:").strip(" *\"'“”") if lines else ""
    if "?" not in output or not 4 <= len(question.split()) <= 40 or _REFERS_TO_TEXT.search(question):
        return None
    return f"{question}?"
