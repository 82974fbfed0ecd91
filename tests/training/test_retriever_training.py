"""Training of retrievers: they learn new words, are compared with the previous model, and wait to be adopted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.shell import InProcessShell

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.core.errors import DataError, ModelNotFoundError, UnsupportedError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.progress import Progress
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.evaluation import Gold, Question
from ragfm.training.embedder_training import epoch_batches
from ragfm.training.hard_negatives import RankingExample, mine_hard_negatives, split_questions
from ragfm.training.retriever_training import RECORD, RetrieverReport, adapt_retriever

TOWNS = "Aldon Brista Corvel Dunmar Elsick Farrow Gosten Hadley Ilmar Jorvik Kelso Lunden".split()
WORDS = {"harbour": "blick", "library": "quarm", "prison": "vosp", "bakery": "trell"}
"""Words of the documents, and the words of the questions for them."""


def file_of(town: str, noun: str) -> str:
    """A document's file name, which says nothing: names are part of what is embedded."""
    return f"{TOWNS.index(town)}-{list(WORDS).index(noun)}.txt"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def towns(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    place = tmp_path_factory.mktemp("towns")
    folder = place / "docs"
    folder.mkdir()
    for at, town in enumerate(TOWNS):
        for noun in WORDS:
            (folder / file_of(town, noun)).write_text(f"The {noun} of {town} was built in {1500 + 7 * at}.\n")
    settings = Settings(search=SearchSection(rerank_candidates=12))  # a cross-encoder takes its time
    collection = Collection.open(place / ".ragfm", settings=settings)
    collection.sync(folder)
    return collection


QUESTIONS = [
    Question(f"{town} {noun}", f"How old is the {own} of {town}?", (Gold(f"docs/{file_of(town, noun)}"),))
    for town in TOWNS
    for noun, own in WORDS.items()
]


PARTS = split_questions(QUESTIONS, 0.5)


SETTINGS: dict[str, Any] = {"epochs": 3, "rate": 2e-4, "negatives": 2}


@pytest.fixture(scope="module")
def embedder(towns: Collection, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RetrieverReport]:
    out = tmp_path_factory.mktemp("out") / "embedder"
    return out, adapt_retriever(towns, PARTS, out, **SETTINGS)


@pytest.mark.slow
def test_an_embedder_learns_new_words_and_can_be_adopted(
    towns: Collection, embedder: tuple[Path, RetrieverReport]
) -> None:
    out, report = embedder
    first = report.differences[0]
    assert first.measure == "nDCG@10"
    assert first.b > first.a + 0.1
    assert report.better
    assert report.questions == {"learn": 24, "choose": 12, "test": 12}
    assert towns.status().embedder["model"] == "bundled"  # nothing was adopted
    assert json.loads((out / RECORD).read_text())["differences"][0]["b"] == first.b
    card = (out / "README.md").read_text()
    assert f"- Base: `{report.base['model']}` (sha256 `{report.base['sha256']}`, licence: " in card
    assert f"| nDCG@10 | {first.a:.3f} | {first.b:.3f} |" in card
    assert {path.suffix for path in out.iterdir()} <= {".json", ".md", ".run", ".safetensors", ".txt", ""}
    assert not (out / ".training").exists()
    assert read_bert_folder(out) is not None  # it is as fast as the bundled one
    with Collection.open(towns.path.with_name("other"), settings=Settings(embedder=str(out))) as other:
        other.sync(towns.path.with_name("docs"))
        found = [other.search(question.text, 1, mode="dense")[0].uri for question in QUESTIONS]
    assert sum(uri == question.gold[0].uri for uri, question in zip(found, QUESTIONS, strict=True)) > 36


@pytest.mark.slow
def test_an_existing_retriever_is_not_overwritten(towns: Collection, embedder: tuple[Path, RetrieverReport]) -> None:
    with pytest.raises(DataError, match="already contains a retriever"):
        adapt_retriever(towns, PARTS, embedder[0], **SETTINGS)


@pytest.mark.slow
def test_an_interrupted_run_continues(towns: Collection, tmp_path: Path) -> None:
    """The run is interrupted once in training and once in the test."""
    out, stops = tmp_path / "embedder", iter(["train", "search after", ""])

    def run() -> RetrieverReport:
        stop = next(stops)

        def progress(now: Progress) -> None:
            if now.stage == stop and now.total and now.done == now.total // 2:
                raise KeyboardInterrupt

        return adapt_retriever(towns, PARTS, out, **SETTINGS, progress=progress)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
        assert not (out / RECORD).exists()
    report = run()
    assert min(report.numbers["valid"]) < 0.8 * report.numbers["loss"]["first"]  # on questions that it has not seen


def test_a_passage_with_the_answer_is_the_positive(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("# Kelso today\n\nThe bakery was built in 1570.\n")
    with Collection.open(tmp_path / ".ragfm") as collection:
        collection.sync(tmp_path / "docs")
        question = Question("1", "When was the bakery built?", (Gold("docs/guide.md"),), ("1570",))
        (example,) = mine_hard_negatives(collection, [question])
    assert example.positive.endswith("The bakery was built in 1570.")


def test_a_folder_without_a_judge_is_refused(towns: Collection, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no judge"):
        towns.search("Kelso", rerank=f"judge:{tmp_path}")


def test_a_gguf_file_is_refused(towns: Collection, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="is not an embedder"):
        adapt_retriever(towns, PARTS, tmp_path / "out", base=str(tmp_path / "model.gguf"))


def test_parts_of_a_split_share_no_document() -> None:
    linked = [Question(str(at), "?", (Gold(f"{at // 2}"), Gold(f"{at // 2 + 100 * (at % 2)}"))) for at in range(80)]
    parts = split_questions(linked, 0.4)
    uris = [
        {gold.uri for question in part for gold in question.gold} for part in (parts.learn, parts.choose, parts.test)
    ]
    assert [len(part) for part in (parts.learn, parts.choose, parts.test)] == [48, 16, 16]
    assert not uris[0] & uris[1] | uris[0] & uris[2] | uris[1] & uris[2]
    with pytest.raises(DataError, match="too few"):
        split_questions(linked[:2], 0.4)


def test_passages_with_the_answer_are_not_negatives(towns: Collection) -> None:
    question = Question(
        "q", "When was the harbour of Aldon built?", (Gold(f"docs/{file_of('Aldon', 'harbour')}"),), ("1500",)
    )
    (example,) = mine_hard_negatives(towns, [question])
    assert example.positive == "The harbour of Aldon was built in 1500."
    assert example.negatives
    assert not any("1500" in text for text in example.negatives)


def test_no_positive_occurs_twice_in_a_batch() -> None:
    examples = [RankingExample(f"question {at}", f"text {at % 7}", ("a", "b", "c")) for at in range(40)]
    batches = epoch_batches(examples, 0, size=8, negatives=2)
    assert sorted(example.question for batch in batches for example in batch) == sorted(
        example.question for example in examples
    )
    for batch in batches:
        assert len({example.positive for example in batch}) == len(batch) <= 8
        assert all(len(example.negatives) == 2 for example in batch)
    assert epoch_batches(examples, 0, size=8, negatives=2) == batches
    assert epoch_batches(examples, 1, size=8, negatives=2) != batches


def test_the_command_reports_a_change_within_noise(towns: Collection, tmp_path: Path) -> None:
    lines = [
        {"question": f"How old is the blick of {town}?", "uri": f"docs/{file_of(town, 'harbour')}"}
        for town in TOWNS[:8]
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = towns.status()
    options = "--epochs 1 --rate 1e-9".split()
    said = InProcessShell()(
        "adapt", "retriever", tmp_path / "q.jsonl", *options, "-c", towns.path, "--out", tmp_path / "new"
    )
    assert "within noise: there is no reason to adopt it" in said
    assert f"ragfm reembed --embedder {tmp_path / 'new'}" in said
    assert towns.status() == before
    assert (tmp_path / "new" / OUTPUT).is_file()
