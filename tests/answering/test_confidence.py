"""Confidence: its signals, which calibration counts, and what becomes of an answer with too little of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.judges import ScriptedJudge
from support.passages import cited_answer, passages

from ragfm import Answer, Collection, Rag, Settings
from ragfm.answering.confidence import (
    DEFAULT,
    OTHER_LANGUAGE,
    SIGNALS,
    UNREAD,
    adapter_hash,
    answer_signals,
    select_calibration,
)
from ragfm.answering.judge import Evidence
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.calibration import Calibration
from ragfm.core.config import AskSection
from ragfm.generation.prompt_template import load_strategy
from ragfm.models.adapters import WEIGHTS
from ragfm.store.views import language_of
from ragfm.testing import HashingEmbedder, ScriptedReader

BY_SUPPORT = Calibration("ScriptedReader", 0.0, {"supports": 1.0}, {"supports": 0.0}, threshold=0.3)
"""The confidence is the judge's probability of the answer's least supported sentence."""
HOW_MANY = "How many days of leave do I get?"
DAYS = {"28 days": 0.9}


def doubts(evidence: Evidence) -> float:
    """28 is right, "perhaps" is less sure, and all else is wrong."""
    return 0.4 if "perhaps" in evidence.statement else 0.9 if "28" in evidence.statement else 0.1


def _rag(collection: Collection, docs: Path, script: list[str], **ask: object) -> Rag:
    collection.sync(docs)
    settings = Settings(ask=AskSection(**{"confidence": BY_SUPPORT, "reranker": "none", **ask}))  # type: ignore[arg-type]
    handle = Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())
    rag = Rag(handle, reader=ScriptedReader(script))
    if rag.judge:
        rag.judge = ScriptedJudge(DAYS, supports=doubts)
    return rag


# --- Signals -----------------------------------------------------------------------------------------------------

MILL = "The mill burned down in 1931. It was sold."
BURN = "When did the mill burn down?"


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_signals_of_what_the_judge_read() -> None:
    judge = ScriptedJudge({"1931": 0.8}, supports=lambda one: 0.7 if "1931" in one.statement else 0.3)
    cited = cited_answer(BURN, "In 1931. It was sold.", passages(MILL), judge)
    assert answer_signals(cited) == pytest.approx(
        {"answers": log_odds(0.8), "supports": log_odds(0.3), "agrees": 1.0, "first": 1.0, "exact": 0.5}
    )


def test_an_answer_of_a_later_passage_is_less_certain() -> None:
    answers = (
        cited_answer(BURN, "1931", passages(*texts), ScriptedJudge({"1931": 0.8}))
        for texts in ((MILL, "Cheese."), ("Cheese.", MILL))
    )
    assert [answer_signals(cited)["first"] for cited in answers] == [1.0, 0.0]
    assert answer_signals(cited_answer(BURN, ABSTENTION, passages(MILL))) == {}


def test_a_sentence_without_the_questions_period_is_not_exact() -> None:
    question = "How many mills burned in 1930?"
    cited = cited_answer(question, "It burned in 1931.", passages(MILL), ScriptedJudge({"1931": 0.8}))
    assert cited.sentences[0].supported
    assert answer_signals(cited)["exact"] == 0.0


def test_lines_without_words_are_no_sentences_of_an_answer() -> None:
    judge = ScriptedJudge({"1931": 0.8}, supports=lambda _: 0.7)
    cited, alone = (
        cited_answer(BURN, f"In 1931.{more}", passages(MILL), judge) for more in ("\n\n|---|---|\n\n👍", "")
    )
    assert answer_signals(cited) == answer_signals(alone)


def test_signals_where_no_judge_reads() -> None:
    question, text = "Wann brannte die Mühle?", "Die Mühle brannte 1931 nieder."
    cited = cited_answer(question, "1931.", passages(text), language="de")
    assert answer_signals(cited) == {"words": 0.75}
    close = cited_answer(question, "1931.", passages(text), language="de", closeness=lambda texts: [0.7] * len(texts))
    assert answer_signals(close)["closest"] == 0.7


def test_all_signals_have_a_name() -> None:
    for one in (DEFAULT, UNREAD, OTHER_LANGUAGE):
        assert one.weights.keys() <= set(SIGNALS)


# --- Calibrations ------------------------------------------------------------------------------------------------


def test_a_missing_signal_counts_as_its_mean() -> None:
    fitted = Calibration("r", -1.0, {"agrees": 10.0, "exact": 2.0}, {"agrees": 0.5, "exact": 0.7}, 0.5)
    by_hand = 1 / (1 + np.exp(-(-1.0 + 10 * 0.2 + 2 * 0.3)))
    assert fitted.confidence({"agrees": 0.7, "exact": 1.0, "new": 9.0}) == pytest.approx(by_hand, abs=1e-4)
    assert fitted.confidence({"agrees": 0.7}) == fitted.confidence({"agrees": 0.7, "exact": 0.7})
    assert fitted.confidence({"agrees": 1e9}) == 1.0


def test_the_closeness_of_another_embedder_does_not_count() -> None:
    near, far = (OTHER_LANGUAGE.confidence({"closest": cosine}, OTHER_LANGUAGE.embedder) for cosine in (0.82, 0.74))
    assert near is not None
    assert far is not None
    assert far < OTHER_LANGUAGE.threshold <= near
    assert OTHER_LANGUAGE.confidence({"closest": 0.74}, "of another embedder") is None


def test_a_calibration_gives_no_confidence_without_a_weighted_signal() -> None:
    for one in (DEFAULT, UNREAD):
        assert one.confidence({}) is None
        assert one.confidence({"new": 0.0}) is None
        assert one.confidence(dict(one.means)) is not None


def test_a_calibration_applies_to_one_adapter_wherever_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.answering.confidence.DEFAULT", DEFAULT)
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    own = replace(BY_SUPPORT, adapter=adapter_hash(str(one)))
    moved = str(one.rename(tmp_path / "moved.gguf"))
    for calibration, adapter, used in (
        (own, moved, own),
        (own, str(other), DEFAULT),
        (own, None, DEFAULT),
        (BY_SUPPORT, str(other), DEFAULT),
        (BY_SUPPORT, None, BY_SUPPORT),
        (None, None, DEFAULT),
        (replace(BY_SUPPORT, weights={"cosine": 1.0}, means={"cosine": 0.5}), None, DEFAULT),  # of an older version
    ):
        assert select_calibration(calibration, "ScriptedReader", adapter, "zero-shot") == used
    assert select_calibration(BY_SUPPORT, "bundled", None, "zero-shot") == DEFAULT


def test_an_adapter_of_transformers_is_a_folder_and_a_servers_own_a_name(tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(b"learned" if name != "other" else b"more")
    one, same, other = (adapter_hash(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert adapter_hash("on-the-server") == "on-the-server"


def test_a_user_calibration_applies_only_to_the_strategy_it_was_fitted_to(collection: Collection, docs: Path) -> None:
    strategy = collection.path.parent / "my.toml"
    strategy.write_text("system = 'S'\nask = '{question}'\n")
    fitted = replace(BY_SUPPORT, strategy=load_strategy(str(strategy)).label)
    handle = _rag(collection, docs, [], confidence=fitted).collection

    def used(name: str) -> bool:
        return Rag(handle, reader=ScriptedReader([]), strategy=name).calibration == fitted

    assert not used("zero-shot")
    assert used("my.toml")
    strategy.write_text("system = 'T'\nask = '{question}'\n")
    load_strategy.cache_clear()
    assert not used("my.toml")


# --- What becomes of an answer -----------------------------------------------------------------------------------


def test_an_answer_of_too_little_confidence_is_withheld(collection: Collection, docs: Path) -> None:
    rag = _rag(collection, docs, ["You get 28 days.", "You get nine weeks."])
    given = rag.ask(HOW_MANY)
    assert (given.text, given.confidence) == ("You get 28 days [1].", pytest.approx(0.9, abs=1e-3))
    assert given.signals.keys() == set(SIGNALS) - {"closest", "words"}
    stream = rag.stream(HOW_MANY)
    assert "".join(stream) == f"You get nine weeks.\n{ABSTENTION}"
    withheld = stream.answer
    assert (withheld.text, withheld.abstained, withheld.citations) == (ABSTENTION, True, ())
    assert withheld.confidence == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "text", "doubt"),
    [
        ({}, "It is perhaps 28 days.", True),
        ({"mode": "open"}, "It is perhaps 28 days.", False),
        ({"min_confidence": 0.5}, ABSTENTION, False),
        ({"min_confidence": 0.5, "mode": "strict"}, ABSTENTION, False),
        ({"min_confidence": 0.5, "mode": "open"}, "It is perhaps 28 days.", False),
        ({"wrong_cost": 0.5}, "It is perhaps 28 days.", False),
    ],
)
def test_mode_threshold_and_cost_decide(
    collection: Collection, docs: Path, settings: dict[str, object], text: str, doubt: bool
) -> None:
    stream = _rag(collection, docs, ["It is perhaps 28 days."], **settings).stream(HOW_MANY)
    streamed = "".join(stream)
    assert stream.answer.text == text
    assert stream.answer.confidence == pytest.approx(0.4, abs=1e-3)
    assert ("I am not sure of this." in streamed) is doubt


@pytest.mark.parametrize(
    ("said", "mode", "text", "own"),
    [
        (ABSTENTION, "prefer", "28 days [1].", ABSTENTION),
        ("99 euros.", "prefer", "28 days [1].", "99 euros."),
        ("99 euros.", "strict", "28 days [1].", "99 euros."),
        ("You get 28 days.", "prefer", "You get 28 days [1].", None),
        ("99 euros.", "open", "99 euros.", None),
        (ABSTENTION, "open", ABSTENTION, None),
    ],
)
def test_the_judge_corrects_a_small_reader(
    collection: Collection, docs: Path, said: str, mode: str, text: str, own: str | None
) -> None:
    rag = _rag(collection, docs, [said], mode=mode)
    rag.policy = SMALL
    stream = rag.stream(HOW_MANY)
    pieces = "".join(stream)
    answer = stream.answer
    assert (answer.text, answer.said) == (text, own)
    assert pieces == answer.shown
    assert (answer.quote is None) == (mode == "open")
    if mode != "open":
        assert (answer.signals["agrees"] > 0.5) == (own is None)
        assert all(citation.supports and "28 days" in citation.quote for citation in answer.citations)


def test_a_calibration_that_corrects_makes_a_reader_small(collection: Collection, docs: Path) -> None:
    assert _rag(collection, docs, [], confidence=replace(BY_SUPPORT, corrects=True)).policy == SMALL
    assert _rag(collection, docs, []).policy == LARGE


def test_without_a_judge_nothing_is_corrected_or_withheld(collection: Collection, docs: Path) -> None:
    rag = _rag(collection, docs, ["99 euros.", ABSTENTION], verifier="none")
    rag.policy = SMALL
    for text in ("99 euros.", ABSTENTION):
        answer = rag.ask(HOW_MANY)
        assert (answer.text, answer.said) == (text, None)
        assert (answer.signals, answer.confidence) == ({}, None)


def test_an_abstention_has_no_confidence(collection: Collection, docs: Path) -> None:
    answer = _rag(collection, docs, [ABSTENTION]).ask("Why?")
    assert (answer.abstained, answer.confidence, answer.signals) == (True, None, {})


# --- Other languages ---------------------------------------------------------------------------------------------

STATION = """# Handbuch der Ballonstation

Jede Angestellte bekommt im Jahr 31 Tage bezahlten Urlaub. Der Antrag auf Urlaub geht an die Stationsleiterin.

# Fundsachen

Fundsachen liegen bis zum Ende der Saison im Schrank neben der Treppe.
"""
FACT = "Wie viele Tage bezahlten Urlaub bekommt jede Angestellte im Jahr?"
ELSEWHERE = "Wann fährt ein Schiff nach Norden?"


@pytest.fixture
def by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confidence from the share of the question's words in the evidence."""
    calibration = Calibration("", -1.0, {"words": 4.0}, {"words": 0.5}, threshold=0.15)
    monkeypatch.setattr("ragfm.rag.UNREAD", calibration)


def _ask_in_german(collection: Collection, tmp_path: Path, question: str, said: str, *, small: bool) -> Answer:
    (tmp_path / "docs").mkdir(exist_ok=True)
    (tmp_path / "docs" / "handbuch.md").write_text(STATION, encoding="utf-8")
    collection.sync(tmp_path / "docs")
    assert collection.language == "de"
    rag = Rag(collection, reader=ScriptedReader([said]))
    rag.policy = SMALL if small else LARGE
    return rag.ask(question)


@pytest.mark.usefixtures("by_words")
@pytest.mark.parametrize(
    ("question", "said", "status"),
    [(FACT, "31 Tage.", "answered"), (ELSEWHERE, "Bis zum Ende der Saison.", "not_found")],
)
def test_an_answer_in_another_language_has_a_confidence(
    collection: Collection, tmp_path: Path, question: str, said: str, status: str
) -> None:
    answer = _ask_in_german(collection, tmp_path, question, said, small=False)
    assert answer.status == status
    assert answer.confidence is not None
    assert (answer.confidence >= 0.5) == (status == "answered")
    assert answer.said is None


@pytest.mark.usefixtures("by_words")
@pytest.mark.parametrize("said", [ABSTENTION, "The ferry is 12 euros."])
def test_a_small_reader_quotes_in_a_language_that_the_judge_does_not_read(
    collection: Collection, tmp_path: Path, said: str
) -> None:
    answer = _ask_in_german(collection, tmp_path, FACT, said, small=True)
    assert answer.status != "not_found"
    assert answer.text == "Jede Angestellte bekommt im Jahr 31 Tage bezahlten Urlaub [1]."
    assert answer.said == said


@pytest.mark.usefixtures("by_words")
def test_an_abstention_is_in_the_language_of_the_question(collection: Collection, tmp_path: Path) -> None:
    answer = _ask_in_german(collection, tmp_path, ELSEWHERE, ABSTENTION, small=True)
    assert answer.text == answer.shown == "Das weiß ich nicht."
    assert is_abstention(answer.text)


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (
            "Wann fährt das Schiff nach Brannay?",
            "Ich bin nicht sicher. In den Dokumenten steht: “The ferry to Brannay leaves at nine.” [",
        ),
        ("Où est le port de Brannay ?", "Je ne suis pas sûr. Les documents disent: “"),
    ],
)
def test_a_question_in_another_language_than_the_documents_gets_the_closest_sentence(
    collection: Collection, tmp_path: Path, question: str, shown: str
) -> None:
    """Its embedder is taken to be multilingual, as all but the bundled one are; here it finds the name."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ferry.md").write_text(
        "# Harbour\n\nThe ferry to Brannay leaves at nine. It is painted red.\n"
    )
    collection.sync(tmp_path / "docs")
    assert (collection.language, language_of(question)) == ("en", "de" if question[0] == "W" else "fr")
    rag = Rag(collection, reader=ScriptedReader([ABSTENTION]))
    rag.policy = SMALL
    answer = rag.ask(question)
    assert answer.status == "unsure"
    assert "closest" in answer.signals
    assert answer.shown.startswith(shown)
