"""The judge that ships: what it finds, supports and refuses, and what Rag makes of that."""

from __future__ import annotations

import pytest
from support.passages import cited_answer, passages

from ragfm.answering.grounding import SUPPORTED, VERIFIED
from ragfm.answering.judge import SHIPPED, WEIGHTS, Evidence, Judgement, load_judge

pytestmark = pytest.mark.judge

MILL = (
    "The mill was built in 1784 by the Bremer family. It was sold in 1902, and burned down in 1931. "
    "Since then only the walls of its tower have been standing."
)
BURN = "When did the mill burn down?"


def read(text: str, question: str = "", statement: str = "", context: str = "") -> Judgement:
    (judgement,) = load_judge("small").read([Evidence(text, question, statement, context)])
    return judgement


def of(judgement: Judgement, text: str, words: str) -> float:
    return judgement.within(text.index(words), text.index(words) + len(words))


def test_it_is_small() -> None:
    folder = SHIPPED / "judge-small"
    assert (folder / WEIGHTS).stat().st_size < 8 * 2**20
    assert "CC BY-SA" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("question", "year"), [(BURN, "1931"), ("When was the mill built?", "1784"), ("When was it sold?", "1902")]
)
def test_it_finds_the_right_one_of_several_dates(question: str, year: str) -> None:
    judgement = read(MILL, question)
    chances = {other: of(judgement, MILL, other) for other in ("1784", "1902", "1931")}
    assert max(chances, key=chances.__getitem__) == year, chances


def test_it_recognizes_a_text_without_an_answer() -> None:
    assert read(MILL, BURN).answers > 0.5 > read("Cheese is made of milk, rennet and salt.", BURN).answers


def test_the_context_of_a_text_is_read_but_contains_no_answer() -> None:
    text = "It burned down in 1931."
    below = read(text, "When did the Bremer mill burn down?", context="The Bremer mill")
    assert of(below, text, "1931") > 0.1
    assert below.within(-1000, 0) == 0


def test_a_long_text_is_read_to_its_end() -> None:
    hay = "The village has a church, a school and two farms, where cows and sheep are kept. " * 40
    assert of(read(hay + MILL, BURN), hay + MILL, "1931") > 0.1


TOO_SMALL = pytest.mark.xfail(strict=True, reason="the network is too small")


@pytest.mark.parametrize(
    ("statement", "text", "supports"),
    [
        ("The mill burned down in 1931.", MILL, True),
        pytest.param("Fire destroyed the mill in 1931.", MILL, True, marks=TOO_SMALL),
        ("The mill was sold by Maria Horn.", MILL, False),
        pytest.param("The mill burned down in 1784.", MILL, False, marks=TOO_SMALL),
        ("Full-time staff get a bonus.", "Full-time staff do not get a bonus.", False),
        ("The office opens at 9.", "The office opens at nine.", True),
        ("The office has twelve rooms.", "The office has 12 rooms.", True),
        ("Bikes are allowed in the yard.", "Bikes are prohibited in the yard.", False),
        pytest.param(
            "The first man on the moon was Neil Simpson.",
            "Neil Armstrong was the first man on the moon.",
            False,
            marks=TOO_SMALL,
        ),
        ("It is on the second floor.", "The room is on the first floor.", False),
    ],
)
def test_it_reads_meaning(statement: str, text: str, supports: bool) -> None:
    assert (read(text, statement=statement).supports >= SUPPORTED) is supports


def test_the_subject_of_the_question_counts() -> None:
    burned = "The mill burned down in 1931."
    same, other = (
        read(burned, f"When did the {name} mill burn down?", "In 1931.", "The Bremer mill")
        for name in ("Bremer", "Foy")
    )
    assert same.supports >= VERIFIED > other.supports


def test_a_warm_judge_answers_alike() -> None:
    texts = [MILL, "Cheese is made of milk, rennet and salt."]
    before = [read(text, BURN) for text in texts]
    load_judge("small").warm_up()
    for text, one in zip(texts, before, strict=True):
        assert read(text, BURN).best((0, len(text)))[1:] == one.best((0, len(text)))[1:]
    likelihoods = load_judge("small").likelihoods(BURN, texts)
    assert likelihoods == pytest.approx([one.answers for one in before], abs=0.05)


REFERENCES = (
    "Marsh, P. and Odell, R. (2011). How long oak lock gates last in fresh water. Waterway Engineering 14, 201–219.",
    "Tranter, J. (2016). Why lock gates of steel last longer in tidal water. Inland Navigation Review 31, 77–90.",
    "Vaughan, S. (1998). The cost of lock gates in oak and steel since the war. Canal Trusts 9, 12–30.",
)


@pytest.mark.parametrize(
    "question",
    [
        pytest.param("How long do oak lock gates last in fresh water?", marks=TOO_SMALL),
        "What is the cost of lock gates in oak since the war?",
    ],
)
def test_lines_of_a_bibliography_are_not_verified(question: str) -> None:
    """They have the words of the question, and many others, but none of them is an answer."""
    hits = passages("\n\n".join(["## References", *REFERENCES]))
    cited = cited_answer(question, " ".join(REFERENCES), hits, load_judge("small"))
    assert not any(one.verified for sentence in cited.sentences for one in sentence.evidence)
