"""Questions to evaluate with, and the documents that they are about.

    BEIR folder    corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv or qrels.tsv (Thakur et al. 2021)
    SQuAD file     JSON, version 1.1 or 2.0 (Rajpurkar et al. 2016, 2018); XQuAD has the same form
    JSONL          {"question", "uri", "start"?, "end"?, "answers"?, "id"?} in each line, about a collection that is
                   there already; {"question", "unanswerable": true} is one that it has no answer to

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

CORPUS = "corpus"
"""What the addresses of documents begin with that a data set brings."""
_LONGEST_NAME = 200  # bytes; file systems take 255


@dataclass(frozen=True, slots=True)
class Gold:
    """What a question should find: a document, or of it the characters `start:end`. `grade` ≥ 1, more is better."""

    uri: str
    start: int | None = None
    end: int | None = None
    grade: int = 1


@dataclass(frozen=True, slots=True)
class Question:
    """A question and all that it should find. `answers` are the right ones, where these are known.

    What is `unanswerable` has none; its gold is what it was asked about, where that is known.
    """

    id: str
    text: str
    gold: tuple[Gold, ...]
    answers: tuple[str, ...] = ()
    unanswerable: bool = False

    @property
    def by_passage(self) -> bool:
        """Whether passages are judged, since a gold is a stretch of a document; else documents."""
        return any(gold.start is not None for gold in self.gold)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions, and where the data brings them, the documents: a text for each path below `corpus/`.

    `left_out` counts the questions that can't be measured with, by reason.
    """

    name: str
    questions: tuple[Question, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    documents: Mapping[str, str] | None = None

    def sample(self, n: int, seed: int = 0, *, by_document: bool = False) -> QuestionSet:
        """`n` of the questions, picked at random, in their order; all where there are fewer. Documents stay all.

        `by_document` picks documents, with all questions about them, of the last one as many as are wanted.
        """
        if n >= len(self.questions):
            return self
        chance = random.Random(seed)  # noqa: S311
        if not by_document:
            picked = sorted(chance.sample(range(len(self.questions)), n))
            return replace(self, questions=tuple(self.questions[at] for at in picked))
        about: dict[str, list[int]] = {}
        for at, question in enumerate(self.questions):
            about.setdefault(question.gold[0].uri if question.gold else question.id, []).append(at)
        taken: list[int] = []
        for uri in chance.sample(sorted(about), len(about)):
            if len(taken) >= n:
                break
            taken += about[uri]
        return replace(self, questions=tuple(self.questions[at] for at in sorted(taken[:n])))


def load_questions(
    path: str | Path,
    *,
    split: str | None = None,
    articles: bool = False,
    distractors: Sequence[str | Path] = (),
    answers: bool | None = False,
) -> QuestionSet:
    """The questions of a BEIR folder, a SQuAD file, or a JSONL file; see the functions for each.

    Those that retrieval can be measured with; with `answers`, those whose answer is known, or known not to be there;
    with None, all of them. Raises DataError, which says what was looked for and where, and for an option that the data
    has no use for.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        _no_use(path, "a BEIR folder", articles=articles, distractors=distractors, answers=answers)
        return load_beir(path, split)
    if name.endswith(".jsonl"):
        _no_use(path, "a JSONL of questions", split=split, articles=articles, distractors=distractors)
        return load_jsonl(path, answers=answers)
    if name.endswith(".json"):
        _no_use(path, "a SQuAD file", split=split)
        return load_squad(path, articles=articles, distractors=distractors, answers=answers)
    raise DataError(
        f"{str(path)!r} has no known format.",
        "Name a BEIR folder, a SQuAD file (.json), or a file with a question in each line (.jsonl).",
    )


def load_beir(folder: Path, split: str | None = None) -> QuestionSet:
    """A BEIR folder. A document is its title as a heading, and its text; relevant is what has a score ≥ 1.

    `split` names a file of `qrels/`; by default `test`, else the only one, else `qrels.tsv`. Queries without a
    relevant document are left out.
    """
    corpus, queries = _there(folder, "corpus.jsonl"), _there(folder, "queries.jsonl")
    qrels = _qrels(folder, split)
    documents = {}
    for where, record in _records(corpus):
        title, text = str(record.get("title") or ""), _text(record, "text", where)
        documents[_file(_text(record, "_id", where), ".md")] = _page(title, text)
    texts = {_text(record, "_id", where): _text(record, "text", where) for where, record in _records(queries)}
    judged: dict[str, list[Gold]] = {}
    for query, document, grade in _judgements(qrels):
        if query not in texts:
            raise DataError(f"{qrels} judges the query {query!r}, which {queries} lacks.")
        golds = judged.setdefault(query, [])
        if grade > 0:
            golds.append(Gold(f"{CORPUS}/{_file(document, '.md')}", grade=grade))
    name = f"{folder.resolve().name} {qrels.name.removesuffix('.tsv')}".removesuffix(" qrels")
    questions = [Question(query, texts[query], tuple(golds)) for query, golds in judged.items() if golds]
    return _checked(name, questions, {"without a relevant document": len(judged) - len(questions)}, documents, qrels)


def load_squad(
    path: Path, *, articles: bool = False, distractors: Sequence[str | Path] = (), answers: bool | None = False
) -> QuestionSet:
    """A SQuAD file. Each paragraph is a document, and gold is the one that a question was asked about.

    With `articles`, each article is a document, its paragraphs one after the other, and gold is the answer's place in
    it: the one that most annotators marked. `distractors` are SQuAD files whose paragraphs are searched too, without
    their questions. Questions without an answer are left out unless `answers` are measured.
    """
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for file in (path, *map(Path, distractors)):
        for title, paragraphs in _articles(file):
            page = _free(f"{_name(title)}.txt" if articles else _name(title), documents)
            offset = 0
            for number, paragraph in enumerate(paragraphs):
                uri = page if articles else f"{page}/{number:03}.txt"
                if not articles:
                    documents[uri] = paragraph["context"]
                for question in paragraph["qas"] if file == path else ():
                    right = question.get("answers", ())
                    start, end = _place(paragraph["context"], right, offset) if articles and right else (None, None)
                    gold = (Gold(f"{CORPUS}/{uri}", start, end),)
                    texts = tuple(dict.fromkeys(answer["text"] for answer in right))
                    questions.append(Question(str(question["id"]), question["question"], gold, texts, not texts))
                offset += len(_as_read(paragraph["context"])) + 2
            if articles:
                documents[page] = "\n\n".join(paragraph["context"] for paragraph in paragraphs)
    name = path.name.removesuffix(".gz").removesuffix(".json") + (" articles" if articles else "")
    return _selected(name, questions, documents, path, answers=answers)


def load_jsonl(path: Path, *, answers: bool | None = False) -> QuestionSet:
    """A question in each line: `question`, `uri`, and where it is about a passage, `start` and `end`.

    Lines of the same `id` are one question that should find them all; the default is the line's number. `answer` or
    `answers` are the right ones; a line with `"unanswerable": true` has none. What has either needs no `uri`.
    """
    questions: dict[str, Question] = {}
    for where, record in _records(path):
        text = _text(record, "question", where)
        start, end = record.get("start"), record.get("end")
        spans = (start, end) if isinstance(start, int) and isinstance(end, int) and 0 <= start < end else (None, None)
        if (start, end) != spans:
            raise DataError(f"{where}: start is {start!r} and end {end!r}; give both, as 0 <= start < end, or neither.")
        key = str(record.get("id", where.rpartition(" ")[2]))
        known = questions.get(key, Question(key, text, ()))
        if known.text != text:
            raise DataError(f"{where}: the id {key!r} is that of another question above, {known.text!r}.")
        right, unanswerable = _answers(record, where), record.get("unanswerable") is True
        needless = record.get("uri") is None and (right or unanswerable)
        gold = () if needless else (Gold(_text(record, "uri", where), *spans),)
        questions[key] = replace(
            known,
            gold=tuple(dict.fromkeys((*known.gold, *gold))),
            answers=tuple(dict.fromkeys((*known.answers, *right))),
            unanswerable=known.unanswerable or unanswerable,
        )
        if questions[key].unanswerable and questions[key].answers:
            raise DataError(f"{where}: {key!r} is said to be unanswerable and has an answer.")
    return _selected(path.name.removesuffix(".gz"), list(questions.values()), None, path, answers=answers)


def fingerprint(questions: Sequence[Question], *, answers: bool = False) -> str:
    """A hash of questions and gold, and of the right answers: equal where two runs asked the same."""
    digest = blake2b(digest_size=16)
    for question in questions:
        golds = [(gold.uri, gold.start, gold.end, gold.grade) for gold in question.gold]
        right = [question.answers, question.unanswerable] if answers else []
        digest.update(json.dumps([question.id, question.text, golds, *right]).encode())
    return digest.hexdigest()


# --- Inside ------------------------------------------------------------------------------------------------------


def _answers(record: Mapping[str, Any], where: str) -> list[str]:
    given = record.get("answers", record.get("answer", []))
    right = [given] if isinstance(given, str) else given
    if not isinstance(right, list) or not all(isinstance(answer, str) and answer.strip() for answer in right):
        raise DataError(f"{where}: answers are {given!r}; give a text or a list of texts.")
    return right


def _selected(
    name: str, questions: Sequence[Question], documents: Mapping[str, str] | None, path: Path, *, answers: bool | None
) -> QuestionSet:
    """Those that retrieval can be measured with, answers, or all; a span is an answer too, once the text is known."""
    kept, left_out = [], Counter[str]()
    for question in questions:
        if answers and not (question.unanswerable or question.answers or question.by_passage):
            left_out["without an answer"] += 1
        elif answers is False and question.unanswerable:
            left_out["unanswerable"] += 1
        elif answers is False and not question.gold:
            left_out["without a uri"] += 1
        else:
            kept.append(question)
    return _checked(name, kept, left_out, documents, path)


def _checked(
    name: str, questions: list[Question], left_out: Mapping[str, int], documents: Mapping[str, str] | None, path: Path
) -> QuestionSet:
    twice = [key for key, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise DataError(f"{path} has {len(twice)} ids of questions more than once, the first is {twice[0]!r}.")
    if not questions:
        why = "".join(f" ({count} {reason})" for reason, count in left_out.items() if count)
        raise DataError(f"{path} has no question that can be measured with{why}.")
    return QuestionSet(name, tuple(questions), {why: n for why, n in left_out.items() if n}, documents)


def _no_use(path: Path, what: str, **options: object) -> None:
    for name, value in options.items():
        if value:
            raise DataError(f"{str(path)!r} is {what}, for which there is no {name!r}.", "Leave it out.")


def _there(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"The folder {str(folder)!r} has no {name}.",
        "A BEIR folder holds corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv or qrels.tsv.",
    )


def _qrels(folder: Path, split: str | None) -> Path:
    splits = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    whole = folder / "qrels.tsv"
    if split is None and not splits and whole.is_file():
        return whole
    wanted = split or ("test" if "test" in splits or len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        known = ", ".join(splits) or ("none, qrels.tsv is not split" if whole.is_file() else "none")
        raise DataError(f"The folder {str(folder)!r} has no qrels/{wanted}.tsv.", f"Splits there: {known}.")
    return splits[wanted]


def _judgements(path: Path) -> Iterator[tuple[str, str, int]]:
    for number, line in enumerate(_lines(path), 1):
        parts = line.rstrip("\r\n").split("\t")
        try:
            query, document, grade = parts
            yield query, document, int(grade)
        except ValueError:
            if number == 1 and len(parts) == 3:
                continue  # the header
            raise DataError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not a query's id, a document's id and a whole "
                f"number, with tabs between them."
            ) from None


def _articles(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    try:
        content = json.loads("".join(_lines(path)))
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    _ = paragraph["context"] + question["question"], question["id"]
            yield article.get("title") or "untitled", article["paragraphs"]
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not in the form of SQuAD: {type(error).__name__}, {error}.",
            'Looked for {"data": [{"title", "paragraphs": [{"context", "qas"}]}]}.',
        ) from error


def _place(context: str, answers: Sequence[Mapping[str, Any]], offset: int) -> tuple[int, int]:
    places = Counter((answer["answer_start"], answer["answer_start"] + len(answer["text"])) for answer in answers)
    (start, end), _ = places.most_common(1)[0]
    return offset + len(_as_read(context[:start])), offset + len(_as_read(context[:end]))


def _as_read(text: str) -> str:
    return text.replace("\r\n", "\n")


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's JSON object, and where it stands, for messages."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} is not a JSON object but {type(record).__name__}.")
        yield where, record


def _lines(path: Path) -> Iterator[str]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            yield from file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "_id":
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} is {'missing' if value is None else f'{value!r}, not a text'}.")
    return value


def _page(title: str, text: str) -> str:
    heading = " ".join(title.split())
    return f"# {heading}\n\n{text}" if heading else text


def _file(name: str, suffix: str) -> str:
    return f"{_name(name)}{suffix}"


def _name(name: str) -> str:
    """A file's name for an id or a title: others have others, none is hidden."""
    safe = quote(name, safe=" ()',")
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    if len(safe) > _LONGEST_NAME:
        safe = f"{safe[: _LONGEST_NAME - 20]}-{blake2b(name.encode(), digest_size=8).hexdigest()}"
    return safe


def _free(page: str, documents: Mapping[str, str]) -> str:
    """The page, or with a number where two articles have the same title."""
    stem, dot, suffix = page.partition(".txt")
    number, free = 1, page
    while free in documents or f"{free}/000.txt" in documents:
        number += 1
        free = f"{stem} {number}{dot}{suffix}"
    return free
