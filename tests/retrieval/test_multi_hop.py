"""Search in several hops: what the best hits name is searched for, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.shell import Shell

from ragfm import Collection, Rag, Settings
from ragfm.testing import HashingEmbedder, ScriptedReader

if TYPE_CHECKING:
    from ragfm.core.types import SearchStep

QUESTION = "What is the population of the town where the painter Ulla Brandt was born?"
BIRTHPLACE, POPULATION = "people/brandt.md", "people/lindau.md"


@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    folder.mkdir()
    (folder / "brandt.md").write_text("# Ulla Brandt\n\nThe painter Ulla Brandt was born in Lindenau in 1871.")
    (folder / "lindau.md").write_text("# Lindenau\n\nLindenau lies on the river Aue. It has a population of 4,200.")
    for number in range(40):
        text = f"# Kolm{number}stadt\n\nIt has a population of {number + 20}."
        (folder / f"{number}.md").write_text(text)
    return folder


def _rank(collection: Collection, query: str, uri: str, hops: object) -> int:
    return [hit.uri for hit in collection.search(query, 40, mode="keyword", hops=hops)].index(uri)  # type: ignore[arg-type]


def test_a_name_in_a_hit_leads_to_another_hit(collection: Collection, people: Path) -> None:
    collection.sync(people)
    first = collection.search(QUESTION, 2, mode="keyword")
    assert first[0].uri == BIRTHPLACE
    assert first[1].uri != POPULATION
    second = collection.search(QUESTION, 2, mode="keyword", hops=2)
    assert [hit.uri for hit in second] == [BIRTHPLACE, POPULATION]
    assert second[1].scores["keyword"] is not None
    assert second[1].scores["dense"] is None


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_linked_hits_have_the_scores_of_the_mode(collection: Collection, people: Path, mode: str) -> None:
    collection.sync(people)
    plain = {hit.uri: hit.scores for hit in collection.search(QUESTION, 99, mode=mode)}  # type: ignore[arg-type]
    linked = collection.search(QUESTION, 3, mode=mode, hops=2)  # type: ignore[arg-type]
    assert POPULATION in {hit.uri for hit in linked}
    for hit in linked:
        assert hit.scores["dense"] == pytest.approx(plain[hit.uri]["dense"])
        assert hit.scores["keyword"] == pytest.approx(plain[hit.uri]["keyword"])


def test_the_first_hit_stays_first(collection: Collection, people: Path) -> None:
    text = "# Lindenau\n\nLindenau is a town on the river Aue. Its population is 4,200, and the town is old."
    (people / "lindau.md").write_text(text)
    collection.sync(people)
    for hops in (1, 2):
        assert collection.search(QUESTION, 5, mode="keyword", hops=hops)[0].uri == BIRTHPLACE


def test_each_search_is_recorded_with_its_round(collection: Collection, people: Path) -> None:
    collection.sync(people)
    steps: list[SearchStep] = []
    collection.search(QUESTION, 3, hops=2, record=steps.append)
    assert (steps[0].query, steps[0].round) == (QUESTION, 1)
    assert ("Lindenau", 2) in {(step.query, step.round) for step in steps}
    steps.clear()
    collection.search(QUESTION, 3, record=steps.append)
    assert [(step.query, step.round, step.hits) for step in steps] == [(QUESTION, 1, 3)]


def test_no_hop_leads_to_what_a_group_may_not_see(collection: Collection, people: Path, tmp_path: Path) -> None:
    (people / "aue.md").write_text("# The Aue\n\nThe Aue rises above Lindenau.")  # so that the name is searched for
    collection.sync(people, exclude=["lindau.md"])
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "lindau.md").write_text((people / "lindau.md").read_text())
    collection.sync(secret, allow=["council"])
    assert "secret/lindau.md" in {hit.uri for hit in collection.search(QUESTION, 3, hops=2)}
    hits = collection.as_groups({"staff"}).search(QUESTION, 99, hops=2)
    assert hits
    assert not [hit for hit in hits if hit.uri.startswith("secret")]


def test_a_question_without_letters_and_digits(collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("for _ in range(3):\n    print('Lindenau')\n")
    collection.sync(tmp_path / "loop.py")
    assert [hit.uri for hit in collection.search("_", hops=2)] == ["loop.py"]


def test_scripts_without_capitals(collection: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "arabic"
    folder.mkdir()
    (folder / "painter.txt").write_text("ولدت الرسامة فاطمة في غدامس")
    (folder / "غدامس.txt").write_text("يعيش هناك عشرة آلاف")
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"سكان المدينة {number} كثيرون والمدينة كبيرة")
    collection.sync(folder)
    query = "كم سكان المدينة حيث ولدت الرسامة فاطمة"
    assert _rank(collection, query, "arabic/غدامس.txt", 2) < 3
    assert "arabic/غدامس.txt" not in [hit.uri for hit in collection.search(query, 3, mode="keyword")]


@pytest.mark.parametrize("hops", [0, 3, "x"])
def test_a_wrong_number_of_hops_is_an_error(collection: Collection, people: Path, hops: object) -> None:
    collection.sync(people)
    with pytest.raises(ValueError, match=f"hops is {hops!r}"):
        collection.search(QUESTION, hops=hops)  # type: ignore[arg-type]


def test_an_answer_lists_its_searches(tmp_path: Path, people: Path) -> None:
    settings = Settings.model_validate({"ask": {"hops": 2}})
    with Collection.open(tmp_path / "c", settings=settings, embedder=HashingEmbedder()) as collection:
        collection.sync(people)
        answer = Rag(collection, reader=ScriptedReader("4,200 [1]."), k=3).ask(QUESTION)
        assert answer.searches[0].query == QUESTION
        assert {step.round for step in answer.searches} == {1, 2}
        assert POPULATION in {hit.uri for hit in answer.hits}
        once = Rag(collection, reader=ScriptedReader("4,200 [1]."), k=3, hops=1).ask(QUESTION)
        assert [step.round for step in once.searches] == [1]


@pytest.mark.slow
def test_the_command(tmp_path: Path, people: Path) -> None:
    shell = Shell(tmp_path)
    shell("ingest", people)
    found = shell.json("search", QUESTION, "-k", "2", "--mode", "keyword", "--hops", "2")
    assert [hit["uri"] for hit in found["hits"]] == [BIRTHPLACE, POPULATION]
    assert {"query": "Lindenau", "round": 2, "hits": 1} in found["searches"]
    shell("search", QUESTION, "--hops", "3", code=2)
