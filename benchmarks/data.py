"""Public data sets of the benchmarks, as question sets. None of them is part of the project.

Only the tuning sets may be used for tuning.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragfm.evaluation import Gold, Question, QuestionSet, load_questions

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data"))


def squad_over_both(name: str, other: str) -> QuestionSet:
    """The questions of a SQuAD file over the paragraphs of both files, whose articles differ."""
    asked, more = load_questions(DATA / "squad" / name), load_questions(DATA / "squad" / other)
    return replace(asked, documents={**(asked.documents or {}), **(more.documents or {})})


def squad_whole_articles(path: Path = DATA / "squad" / "squad-v1.1-dev.json.gz") -> QuestionSet:
    """Questions over whole articles, each a document; gold is the span of the answer that most annotators marked."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    questions, documents = [], {}
    for article in articles:
        name, offset = f"{article['title']}.txt", 0
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                if marked := question["answers"]:
                    spans = Counter((a["answer_start"], a["answer_start"] + len(a["text"])) for a in marked)
                    (start, end), _ = spans.most_common(1)[0]
                    texts = tuple(dict.fromkeys(answer["text"] for answer in marked))
                    gold = Gold(f"corpus/{name}", offset + start, offset + end)
                    questions.append(Question(question["id"], question["question"], (gold,), texts))
            offset += len(paragraph["context"]) + 2
        documents[name] = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
    return QuestionSet(f"{path.name.removesuffix('.json.gz')} articles", tuple(questions), documents=documents)


def beir(name: str, split: str | None = None) -> QuestionSet:
    """A set in BEIR's format, which retrieves documents."""
    return load_questions(DATA / "beir" / name, split=split)


def squad() -> QuestionSet:
    """Every tenth question of SQuAD 1.1 dev, over the 20,963 paragraphs of dev and train."""
    data = squad_over_both("squad-v1.1-dev.json.gz", "squad-v1.0-train.json.gz")
    return replace(data, name="SQuAD 1.1 dev and train", questions=data.questions[::10])


def squad_train() -> QuestionSet:
    """1,000 questions of SQuAD 1.0 train, over the same paragraphs as `squad`."""
    data = squad_over_both("squad-v1.0-train.json.gz", "squad-v1.1-dev.json.gz")
    return replace(data, name="SQuAD 1.0 train and dev").sample(1000)


def squad_articles() -> QuestionSet:
    """Every twentieth question of SQuAD 1.1 dev over its 48 articles, each a document; the passage is searched for."""
    data = squad_whole_articles()
    return replace(data, questions=data.questions[::20])


def squad_train_part() -> QuestionSet:
    """400 questions of every sixth article of SQuAD 1.0 train, over the paragraphs of these articles."""
    data = load_questions(DATA / "squad" / "squad-v1.0-train.json.gz")
    documents = data.documents or {}
    titles = set(sorted({path.partition("/")[0] for path in documents})[::6])
    chosen = tuple(q for q in data.questions if q.gold[0].uri.split("/")[1] in titles)
    part = replace(data, name="SQuAD 1.0 train, every sixth article", questions=chosen)
    return replace(
        part.sample(400), documents={path: text for path, text in documents.items() if path.partition("/")[0] in titles}
    )


def squad_articles_asked(*, tuning: bool) -> QuestionSet:
    """Questions of SQuAD 1.1 dev over its 48 articles, each a document; the passage is searched for.

    For tuning, 300 about the first ten articles of SQuAD 2.0 dev, which are among them; else 400 about the others.
    """
    data = squad_whole_articles()
    with gzip.open(DATA / "squad" / "squad-v2.0-dev.json.gz", "rt", encoding="utf-8") as file:
        titles = sorted(article["title"] for article in json.load(file)["data"])[:10]
    files = {f"corpus/{title}.txt" for title in titles}
    chosen = tuple(question for question in data.questions if (question.gold[0].uri in files) == tuning)
    return replace(data, questions=chosen).sample(300 if tuning else 400)


def xquad(language: str) -> QuestionSet:
    """XQuAD (Artetxe et al. 2020): 1,190 questions over 240 paragraphs, parallel in all languages."""
    return load_questions(DATA / "xquad" / f"xquad.{language}.json.gz")


def hotpotqa() -> QuestionSet:
    """100 questions of HotpotQA (Yang et al. 2018) that need two passages."""
    corpus = _json("hotpotqa_train_corpus")
    return _multihop(
        "HotpotQA",
        [(title, "".join(sentences)) for title, sentences in corpus.items()],
        [
            (entry, entry["_id"], {(t, "".join(corpus[t])) for t, _ in entry["supporting_facts"]})
            for entry in _json("hotpotqa_train")
        ],
    )


def musique() -> QuestionSet:
    """100 questions of MuSiQue (Trivedi et al. 2022) that need two to four passages."""
    return _multihop(
        "MuSiQue",
        [(passage["title"], passage["text"]) for passage in _json("musique_train_corpus")],
        [
            (
                entry,
                entry["id"],
                {(p["title"], p["paragraph_text"]) for p in entry["paragraphs"] if p["is_supporting"]},
            )
            for entry in _json("musique_train")
        ],
    )


def _multihop(
    name: str, passages: list[tuple[str, str]], asked: list[tuple[dict[str, Any], str, set[tuple[str, str]]]]
) -> QuestionSet:
    """Each passage is a Markdown file with its title as heading, like BEIR's documents."""
    files = {passage: f"{number:05}.md" for number, passage in enumerate(passages)}
    return QuestionSet(
        name,
        tuple(
            Question(
                key,
                entry["question"],
                tuple(Gold(f"corpus/{files[passage]}") for passage in sorted(supporting)),
                (entry["answer"], *entry.get("answer_aliases", ())),
            )
            for entry, key, supporting in asked
        ),
        documents={file: f"# {title}\n\n{text}" for (title, text), file in files.items()},
    )


def pubmedqa(*, test: bool | None = None) -> QuestionSet:
    """PubMedQA (Jin et al. 2019): yes/no/maybe questions about abstracts without their conclusion.

    500 questions for training, the 500 test questions, or all in the order of the file. The documents are all 1,000
    abstracts.
    """
    entries, labels = _json("ori_pqal", "pubmedqa"), _json("test_ground_truth", "pubmedqa")
    return QuestionSet(
        "PubMedQA",
        tuple(
            Question(key, entry["QUESTION"], (Gold(f"corpus/{key}.txt"),), (entry["final_decision"],))
            for key, entry in entries.items()
            if test is None or (key in labels) == test
        ),
        documents={f"{key}.txt": "\n\n".join(entry["CONTEXTS"]) for key, entry in entries.items()},
    )


def report_questions() -> QuestionSet:
    """55 questions of financebench over its PDFs. In place of a span, a gold has the number of the page."""
    lines = (DATA / "financebench" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = []
    for line in map(json.loads, lines):
        pages = sorted({evidence["page"] for evidence in line["evidence"]})
        golds = tuple(Gold(line["document"], page, page) for page in pages)
        questions.append(Question(line["id"], line["question"], golds, (line["answer"],)))
    return QuestionSet("reports", tuple(questions))


def every_second(data: QuestionSet, *, even: bool) -> QuestionSet:
    """The questions of the even lines, which may be tuned on, or of the odd ones."""
    return replace(data, questions=data.questions[1 if even else 0 :: 2])


def _json(name: str, folder: str = "multihop") -> Any:
    with gzip.open(DATA / folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


# For each set: the function that loads it, and its main measure.
REPORTED: dict[str, tuple[Callable[[], QuestionSet], str]] = {
    "SciFact test": (lambda: beir("scifact", "test"), "nDCG@10"),
    "npl": (lambda: beir("npl"), "nDCG@10"),
    "SQuAD dev": (squad, "MRR@10"),
    "SQuAD dev articles": (squad_articles, "MRR@10"),
}
TUNING: dict[str, tuple[Callable[[], QuestionSet], str]] = {
    "SciFact train": (lambda: beir("scifact", "train"), "nDCG@10"),
    "SQuAD train": (squad_train, "MRR@10"),
    "cranfield": (lambda: beir("cranfield"), "nDCG@10"),
    "cisi": (lambda: beir("cisi"), "nDCG@10"),
    "cacm": (lambda: beir("cacm"), "nDCG@10"),
}
