"""Generate questions from a collection's own documents with a reader, if there are none from users.

    passage of a document → reader → question → search → kept if the dense or the keyword index finds the passage
                                     answer → judge → kept if it finds the same answer; else its own, if likely

Generated questions share more words with the text than users' questions do (Reddy et al. 2021).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

from ragfm.answering.judge import Evidence, load_judge, select_judge
from ragfm.collection import Collection
from ragfm.core.errors import DataError, TooLongError, UnsupportedError
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.text import is_english, sentence_spans
from ragfm.core.types import Message, Reader, Sampling
from ragfm.evaluation.answer_matching import contains_answer, token_f1
from ragfm.evaluation.metrics import rank_hits
from ragfm.evaluation.question_sets import Gold, Question
from ragfm.evaluation.run_file import append_record, load_finished
from ragfm.retrieval.rerank import has_judge
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
_EXAMPLES = (
    (
        "The bridge over the Arn was opened in 1966. It replaced a ferry, and carries the road to the north.",
        "When was the bridge over the Arn opened?",
        "in 1966",
    ),
    (
        "Claims for travel are due within 30 days. Claims above 500 euros need the signature of a head of department.",
        "Who must sign claims for travel above 500 euros?",
        "a head of department",
    ),
)
"""Texts with a question and its answer. With them, 3 questions that readers of 0.1 and 0.5 B wrote about 12 passages of
the sample handbook were kept; without, none of 13."""
_GRAMMAR = r"""root ::= "Question: " [^?\n]+ "?\nAnswer: " [^\n]+ "\n" """
_MAX_ANSWER_WORDS = 12
_MIN_AGREEMENT = 0.5  # token F1 of the written answer and the judge's
_MIN_LIKELIHOOD = 0.3
"""Of the judge's own answer. On three tuning articles of SQuAD 2.0 dev, of 150 questions with their paragraph, half
of which have no answer, 25 % reach it, and 84 % of these answers are right."""


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
    collection of fewer than 400 chunks). With `answers`, the reader also writes an answer, which the passage must
    contain. Where the judge knows the language, it must find the same answer there (Alberti et al. 2019); if it
    finds another that is likely, that is the answer. The questions are stored in the file `out`, and a later call
    continues from there, also for a larger `count`. Raises DataError if the collection contains no text, if no question
    is kept, and if `out` belongs to other documents, or to another embedder, reader or seed.
    """
    depth = max(1, min(_MAX_DEPTH, collection.status().chunks // _DEPTH_SHARE))
    questions: dict[str, Question] = {}
    finished: dict[str, dict[str, Any]] = {}
    verifier = select_judge(collection.settings.ask.verifier, reader_name)
    if out:
        digests = "".join(document.digest for document in collection.documents())
        about = {
            "written": "questions",
            "reader": reader_name,
            "seed": seed,
            "answers": answers,
            "embedder": dict(collection.contract),
            "documents": blake2b(digests.encode(), digest_size=16).hexdigest(),
        }
        finished = load_finished(out, about)
    asked = set[Gold]()
    for number, gold in enumerate(_sample_passages(collection, count * _PASSAGES_PER_QUESTION, seed)):
        if gold in asked:
            continue
        asked.add(gold)
        record = finished.get(str(number))
        if not record:
            passage = collection.document(gold.uri).text[gold.start : gold.end]
            text, answer = _write_question(reader, passage, with_answer=answers)
            kept = bool(text) and text not in questions
            if text and kept and answers:
                answer = _verified_answer(collection, text, passage, answer, verifier)
                kept = answer is not None
            if text and kept:
                written = Question(str(number), text, (gold,))
                modes: tuple[Mode, ...] = ("dense", "keyword")
                try:
                    searches = [collection.search(text, depth, mode=mode) for mode in modes]
                    places = [place for hits in searches for place in rank_hits(written, hits, depth)[0]]
                    kept = any(place.gold is not None for place in places)
                except TooLongError:
                    kept = False
            record = {"id": str(number), "question": text, "answer": answer, "kept": kept}
            if out:
                append_record(Path(out), record)
        text, answer = record["question"], record["answer"]
        if record["kept"]:
            questions[text] = Question(str(number), text, (gold,), (answer,) if answer else ())
        if progress:
            progress(Progress("write questions", len(questions), count, {"passages": len(asked)}))
        if len(questions) == count:
            break
    if not questions:
        raise DataError(
            "The reader wrote no question that retrieves its source text.",
            "Use a larger reader, or provide a file of questions.",
        )
    return list(questions.values())


def _verified_answer(
    collection: Collection, question: str, passage: str, written: str | None, verifier: str
) -> str | None:
    """The written answer, if the judge finds it or cannot read the passage, else the judge's, if it is likely."""
    if verifier == "none" or not has_judge() or not is_english(question, collection.language):
        return written
    (judgement,) = load_judge(verifier).read([Evidence(passage, question)])
    likelihood, start, end = judgement.best((0, len(passage)))
    found = passage[start:end]
    if written and judgement.answers >= 0.5 and token_f1(found, written) >= _MIN_AGREEMENT:
        return written
    return found if likelihood >= _MIN_LIKELIHOOD and not contains_answer(question, [found]) else None


def _sample_passages(collection: Collection, count: int, seed: int) -> Iterator[Gold]:
    """Random passages of whole sentences; a document is sampled in proportion to its length."""
    documents = [document for document in collection.documents() if document.characters >= _MIN_DOCUMENT_CHARACTERS]
    if not documents:
        raise DataError(f"{collection.path} contains no text to write questions from.", "Ingest documents first.")
    rng = random.Random(seed)  # noqa: S311
    lengths = list(accumulate(document.characters for document in documents))
    language = collection.language or "en"

    @lru_cache(maxsize=64)
    def spans_of(uri: str) -> list[tuple[int, int]]:
        return list(sentence_spans(collection.document(uri).text, language))

    for _ in range(count):
        (document,) = rng.choices(documents, cum_weights=lengths)
        spans = spans_of(document.uri)
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
    messages = []
    for text, question, answer in _EXAMPLES:
        messages.append(Message("user", f"{text}\n\n{_QUESTION_AND_ANSWER_PROMPT}"))
        messages.append(Message("assistant", f"Question: {question}\nAnswer: {answer}"))
    messages.append(Message("user", f"{passage}\n\n{_QUESTION_AND_ANSWER_PROMPT}"))
    try:
        stream = reader.stream(messages, Sampling(max_tokens=96, grammar=_GRAMMAR))
    except UnsupportedError:  # a reader without grammars may still write this form
        stream = reader.stream(messages, Sampling(max_tokens=96))
    output = ""
    with stream:
        for piece in stream:
            output += piece
            if len(output.partition("Answer:")[2].split()) > _MAX_ANSWER_WORDS + 1:
                break
    output = output.strip()
    text, _, rest = output.partition("?")
    written = _parse_question(f"{text}?" if rest else "")
    answer_lines = rest.partition("Answer:")[2].strip().splitlines()
    answer = re.split(r"[.;]\s", answer_lines[0])[0].strip(" *\"'“”.") if answer_lines else ""
    if written in {question for _, question, _ in _EXAMPLES}:  # a small reader may repeat one
        written = None
    usable = (
        written
        and 0 < len(answer.split()) <= _MAX_ANSWER_WORDS
        and contains_answer(passage, [answer])
        and not contains_answer(written, [answer])
    )
    return written, answer if usable else None


def _parse_question(output: str) -> str | None:
    """The first question in a reader's output; None if there is none of 4 to 40 words."""
    lines = output.split("?")[0].splitlines()
    question = lines[-1].strip(" *").removeprefix("Question:").strip(" *\"'“”") if lines else ""
    if "?" not in output or not 4 <= len(question.split()) <= 40:
        return None
    return f"{question}?"
