"""The verifier: where it reads an answer, in long passages too, and what answers and confidence make of that."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ragfm import Collection, Rag, Settings
from ragfm.answering.judge import with_learned
from ragfm.citations.decision import compose
from ragfm.citations.grounding import (
    MIN_LIKELIHOOD,
    CitedSentence,
    check_sentences,
    cite,
    cite_answer,
)
from ragfm.citations.verifier import SHIPPED, WEIGHTS, Part, Reading, Verifier, load_verifier
from ragfm.core.config import AskSection
from ragfm.core.types import Hit
from ragfm.embedders.bert import Bert, Layer, Linear
from ragfm.testing import ScriptedReader

MILL = (
    "The mill was built in 1784 by the Bremer family. It was sold in 1902, and burned down in 1931. "
    "Since then only the walls of its tower have been standing."
)
BURNED = "The mill burned down in 1931."
QUESTION = "When did the mill burn down?"


def _hit(text: str, n: int = 1, context: str = "") -> Hit:
    return Hit("mill.md", text, 100, 100 + len(text), n, 0.5, {}, n=n, context=context)


def _read(question: str, text: str, context: str = "") -> Reading:
    return load_verifier().read(question, [_hit(text, context=context)])[0]


def _of(reading: Reading, text: str, words: str) -> float:
    return reading.within(text.index(words), text.index(words) + len(words))


def test_the_verifier_finds_the_right_one_of_several_dates() -> None:
    for question, year in ((QUESTION, "1931"), ("When was the mill built?", "1784"), ("When was it sold?", "1902")):
        reading = _read(question, MILL)
        chances = {other: _of(reading, MILL, other) for other in ("1784", "1902", "1931")}
        assert max(chances, key=chances.__getitem__) == year, (question, chances)
    assert "1784" in MILL
    assert _read(QUESTION, MILL).within(0, len(MILL)) > _of(_read(QUESTION, MILL), MILL, "1931")


def test_the_verifier_recognizes_a_passage_without_an_answer() -> None:
    there, other = load_verifier().read(QUESTION, [_hit(MILL), _hit("Cheese is made of milk, rennet and salt.")])
    assert there.anywhere > 0.5 > other.anywhere
    assert 0 <= other.within(0, 1000) <= other.anywhere


def test_the_context_of_a_passage_is_read_but_contains_no_answer() -> None:
    text = "It burned down in 1931."
    alone, below = (_read("When did the Bremer mill burn down?", text, above) for above in ("", "The Bremer mill"))
    assert _of(below, text, "1931") > 0.1
    assert alone.parts[0].spans.tolist() == [span for span in below.parts[0].spans.tolist() if span[0] >= 0]
    assert below.within(-1000, 0) == 0


def test_a_long_passage_is_read_to_its_end_in_parts() -> None:
    hay = "The village has a church, a school and two farms, where cows and sheep are kept. " * 40
    reading = _read(QUESTION, hay + MILL)
    assert len(reading.parts) > 2
    assert _of(reading, hay + MILL, "1931") > 0.1
    seen = sorted({tuple(span) for part in reading.parts for span in part.spans.tolist()})
    assert seen[-1][1] == len(hay + MILL)
    assert all(after[0] - before[1] <= 1 for before, after in pairwise(seen)), "nothing is left out"


def test_likelihoods_are_probabilities() -> None:
    (part,) = _read(QUESTION, MILL).parts
    assert part.first.sum() + part.last.sum() + 2 * part.nowhere == pytest.approx(2, abs=1e-4)
    assert (part.first >= 0).all()
    empty = _read(QUESTION, "")
    assert (empty.anywhere, empty.within(0, 10)) == (pytest.approx(0, abs=1e-6), 0)
    assert _read("why " * 1000, MILL).parts, "a question beyond the window"


def test_a_passage_reads_the_same_alone_and_with_others() -> None:
    verifier, hits = Verifier(), [_hit(MILL), _hit("Short."), _hit(MILL * 3)]
    together = verifier.read(QUESTION, hits)
    for hit, reading in zip(hits, together, strict=True):
        (alone,) = verifier.read(QUESTION, [hit])
        assert alone.within(0, len(hit.text)) == pytest.approx(reading.within(0, len(hit.text)), abs=1e-5)
    assert verifier.read(QUESTION, []) == []


def test_learned_changes_are_added_to_the_weights() -> None:
    def linear(*shape: int) -> Linear:
        return Linear(np.ones(shape, np.float32), np.zeros(shape[0], np.float32))

    layer = Layer(linear(6, 2), linear(2, 2), linear(2), linear(4, 2), linear(2, 4), linear(2))
    bert = Bert(None, None, None, (layer, layer))  # type: ignore[arg-type]
    thin = {"1.up.left": np.full((4, 1), 2.0, np.float32), "1.up.right": np.full((1, 2), 3.0, np.float32)}
    more = with_learned(
        bert, {**thin, "1.up.bias": np.ones(4, np.float32), "0.out_norm.weight": np.ones(2, np.float32)}
    )
    assert more.layers[1].up.weight.tolist() == [[7.0, 7.0]] * 4
    assert more.layers[1].up.bias.tolist() == [1.0] * 4
    assert more.layers[0].out_norm.weight.tolist() == [2.0, 2.0]
    assert more.layers[0].up.weight.tolist() == layer.up.weight.tolist()


def test_it_is_small() -> None:
    assert (SHIPPED / WEIGHTS).stat().st_size < 8 * 2**20
    assert "CC BY-SA" in (SHIPPED / "README.md").read_text()


def likelihood(sentence: CitedSentence, readings: list[Reading]) -> float:
    (checked,) = check_sentences([sentence], readings)
    return checked.likelihood


def test_a_sentence_is_located_verbatim_or_by_its_quotes() -> None:
    hits = [_hit(MILL, 1), _hit("The mill opens at nine, and burned corn is sold there.", 2)]
    readings = load_verifier().read(QUESTION, hits)
    (year,), (other,) = (cite(QUESTION, text, hits) for text in ("1931 [1].", "1784 [1]."))
    assert likelihood(year, readings) == pytest.approx(_of(readings[0], MILL, "1931"))
    assert likelihood(year, readings) > 10 * likelihood(other, readings)
    (worded,) = cite(QUESTION, "It was burned down by fire in 1931 [1].", hits)
    quote = worded.evidence[0]
    assert likelihood(worded, readings) == pytest.approx(readings[0].within(quote.start, quote.end))
    assert likelihood(worded, readings) > 0.1
    (nothing,) = cite(QUESTION, "Nobody knows.", hits)
    assert likelihood(nothing, readings) == 0


def _reading(hit: Hit, words: str, chance: float) -> Reading:
    """A reading that finds the words the answer, with such a likelihood."""
    start = hit.text.index(words)
    first = last = np.array([chance**0.5], np.float32)
    return Reading(hit, (Part(np.array([[start, start + len(words)]]), first, last, 1 - chance**0.5),))


@pytest.mark.parametrize("output", ["1931", "I don't know."])
@pytest.mark.parametrize(("chance", "verified"), [(0.6, True), (0.4, False)])
def test_a_quote_is_verified_where_the_answer_is_more_likely_than_not(
    monkeypatch: pytest.MonkeyPatch, output: str, chance: float, verified: bool
) -> None:
    hit = _hit("The mill burned down in 1931.")

    class Reads:
        def read(self, *_: object) -> list[Reading]:
            return [_reading(hit, "1931", chance)]

    monkeypatch.setattr("ragfm.citations.verifier.load_verifier", lambda _: Reads())
    cited = cite_answer("When did the mill burn down?", output, [hit], "en", verifier="bundled", corrects=True)
    assert "1931" in cited.text
    assert cited.sentences[0].evidence[0].verified == verified


def _judged(question: str, words: str, text: str, chance: float, context: str = "") -> tuple[bool, str | None]:
    hit = _hit(text, context=context)
    (sentence,) = cite(question, f"{words} [1].", [hit])
    (checked,) = check_sentences([sentence], [_reading(hit, words, chance)])
    (evidence,) = checked.evidence
    return evidence.verified, evidence.fault


@pytest.mark.parametrize(
    ("question", "words", "text", "context", "holds"),
    [
        (QUESTION, "1931", BURNED, "", True),
        ("When did the Bremer mill burn down?", "1931", BURNED, "The Bremer mill", True),
        ("When did the Foy mill burn down?", "1931", BURNED, "The Bremer mill", False),
        ("When did the 3 mills burn down?", "1931", BURNED, "", False),
        ("When did the mill not burn down?", "1931", BURNED, "", False),
        ("How many barns of oak were sold at auction?", "Three", "Three barns burned down.", "", False),
    ],
)
def test_a_quote_is_verified_where_it_has_what_the_question_is_about(
    question: str, words: str, text: str, context: str, holds: bool
) -> None:
    assert _judged(question, words, text, 0.9, context)[0] == holds


def test_a_quote_is_verified_where_the_verifier_finds_the_answer_by_itself() -> None:
    found = [_judged(QUESTION, "1931", BURNED, MIN_LIKELIHOOD + change) for change in (0.01, -0.01)]
    assert found == [(True, None), (False, "unclear")]


@pytest.mark.parametrize(
    ("said", "found", "holds"),
    [
        ("It burned down in 1931", "1931", True),
        ("1931", "in 1931", True),
        ("The mill burned down", "1931", False),
    ],
)
def test_the_answer_that_the_verifier_finds_may_have_other_words(said: str, found: str, holds: bool) -> None:
    hit = _hit(BURNED)
    (sentence,) = cite(QUESTION, f"{said} [1].", [hit])
    (checked,) = check_sentences([sentence], [_reading(hit, found, 0.9)])
    assert checked.evidence[0].verified == holds


@pytest.mark.parametrize(
    ("question", "chance", "fault"),
    [
        ("Who sold the mill?", 0.9, None),
        ("Who sold the mill?", 0.01, "unclear"),  # no sentence is the answer
        ("Who owns the barn and the farm?", 0.9, "unclear"),
    ],
)
def test_a_sentence_that_adds_many_terms_is_a_statement_by_itself_next_to_an_answer(
    question: str, chance: float, fault: str | None
) -> None:
    hit = _hit(f"{MILL} The mill was sold in 1799.")
    output = "In 1799 [1]. The mill was built in 1784 by the Bremer family [1]."
    sentences = cite(question, output, [hit])
    checked = check_sentences(sentences, [_reading(hit, "1799", chance)])
    assert [one.evidence[0].fault for one in checked][1:] == [fault]


REFERENCES = (
    "Marsh, P. and Odell, R. (2011). How long oak lock gates last in fresh water. Waterway Engineering 14, 201–219.",
    "Tranter, J. (2016). Why lock gates of steel last longer in tidal water. Inland Navigation Review 31, 77–90.",
    "Vaughan, S. (1998). The cost of lock gates in oak and steel since the war. Canal Trusts 9, 12–30.",
)
PAPER = "\n\n".join(
    [
        "## Excursions of the society",
        "Members met at the wharf in May and walked to the aqueduct, where Dr Odell showed them the new paddle gear.",
        "## References",
        *REFERENCES,
    ]
)


@pytest.mark.parametrize(
    "question",
    [
        "How long do oak lock gates last in fresh water?",
        "What is the cost of lock gates in oak since the war?",
    ],
)
def test_lines_of_a_bibliography_are_not_verified(question: str) -> None:
    """They have the words of the question, and many others, but none of them is an answer."""
    cited = cite_answer(question, " ".join(REFERENCES), [_hit(PAPER)], "en", verifier="bundled", corrects=False)
    found = [one for sentence in cited.sentences for one in sentence.evidence]
    assert any(one.supports for one in found)
    assert not any(one.verified for one in found)


def test_an_unclear_citation_still_supports_its_sentence() -> None:
    hit = _hit(MILL)
    (sentence,) = cite(QUESTION, "1931 [1].", [hit])
    reading = _reading(hit, "1931", MIN_LIKELIHOOD - 0.01)
    (checked,) = check_sentences([sentence], [reading])
    assert [one.evidence[0].supports for one in (sentence, checked)] == [True, True]
    assert compose([checked], strict=True).text == "1931 [1]."
    assert compose([checked]).unsupported == ()


class _Sure(ScriptedReader):
    def score(self, messages: Sequence[object], continuations: Sequence[str], **_: object) -> list[float]:
        return [-1.0] * len(continuations)


@pytest.mark.parametrize(("verifier", "heard"), [("bundled", True), ("none", False)])
def test_the_confidence_uses_the_verifier_unless_it_is_off(
    collection: Collection, docs: Path, verifier: str, heard: bool
) -> None:
    from ragfm.evaluation.confidence_calibration import accept_all_calibration

    collection.sync(docs)
    settings = Settings(ask=AskSection(verifier=verifier))  # type: ignore[arg-type]
    rag = Rag(
        collection.__class__.open(collection.path, settings=settings, embedder=collection.embedder),
        reader=_Sure(["28 days."]),
    )
    rag.calibration = accept_all_calibration()
    found = rag.ask("How many days of leave are there?").signals
    assert ({"anywhere", "located"} <= found.keys()) is heard
    assert not rag.ask("有多少天假期？").signals.keys() & {"anywhere", "located"}, "it knows English alone"


def test_a_part_counts_only_what_is_inside() -> None:
    spans = np.array([[0, 3], [4, 8], [9, 12]])
    part = Part(spans, np.array([0.2, 0.5, 0.1], np.float32), np.array([0.1, 0.6, 0.1], np.float32), 0.2)
    assert part.within(0, 12) == pytest.approx(0.8 * 0.8)
    assert part.within(4, 8) == pytest.approx(0.5 * 0.6)
    assert part.within(5, 8) == 0
    assert Reading(_hit(""), ()).within(0, 9) == Reading(_hit(""), ()).anywhere == 0


@pytest.mark.parametrize("between", ["\n\n", "\n \n", " |\n| ", " | "])
def test_the_likeliest_answer_stays_in_its_paragraph_or_table_cell(between: str) -> None:
    text = f"Net sales{between}12.5"
    spans = [(0, 3), (4, 9), (len(text) - 4, len(text))]
    part = Part(np.array(spans), np.array([0.1, 0.8, 0.1], np.float32), np.array([0.05, 0.05, 0.9], np.float32), 0.0)
    likelihood, start, end = Reading(_hit(text), (part,)).best
    assert (text[start:end], round(likelihood, 3)) == ("12.5", 0.09), "not from 'sales' to '12.5', which has 0.72"
    assert Reading(_hit(text.replace(between, " " * len(between))), (part,)).best[0] == pytest.approx(0.72)


def test_a_warm_verifier_reads_the_same() -> None:
    cold, warm = Verifier(), Verifier()
    warm.warm_up()
    loaded = warm._exact
    warm.warm_up()
    assert warm._exact is loaded, "loaded twice"
    if find_spec("openvino"):
        assert type(warm._exact) is not type(cold._exact)
    passages = [_hit(MILL), _hit("Cheese is made of milk, rennet and salt.")]
    before = cold.read(QUESTION, passages)
    for one, other in zip(before, warm.read(QUESTION, passages), strict=True):
        assert other.best[1:] == one.best[1:]
        assert other.anywhere == pytest.approx(one.anywhere, abs=1e-4)
    likelihoods = warm.likelihoods(QUESTION, [passage.text for passage in passages])
    np.testing.assert_allclose(likelihoods, [one.anywhere for one in before], atol=0.05)


def test_a_verifier_warms_up_without_a_working_openvino(broken_openvino: None) -> None:
    warm, cold = Verifier(), _read(QUESTION, MILL)
    warm.warm_up()
    assert warm.read(QUESTION, [_hit(MILL)])[0].best == cold.best
    assert warm.likelihoods(QUESTION, [MILL]) == pytest.approx([cold.anywhere])
