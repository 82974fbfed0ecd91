"""The main job on real models: the demo, answers that follow the documents, and retrieval on SQuAD."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from support.shell import HIT_KEYS, Shell

from ragfm import Collection, Rag, Settings
from ragfm.samples import QUESTIONS, copy_handbook

pytestmark = pytest.mark.slow

ASK_KEYS = set(
    "question query answer status shown quote abstained confidence said citations contradictions nearest hits dropped "
    "usage seconds unsupported log_id searches notes calculation guarantee answered_guarantee".split()
)
CITATION_KEYS = set(
    "n uri name page lines start end quote verified fault missing answer_start answer_end image box row date "
    "probability".split()
)
FACTS = {
    QUESTIONS[0]: ("four months", "handbook/welcome.md", None),
    QUESTIONS[1]: ("11", "handbook/rooms.html", None),
    QUESTIONS[2]: ("11:15", "handbook/observers-guide.pdf", 2),
}
CHANGES = [
    ("welcome.md", "period is four months", "period is six months", QUESTIONS[0], "six months"),
    ("rooms.html", "11 bedrooms", "17 bedrooms", QUESTIONS[1], "17"),
]


def _bundled(folder: Path) -> Shell:
    shell = Shell(folder)
    shell.env["RAGFM_EMBEDDER"] = "bundled"
    return shell


def _conforms(answer: dict[str, Any], texts: dict[str, str]) -> None:
    """An answer has the fields of the contract, and its spans are slices of the documents."""
    assert set(answer) == ASK_KEYS
    assert set(answer["usage"]) == {
        f"{kind}_tokens" for kind in ("prompt", "cached", "completion", "drafted", "accepted")
    }
    for hit in answer["hits"]:
        assert set(hit) == HIT_KEYS | {"n"}
        assert texts[hit["uri"]][hit["start"] : hit["end"]] == hit["text"]
    shown = {hit["n"]: hit for hit in answer["hits"] if hit["n"] is not None}
    for citation in answer["citations"]:
        assert set(citation) == CITATION_KEYS
        assert texts[citation["uri"]][citation["start"] : citation["end"]] == citation["quote"]
        assert shown[citation["n"]]["uri"] == citation["uri"]
        assert f"[{citation['n']}]" in answer["answer"]
    dropped = {drop["chunk_id"] for drop in answer["dropped"]}
    assert dropped == {hit["chunk_id"] for hit in answer["hits"] if hit["n"] is None}


def test_the_demo_answers_with_citations_and_follows_changed_facts(tmp_path: Path) -> None:
    shell = _bundled(tmp_path)
    first = shell.json("demo")
    assert (first["ingest"]["added"], first["ingest"]["failed"], first["ingest"]["skipped"]) == (12, [], [])
    collection = Collection.open(tmp_path / "ragfm-demo" / ".ragfm")
    texts = {info.uri: collection.document(info.uri).text for info in collection.documents()}
    assert {Path(uri).suffix for uri in texts} == {".md", ".html", ".txt", ".csv", ".pdf", ".docx"}
    for answer in first["answers"]:
        fact, uri, page = FACTS[answer["question"]]
        _conforms(answer, texts)
        assert fact in answer["answer"].lower()
        assert not answer["abstained"]
        cited = [citation for citation in answer["citations"] if citation["fault"] in (None, "unclear")]
        assert {(citation["uri"], citation["page"]) for citation in cited} == {(uri, page)}
        assert len({citation["quote"] for citation in cited}) == len(cited)  # it says nothing twice
        assert fact.split()[0] in cited[0]["quote"]

    for name, old, new, _, _ in CHANGES:
        file = tmp_path / "ragfm-demo" / "handbook" / name
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1
        file.write_text(text.replace(old, new), encoding="utf-8")
    second = shell.json("demo")
    assert (second["ingest"]["updated"], second["ingest"]["unchanged"]) == (len(CHANGES), 12 - len(CHANGES))
    answers = {answer["question"]: answer for answer in second["answers"]}
    for _, old, _, question, fact in CHANGES:
        assert fact in answers[question]["answer"].lower()
        assert old.split()[-2] not in answers[question]["answer"]
        assert any(fact.split()[0] in citation["quote"] for citation in answers[question]["citations"])


def test_ask_conforms_when_there_is_no_answer_and_no_document(tmp_path: Path) -> None:
    shell = _bundled(tmp_path)
    copy_handbook(tmp_path)
    shell("ingest", "handbook")
    collection = Collection.open(tmp_path / ".ragfm")
    texts = {info.uri: collection.document(info.uri).text for info in collection.documents()}
    for question in ("Who won the football world cup in 1954?", "What do I do when the boat is late?"):
        _conforms(shell.json("ask", question, "-k", "5"), texts)
    (tmp_path / "empty").mkdir()
    shell("ingest", "empty", "-c", "none")
    answer = shell.json("ask", "Who is there?", "-c", "none")
    _conforms(answer, {})
    assert (answer["abstained"], answer["hits"], answer["answer"]) == (True, [], "I don't know.")
    talk = shell("chat", typed=f"{QUESTIONS[1]}\n/sources\n/quit\n").stdout
    assert "11 bedrooms" in talk
    assert "[1] handbook/rooms.html" in talk


def test_the_transformers_reader_answers_as_well(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / ".ragfm", settings=Settings())
    collection.sync(copy_handbook(tmp_path))
    answer = Rag(collection, reader="transformers:bundled").ask(QUESTIONS[0])
    assert "four months" in answer.text
    assert [citation.uri for citation in answer.citations if citation.verified] == ["handbook/welcome.md"]


@pytest.mark.data
def test_squad_paragraphs_are_found(tmp_path: Path, data: Path) -> None:
    with gzip.open(data / "squad" / "squad-v1.1-dev.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    articles = articles[::3]
    assert len(articles) == 16
    folder = tmp_path / "squad"
    folder.mkdir()
    for article in articles:
        name = re.sub(r"\W+", "_", article["title"])
        paragraphs = [paragraph["context"] for paragraph in article["paragraphs"]]
        (folder / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    questions = [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    asked = random.Random(0).sample(questions, 200)

    collection = Collection.open(tmp_path / ".ragfm", settings=Settings())
    assert collection.sync(folder).added == 16
    found = 0
    for qa in asked:
        hits = collection.search(qa["question"], k=5, mode="dense")
        found += any(answer["text"] in hit.text for hit in hits for answer in qa["answers"])
    assert found / len(asked) >= 0.8, f"{found} of {len(asked)}"
    assert collection.sync(folder).chunks == 0
