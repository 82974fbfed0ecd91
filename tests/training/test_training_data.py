"""Datasets: passages and answers of examples, held-out data, and the command that makes them."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.judges import ScriptedJudge
from support.shell import Shell

from ragfm import Collection, Rag, Settings
from ragfm.core.abstention import ABSTENTION
from ragfm.core.config import AskSection
from ragfm.core.errors import DataError
from ragfm.core.output_folder import OUTPUT
from ragfm.core.types import Hit
from ragfm.evaluation import Gold, Question, QuestionSet
from ragfm.evaluation.answer_matching import contains_answer
from ragfm.generation.prompt import prompt_fingerprint
from ragfm.testing import HashingEmbedder, ScriptedReader
from ragfm.training import Dataset, HeldOut, Recipe, examples_from_questions, load_held_out, make_dataset, read_examples
from ragfm.training.dataset import build_dataset
from ragfm.training.raft import _ExampleBuilder, _format_answer
from ragfm.training.unanswerable_questions import near_misses

TOWNS = "Aldon Brista Corvel Dunmar Elsick Farrow Gosten Hadley".split()


@pytest.fixture
def collection(tmp_path: Path, embedder: HashingEmbedder) -> Collection:
    """Without a reranker, which would read the passages of each question with a network."""
    settings = Settings(ask=AskSection(reranker="none"))
    return Collection.open(tmp_path / ".ragfm", settings=settings, embedder=embedder)


@pytest.fixture
def towns(tmp_path: Path, collection: Collection) -> Collection:
    folder = tmp_path / "towns"
    folder.mkdir()
    for number, town in enumerate(TOWNS):
        (folder / f"{town}.txt").write_text(
            f"The town of {town} was founded in {1500 + 7 * number} by fishermen from the coast.\n\n"
            f"In {town} there are {200 + 13 * number} houses, and the oldest one is a mill.\n"
        )
    collection.sync(folder)
    return collection


def asked(number: int, town: str) -> list[Question]:
    golds = (Gold(f"towns/{town}.txt"),)
    return [
        Question(f"{town} year", f"In which year was the town of {town} founded?", golds, (str(1500 + 7 * number),)),
        Question(f"{town} houses", f"How many houses are there in {town}?", golds, (str(200 + 13 * number),)),
        Question(f"{town} oldest", f"Which is the oldest house of the town of {town}?", golds, ("a mill",)),
    ]


QUESTIONS = [question for number, town in enumerate(TOWNS) for question in asked(number, town)]


def build(rag: Rag, questions: list[Question], recipe: Recipe, held_out: HeldOut = HeldOut()) -> Dataset:  # noqa: B008
    examples, left_out = examples_from_questions(rag, questions, recipe, held_out=held_out)
    return build_dataset(rag, examples, recipe, left_out)


def made(towns: Collection, questions: list[Question] = QUESTIONS, **recipe: float) -> Dataset:
    return build(Rag(towns, reader=ScriptedReader(), k=2), questions, Recipe(**recipe))  # type: ignore[arg-type]


def test_an_answer_cites_its_passage_and_the_prompt_is_that_of_serving(towns: Collection) -> None:
    dataset = made(towns, abstain=0.0)
    examples = {example.meta["id"]: example for example in (*dataset.train, *dataset.valid)}
    assert len(examples) == len(QUESTIONS)
    for question in QUESTIONS:
        example = examples[question.id]
        (marker,) = {n for n in (1, 2, 3) if f"[{n}]" in example.completion}
        passages = example.messages[-1].content.split("\n\n[")
        (cited,) = [text for text in passages if text.lstrip("[").startswith(f"{marker}]")]
        assert contains_answer(cited, question.answers)
        assert contains_answer(example.completion, question.answers)
        assert example.meta["verified"]
    rag = Rag(towns, reader=ScriptedReader(lambda _: "x"), k=2)
    served = {question.id: rag.stream(question.text).prompt for question in QUESTIONS}
    same = [prompt for id, prompt in served.items() if prompt and prompt.messages == examples[id].messages]
    assert same  # where the random order of the passages is that of the search
    assert dataset.card["prompt"] == prompt_fingerprint()


def test_no_passage_holds_a_withheld_answer(towns: Collection) -> None:
    dataset = made(towns, abstain=0.9, near=0.0)
    withheld = [e for e in (*dataset.train, *dataset.valid) if e.meta["kind"] == "withheld"]
    assert len(withheld) > len(QUESTIONS) / 2
    answers = {question.id: question.answers for question in QUESTIONS}
    for example in withheld:
        assert example.completion == ABSTENTION
        assert example.meta["shown"]
        assert not contains_answer(example.messages[-1].content, answers[example.meta["id"]])


def test_a_share_of_many_questions_about_one_document_is_withheld_for_any_seed(
    tmp_path: Path, collection: Collection
) -> None:
    names = [f"{chr(65 + at)}ston" for at in range(20)]
    text = "\n\n".join(
        f"## {name}\n\nThe hall of {name} holds {300 + at} people. " + f"{name} is old. " * 40
        for at, name in enumerate(names)
    )
    (tmp_path / "handbook.md").write_text(text)
    collection.sync(tmp_path / "handbook.md")
    gold = (Gold("handbook.md"),)
    questions = [
        Question(name, f"How many people does the hall of {name} hold?", gold, (str(300 + at),))
        for at, name in enumerate(names)
    ]
    rag = Rag(collection, reader=ScriptedReader(), k=2)
    counts = [len(_ExampleBuilder(rag, questions, Recipe(seed=seed), HeldOut())._withheld) for seed in range(21)]
    assert counts == [3] * 21  # a sixth
    kinds = [
        Counter(e.meta["kind"] for e in build(rag, questions, Recipe(near=0.0, seed=seed)).train) for seed in (0, 6)
    ]
    assert [kind["withheld"] for kind in kinds] == [7, 7]
    assert [kind["answer"] for kind in kinds] == [13, 13]


def test_a_share_of_few_questions_per_document_is_withheld(towns: Collection) -> None:
    rag = Rag(towns, reader=ScriptedReader(), k=2)
    for seed in range(9):
        drawn = _ExampleBuilder(rag, QUESTIONS, Recipe(seed=seed), HeldOut())._withheld
        assert 3 <= len(drawn) <= 5
        assert len({name.split()[0] for name in drawn}) == len(drawn) / 3


def explained(number: int, town: str) -> Question:
    answer = (
        f"{town} was founded by fishermen who came from the coast, and that was in {1500 + 7 * number}. Nobody left."
    )
    return Question(f"{town} origin", f"How was the town of {town} founded?", (Gold(f"towns/{town}.txt"),), (answer,))


EXPLAINED = [explained(number, town) for number, town in enumerate(TOWNS)]


def test_an_explanation_is_learned_from_a_passage_that_supports_it(towns: Collection) -> None:
    dataset = made(towns, EXPLAINED, abstain=0.0)
    examples = {example.meta["id"]: example for example in (*dataset.train, *dataset.valid)}
    assert len(examples) == len(EXPLAINED)
    for number, town in enumerate(TOWNS):
        example = examples[f"{town} origin"]
        n = example.meta["shown"].index(f"towns/{town}.txt") + 1
        said = f"{town} was founded by fishermen who came from the coast, and that was in {1500 + 7 * number} [{n}]."
        assert example.completion == said  # without the sentence that no passage supports
        assert example.meta["verified"]


def test_the_judge_of_the_collection_decides_which_explanations_are_learned(towns: Collection) -> None:
    rag = Rag(towns, reader=ScriptedReader(), k=2)
    rag.judge = ScriptedJudge(supports=lambda _: 0.0)
    examples, left_out = examples_from_questions(rag, EXPLAINED, Recipe(abstain=0.0))
    assert (examples, left_out) == ([], {"no passage holds its answer": len(EXPLAINED)})


def test_no_passage_supports_a_withheld_explanation(towns: Collection) -> None:
    dataset = made(towns, EXPLAINED, abstain=0.9, near=0.0)
    withheld = [e for e in (*dataset.train, *dataset.valid) if e.meta["kind"] == "withheld"]
    assert len(withheld) > len(EXPLAINED) / 2
    for example in withheld:
        assert example.meta["shown"]
        assert example.meta["uris"][0] not in example.meta["shown"]


def test_a_question_whose_answer_is_in_no_passage_is_not_withheld(towns: Collection) -> None:
    lost = [Question(town, f"Who was in {town}?", (Gold(f"towns/{town}.txt"),), ("nobody at all",)) for town in TOWNS]
    with pytest.raises(DataError, match=f"no passage holds its answer: {len(TOWNS)}"):
        made(towns, lost, abstain=0.9, near=0.0)


def test_a_dataset_of_little_but_abstentions_is_refused(towns: Collection) -> None:
    unknown = [
        Question(f"{town} {what}", f"What is the {what} of {town}?", (), unanswerable=True)
        for town in TOWNS
        for what in ("river", "lake", "hill")
    ]
    rag = Rag(towns, reader=ScriptedReader(), k=2)
    with pytest.raises(DataError, match=r"24 of 30 have the answer “I don't know\.”, and --abstain is 0\.33"):
        make_dataset(rag, QuestionSet("q", (*unknown, *QUESTIONS[:6])))
    assert make_dataset(rag, QuestionSet("q", (*unknown, *QUESTIONS[:6])), Recipe(abstain=0.8)).train
    assert make_dataset(rag, QuestionSet("q", (*unknown, *QUESTIONS))).train
    with pytest.raises(DataError, match="3 of 3 have the answer"):
        make_dataset(rag, QuestionSet("q", tuple(unknown[:3])))


def test_questions_answered_by_headings_are_not_withheld_or_near_misses(tmp_path: Path, collection: Collection) -> None:
    hours = {"Berlin": "eight", "Munich": "nine", "Hamburg": "ten"}
    text = "\n\n".join(
        f"## {city}\n\n{'The house has a yard. ' * 12}\n\nThe canteen opens at {hour}. "
        f"{'It serves soup, bread and tea. ' * 8}"
        for city, hour in hours.items()
    )
    (tmp_path / "guide.md").write_text(f"# Office guide\n\n{text}\n")
    collection.sync(tmp_path / "guide.md")
    gold = (Gold("guide.md"),)
    questions = [
        Question(hour, f"When does the canteen in {city} open?", gold, (hour,)) for city, hour in hours.items()
    ]
    questions += [
        Question(city, f"In which city does the canteen open at {hour}?", gold, (city,)) for city, hour in hours.items()
    ]
    rag = Rag(collection, reader=ScriptedReader(), k=2)
    right = {question.id: question.answers for question in questions}
    abstained = 0
    for seed in range(8):
        for near in (0.0, 1.0):
            dataset = build(rag, questions, Recipe(abstain=0.9, near=near, seed=seed))
            for example in (*dataset.train, *dataset.valid):
                passages = example.messages[-1].content.rpartition("\n\n")[0]
                if example.meta["kind"] == "withheld":
                    assert not contains_answer(passages, right[example.meta["id"]])
                elif example.meta["kind"] == "near miss: name":
                    (city,) = {city for city in hours if city in example.meta["question"]}
                    assert city not in passages
                else:
                    continue
                abstained += 1
    assert abstained


def test_a_near_miss_shows_the_gold_passage_of_the_original_question(towns: Collection) -> None:
    dataset = made(towns, abstain=0.9, near=1.0)
    near = [e for e in (*dataset.train, *dataset.valid) if str(e.meta["kind"]).startswith("near miss")]
    assert near
    for example in near:
        assert example.completion == ABSTENTION
        assert example.meta["uris"][0] in example.meta["shown"]
        asked = next((question for question in QUESTIONS if question.text == example.meta["question"]), None)
        assert asked is None or asked.gold[0].uri not in example.meta["shown"]


def test_yes_no_questions_cite_the_document_that_they_are_about(towns: Collection) -> None:
    folder = towns.path.parent / "towns"
    with (folder / "Aldon.txt").open("a") as file:
        file.write("There is no harbour in Aldon.\n")
    towns.sync(folder)
    golds = {town: (Gold(f"towns/{town}.txt"),) for town in TOWNS}
    questions = [Question(town, f"Was {town} founded before 1400?", golds[town], ("no",)) for town in TOWNS]
    dataset = made(towns, questions, abstain=0.0)
    for example in (*dataset.train, *dataset.valid):
        n = example.meta["shown"].index(example.meta["uris"][0]) + 1
        assert example.completion == f"No [{n}]."
    # "after" in place of "before" would have another answer, not none
    kinds = made(towns, questions, abstain=0.9, near=0.5).card["kinds"]
    assert set(kinds) == {"answer", "withheld"}
    nowhere = Question("1", "Is it old?", (), ("yes",))
    with pytest.raises(DataError, match="yes or no, of no document: 1"):
        made(towns, [nowhere])


def test_questions_about_one_document_share_passages(towns: Collection) -> None:
    def sets(**recipe: float) -> Counter[str]:
        """The number of sets of passages per town."""
        dataset = made(towns, **recipe)
        examples = [*dataset.train, *dataset.valid]
        texts = {(e.meta["uris"][0], e.messages[-1].content.rpartition("\n\n")[0]) for e in examples}
        return Counter(uri for uri, _ in texts)

    assert set(sets(abstain=0.4, near=1.0).values()) == {1}
    assert set(sets(abstain=0.6, near=0.0).values()) <= {1, 2}  # where nothing else is found, none can be withheld


@pytest.mark.parametrize(
    ("question", "changed"),
    [
        ("When was the war?", "When wasn't the war?"),
        ("Where can people swim?", "Where can't people swim?"),
        ("Where can't people swim?", "Where can people swim?"),
        ("Which towns weren't founded by kings?", "Which towns were founded by kings?"),
        ("What did he not say?", "What did he say?"),
        ("Is it open?", None),
    ],
)
def test_some_questions_are_negated(question: str, changed: str | None) -> None:
    found = [miss.text for seed in range(80) for miss in near_misses(question, [], random.Random(seed))]
    assert set(found) == ({changed} if changed else set())
    assert not changed or 2 <= len(found) <= 20


def test_a_question_is_changed_in_a_number_a_name_or_an_opposite() -> None:
    ways = list(near_misses("Who was the first king of Norway in 1184?", ["Sweden", "New York"], random.Random(0)))
    assert {way.kind for way in ways} == {"number", "name", "opposite"}
    texts = {way.kind: way.text for way in ways}
    assert texts["name"] == "Who was the first king of Sweden in 1184?"
    assert texts["opposite"] == "Who was the last king of Norway in 1184?"
    assert "1184" not in texts["number"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("a mill.", "A mill [2]."),
        ("mRNA", "mRNA [2]."),
        ("iPhone", "iPhone [2]."),
        ("the U.S.", "The U.S. [2]."),
        ("in 3.5.", "In 3.5 [2]."),
        ("Dr. Who!", "Dr. Who [2]."),
    ],
)
def test_an_answer_is_formatted_as_a_sentence(answer: str, said: str) -> None:
    assert _format_answer(answer, Hit("u", "", 0, 0, 1, None, {}, n=2)) == said


def test_training_and_validation_share_no_document(towns: Collection) -> None:
    dataset = made(towns, valid=0.25)
    train, valid = ({example.meta["group"] for example in part} for part in (dataset.train, dataset.valid))
    assert valid
    assert not train & valid
    alone = made(towns, QUESTIONS[:3], valid=0.5)  # of one document: nothing is left to validate with
    assert (len(alone.train), len(alone.valid)) == (3, 0)


def test_the_same_seed_makes_the_same_examples(towns: Collection) -> None:
    assert made(towns, seed=3) == made(towns, seed=3)
    assert made(towns, seed=3).train != made(towns, seed=4).train


def test_a_question_about_a_document_that_is_gone_is_left_out(towns: Collection) -> None:
    gone = Question("gone", "When was Ilmen founded?", (Gold("towns/Ilmen.txt", 3, 9),))
    assert made(towns, [*QUESTIONS, gone], abstain=0.0).card["left_out"] == {"its document is not in the collection": 1}


def test_held_out_data_is_not_learned(towns: Collection, tmp_path: Path) -> None:
    paragraph = "The town of Brista was founded in 1507, by fishermen from THE coast."
    asked = {"id": "1", "question": "how many houses are there in Aldon", "answers": [{"text": "x", "answer_start": 0}]}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": paragraph, "qas": [asked]}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    own = {"question": "Is it old?", "uri": "towns/Corvel.txt", "answers": ["yes"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n")
    held = load_held_out([tmp_path / "dev.json", tmp_path / "own.jsonl"])
    rag = Rag(towns, reader=ScriptedReader(), k=2)
    dataset = build(rag, QUESTIONS, Recipe(abstain=0.5), held)
    examples = [*dataset.train, *dataset.valid]
    shown = {uri for example in examples for uri in example.meta["shown"]}
    assert not shown & {"towns/Brista.txt", "towns/Corvel.txt"}
    assert "Aldon houses" not in {example.meta["id"] for example in examples}
    assert dataset.card["left_out"] == {"held out: the question": 1, "held out: the document": 6}


def test_copies_of_held_out_documents_are_not_learned(towns: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "towns"
    text = (folder / "Corvel.txt").read_text()
    (folder / "copy.txt").write_text(text.replace("was founded", "“was” founded—"))
    footer = "This document is for those alone who live in one of the towns."
    for town in ("Aldon", "Corvel"):
        (folder / f"{town}.txt").write_text(f"{(folder / f'{town}.txt').read_text()}\n{footer}\n")
    for name in ("short", "twin"):
        (folder / f"{name}.txt").write_text("Ada is the mayor.\n")
    towns.sync(folder)
    lines = [{"question": "Is it old?", "uri": f"towns/{name}.txt"} for name in ("Corvel", "short", "gone")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    held = load_held_out([tmp_path / "own.jsonl"])
    names = ("Corvel", "copy", "short", "twin", "gone")
    assert held.document_uris(towns) == {f"towns/{name}.txt" for name in names}
    assert held.uris - {info.uri for info in towns.documents()} == {"towns/gone.txt"}
    assert held.contains_question("‘Is it old’ ?")


def test_documents_of_the_same_question_are_in_the_same_part(towns: Collection) -> None:
    both = [
        Question(
            f"{one} {other}",
            f"Which is the oldest house of {one} and of {other}?",
            (Gold(f"towns/{one}.txt"), Gold(f"towns/{other}.txt")),
            ("a mill",),
        )
        for one, other in (("Aldon", "Brista"), ("Brista", "Corvel"))
    ]
    for seed in range(6):
        dataset = made(towns, [*QUESTIONS, *both], valid=0.4, seed=seed)
        train, valid = (
            {uri for example in part for uri in example.meta["uris"]} for part in (dataset.train, dataset.valid)
        )
        assert valid
        assert not train & valid


def test_a_sample_takes_part_of_a_large_document() -> None:
    data = QuestionSet("q", tuple(QUESTIONS))
    assert len(data.sample(7, by_document=True).questions) == 7
    one = QuestionSet("q", tuple(replace(question, gold=(Gold("a.txt"),)) for question in QUESTIONS))
    assert len(one.sample(5, by_document=True).questions) == 5


@pytest.mark.parametrize(
    "line",
    [
        {"uri": "towns/Corvel.txt"},
        {"uri": "towns/Corvel.txt", "start": 0, "end": 5},
        {"uri": "towns/Corvel.txt", "answers": ["yes"]},
        {"uri": "towns/Corvel.txt", "unanswerable": True},
    ],
    ids=["no answer", "a span", "an answer", "unanswerable"],
)
def test_all_lines_of_a_question_file_are_held_out(tmp_path: Path, line: dict[str, object]) -> None:
    lines = [{"question": "Is it old?", **line}, {"question": "Who is it?", "answers": ["Ada"]}]
    for number, count in enumerate((1, 2)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        held = load_held_out([path])
        assert held.contains_question("Is it old?")
        assert held.contains_question("Who is it?") == (count == 2)
        assert held.uris == {"towns/Corvel.txt"}
        assert held.sources[0]["questions"] == count


def test_missing_questions_and_passages_are_reported(towns: Collection) -> None:
    lost = [Question("1", "Who was it?", (Gold("towns/Aldon.txt"),), ("nobody at all",))]
    with pytest.raises(DataError, match="no passage holds its answer: 1"):
        made(towns, lost, abstain=0.0)
    with pytest.raises(DataError, match="no question was given"):
        made(towns, [])


@pytest.mark.slow
def test_the_command_writes_examples_and_a_card(tmp_path: Path, towns: Collection) -> None:
    lines = [{"question": q.text, "uri": q.gold[0].uri, "answers": list(q.answers)} for q in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    towns.close()
    shell = Shell(tmp_path)
    card = shell.json("adapt", "data", "q.jsonl", "--out", "made", "--licence", "CC0", "--valid", "0.2")
    written = json.loads((tmp_path / "made" / "card.json").read_bytes())
    assert card == {**written, "out": "made"}
    assert card["sources"][0]["licence"] == "CC0"
    assert (tmp_path / "made" / OUTPUT).is_file()
    assert len(read_examples(tmp_path / "made" / "train.jsonl")) == card["examples"]["train"]
    assert sum(card["kinds"].values()) == card["examples"]["train"] + card["examples"]["valid"] == len(QUESTIONS)
    assert "use --from-log" in shell("adapt", "data", code=2).stderr
    (tmp_path / "other.jsonl").write_text(json.dumps({"question": "Is it old?", "uri": "elsewhere.txt"}))
    told = shell("adapt", "data", "q.jsonl", "--out", "again", "--limit", "4", "--exclude-data", "other.jsonl").stderr
    assert "1 URIs of --exclude-data, such as elsewhere.txt, are not in the collection" in told
    assert "train.jsonl' is a file" in shell("adapt", "data", "q.jsonl", "--out", "made/train.jsonl", code=1).stderr
    (tmp_path / "empty.jsonl").write_text("")
    assert "no question" in shell("adapt", "data", "empty.jsonl", code=1).stderr


def test_an_invalid_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}], "completion": " "}\n')
    with pytest.raises(DataError, match=r"line 1 is not an example"):
        read_examples(tmp_path / "t.jsonl")
