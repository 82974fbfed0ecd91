"""Labelled questions, and the documents that a data set includes.

    BEIR folder    corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv or qrels.tsv (Thakur et al. 2021)
    SQuAD file     JSON, version 1.1 or 2.0 (Rajpurkar et al. 2016, 2018); XQuAD has the same form
    JSONL          one line per question about an existing collection: {"question", "uri", "start"?, "end"?, "answers"?,
                   "id"?}, or {"question", "unanswerable": true}

Each file may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ragfm.core.errors import DataError
from ragfm.core.types import Hit

CORPUS = "corpus"
"""First part of the addresses of documents that a data set includes."""
_MAX_NAME_BYTES = 200  # of a file name; file systems allow 255


@dataclass(frozen=True, slots=True)
class Gold:
    """What a question should find: a document, or the characters `start:end` of it. `grade`: relevance, 1 or more."""

    uri: str
    start: int | None = None
    end: int | None = None
    grade: int = 1

    def overlaps(self, hit: Hit) -> bool:
        """Whether a hit is of the document and, if the gold is a span, has characters in common with it."""
        if hit.uri != self.uri or self.start is None or self.end is None:
            return hit.uri == self.uri
        return hit.start < self.end and self.start < hit.end


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its gold and its right `answers`, as far as they are known.

    An `unanswerable` question has no answers; its gold, if any, is the passage that it was asked about.
    """

    id: str
    text: str
    gold: tuple[Gold, ...]
    answers: tuple[str, ...] = ()
    unanswerable: bool = False

    @property
    def by_passage(self) -> bool:
        """Whether passages are ranked, because a gold is a span; else documents are."""
        return any(gold.start is not None for gold in self.gold)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions, and the documents that the data includes, if any: text by path below `corpus/`.

    `left_out` counts the questions that cannot be evaluated, by reason.
    """

    name: str
    questions: tuple[Question, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    documents: Mapping[str, str] | None = None

    def sample(self, n: int, seed: int = 0, *, by_document: bool = False) -> QuestionSet:
        """A random sample of `n` questions in their order, or all if there are fewer. All documents are kept.

        With `by_document`, documents are sampled, each with all its questions; the last one may lose some.
        """
        if n >= len(self.questions):
            return self
        rng = random.Random(seed)  # noqa: S311
        if by_document:
            by_uri: dict[str, list[int]] = {}
            for index, question in enumerate(self.questions):
                by_uri.setdefault(question.gold[0].uri if question.gold else question.id, []).append(index)
            sampled: list[int] = []
            for uri in rng.sample(sorted(by_uri), len(by_uri)):
                if len(sampled) >= n:
                    break
                sampled += by_uri[uri]
            sampled = sampled[:n]
        else:
            sampled = rng.sample(range(len(self.questions)), n)
        return replace(self, questions=tuple(self.questions[index] for index in sorted(sampled)))


def load_questions(
    path: str | Path,
    *,
    split: str | None = None,
    answers: bool | None = False,
) -> QuestionSet:
    """Load a BEIR folder, a SQuAD file or a JSONL file of questions; see `load_beir`, `load_squad`, `load_jsonl`.

    By default only questions with gold are kept, for retrieval. With `answers`, those with known answers and the
    unanswerable ones are kept; with None, all. Raises DataError if the data cannot be read, or has no use for an
    option.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        _refuse_options(path, "a BEIR folder", answers=answers)
        return load_beir(path, split)
    if name.endswith(".jsonl"):
        _refuse_options(path, "a JSONL file of questions", split=split)
        return load_jsonl(path, answers=answers)
    if name.endswith(".json"):
        _refuse_options(path, "a SQuAD file", split=split)
        return load_squad(path, answers=answers)
    raise DataError(
        f"{str(path)!r} has an unknown format.",
        "Specify a BEIR folder, a SQuAD file (.json), or a file with a question in each line (.jsonl).",
    )


def load_beir(folder: Path, split: str | None = None) -> QuestionSet:
    """Load a BEIR folder. A document is its title as a heading, and its text; gold are documents with a score ≥ 1.

    `split` names a file of `qrels/`; the default is `test`, else the only one, else `qrels.tsv`. Queries without a
    relevant document are left out.
    """
    corpus, queries = _beir_file(folder, "corpus.jsonl"), _beir_file(folder, "queries.jsonl")
    splits = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    qrels = folder / "qrels.tsv"
    if split is not None or splits or not qrels.is_file():
        if not split:
            split = next(iter(splits)) if len(splits) == 1 and "test" not in splits else "test"
        if split not in splits:
            known = ", ".join(splits) or ("none, qrels.tsv is not split" if qrels.is_file() else "none")
            raise DataError(f"The folder {str(folder)!r} has no qrels/{split}.tsv.", f"Splits there: {known}.")
        qrels = splits[split]
    documents = {}
    for where, record in _read_records(corpus):
        title, text = " ".join(str(record.get("title") or "").split()), _text(record, "text", where)
        name = _file_name(_text(record, "_id", where))
        documents[f"{name}.md"] = f"# {title}\n\n{text}" if title else text
    texts = {_text(record, "_id", where): _text(record, "text", where) for where, record in _read_records(queries)}
    gold_by_query: dict[str, list[Gold]] = {}
    for number, line in enumerate(_read_lines(qrels), 1):
        parts = line.rstrip("\r\n").split("\t")
        try:
            query, document, score = parts
            grade = int(score)
        except ValueError:
            if number == 1 and len(parts) == 3:
                continue  # the header
            raise DataError(
                f"{qrels}, line {number}: {line.strip()[:80]!r} is not a query id, a document id and a whole number, "
                "separated by tabs."
            ) from None
        if query not in texts:
            raise DataError(f"{qrels} judges the query {query!r}, which is not in {queries}.")
        golds = gold_by_query.setdefault(query, [])
        if grade > 0:
            golds.append(Gold(f"{CORPUS}/{_file_name(document)}.md", grade=grade))
    name = f"{folder.resolve().name} {qrels.name.removesuffix('.tsv')}".removesuffix(" qrels")
    questions = [Question(query, texts[query], tuple(golds)) for query, golds in gold_by_query.items() if golds]
    left_out = {"without a relevant document": len(gold_by_query) - len(questions)}
    return _question_set(name, questions, documents, qrels, left_out=left_out)


def load_squad(path: Path, *, answers: bool | None = False) -> QuestionSet:
    """Load a SQuAD file. Each paragraph is a document, and gold is the paragraph of a question.

    Unanswerable questions are left out unless `answers` are evaluated.
    """
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for title, paragraphs in _read_articles(path):
        name = article = _file_name(title)
        same_title = 1
        while f"{article}/000.txt" in documents:
            same_title += 1
            article = f"{name} {same_title}"
        for number, paragraph in enumerate(paragraphs):
            uri = f"{article}/{number:03}.txt"
            documents[uri] = paragraph["context"]
            for question in paragraph["qas"]:
                texts = tuple(dict.fromkeys(answer["text"] for answer in question.get("answers") or ()))
                gold = (Gold(f"{CORPUS}/{uri}"),)
                questions.append(Question(str(question["id"]), question["question"], gold, texts, not texts))
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return _question_set(name, questions, documents, path, answers=answers)


def load_jsonl(path: Path, *, answers: bool | None = False) -> QuestionSet:
    """Load a file with a question in each line: `question`, `uri`, and for a passage `start` and `end`.

    Lines with the same `id` (default: the line number) are one question with several gold. `answer` or `answers` are
    the right answers; a line with `"unanswerable": true` has none. Lines with either need no `uri`.
    """
    questions: dict[str, Question] = {}
    for where, record in _read_records(path):
        # Tables that were exported have null where they have no value.
        record = {name: value for name, value in record.items() if value is not None}
        text = _text(record, "question", where)
        if not text.strip():
            raise DataError(f"{where}: the question is empty.")
        start, end = record.get("start"), record.get("end")
        span = (start, end) if isinstance(start, int) and isinstance(end, int) and 0 <= start < end else (None, None)
        if (start, end) != span:
            raise DataError(f"{where}: start is {start!r} and end {end!r}; give both, as 0 <= start < end, or neither.")
        key = str(record.get("id", where.rpartition(" ")[2]))
        known = questions.get(key, Question(key, text, ()))
        if known.text != text:
            raise DataError(f"{where}: the id {key!r} belongs to a different question above, {known.text!r}.")
        value = record.get("answers", record.get("answer", []))
        right = [value] if isinstance(value, str) else value
        if not isinstance(right, list) or not all(isinstance(answer, str) and answer.strip() for answer in right):
            raise DataError(f"{where}: answers are {value!r}; give a text or a list of texts.")
        unanswerable = record.get("unanswerable", False)
        if not isinstance(unanswerable, bool):
            raise DataError(f"{where}: unanswerable is {unanswerable!r}; give true or false.")
        without_uri = "uri" not in record and (right or unanswerable)
        gold = () if without_uri else (Gold(_text(record, "uri", where), *span),)
        questions[key] = replace(
            known,
            gold=tuple(dict.fromkeys((*known.gold, *gold))),
            answers=tuple(dict.fromkeys((*known.answers, *right))),
            unanswerable=known.unanswerable or unanswerable,
        )
        if questions[key].unanswerable and questions[key].answers:
            raise DataError(f"{where}: {key!r} is marked as unanswerable, but has an answer.")
    return _question_set(path.name.removesuffix(".gz"), list(questions.values()), None, path, answers=answers)


def fingerprint(questions: Sequence[Question], *, answers: bool = False) -> str:
    """A hash of questions and gold, with `answers` also of the right answers."""
    digest = blake2b(digest_size=16)
    for question in questions:
        golds = [(gold.uri, gold.start, gold.end, gold.grade) for gold in question.gold]
        right = [question.answers, question.unanswerable] if answers else []
        digest.update(json.dumps([question.id, question.text, golds, *right]).encode())
    return digest.hexdigest()


def _question_set(
    name: str,
    questions: Sequence[Question],
    documents: Mapping[str, str] | None,
    path: Path,
    *,
    answers: bool | None = None,
    left_out: Mapping[str, int] | None = None,
) -> QuestionSet:
    """The set of the questions for retrieval (`answers` False), for answers (True), or of all (None)."""
    kept, counts = [], Counter(left_out or {})
    for question in questions:
        if answers and not (question.unanswerable or question.answers or question.by_passage):
            counts["without an answer"] += 1  # the text of a span is an answer, too
        elif answers is False and question.unanswerable:
            counts["unanswerable"] += 1
        elif answers is False and not question.gold:
            counts["without a uri"] += 1
        else:
            kept.append(question)
    duplicates = [key for key, count in Counter(question.id for question in kept).items() if count > 1]
    if duplicates:
        raise DataError(f"{path} has {len(duplicates)} duplicate question ids; the first is {duplicates[0]!r}.")
    left_out = {reason: count for reason, count in counts.items() if count}
    if not kept:
        reasons = "".join(f" ({count} {reason})" for reason, count in left_out.items())
        raise DataError(f"{path} has no question that can be evaluated{reasons}.")
    return QuestionSet(name, tuple(kept), left_out, documents)


def _refuse_options(path: Path, kind: str, **options: object) -> None:
    for name, value in options.items():
        if value:
            raise DataError(f"{str(path)!r} is {kind}, which does not support {name!r}.", "Leave it out.")


def _beir_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"The folder {str(folder)!r} has no {name}.",
        "A BEIR folder holds corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv or qrels.tsv.",
    )


def _read_articles(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and paragraphs of each article of a SQuAD file."""
    try:
        content = json.loads("".join(_read_lines(path)))
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    _ = paragraph["context"] + question["question"], question["id"]  # raises if one is missing
            yield article.get("title") or "untitled", article["paragraphs"]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a SQuAD file: {type(error).__name__}, {error}.",
            'Expected {"data": [{"title", "paragraphs": [{"context", "qas"}]}]}.',
        ) from error


def _read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON object of each line, and its location for messages."""
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object but {type(record).__name__}.")
        yield where, record


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            yield from file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "_id":
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is {'missing' if value is None else f'{value!r}, not a text'}.")
    return value


def _file_name(name: str) -> str:
    """A file name for an id or a title: unique, not hidden, and not too long."""
    safe = quote(name, safe=" ()',")
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    if len(safe) > _MAX_NAME_BYTES:
        safe = f"{safe[: _MAX_NAME_BYTES - 20]}-{blake2b(name.encode(), digest_size=8).hexdigest()}"
    return safe
