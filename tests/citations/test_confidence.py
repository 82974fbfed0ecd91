"""Confidence: its signals, how it is fitted and stored, and what becomes of an answer with too little of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ragfm import Answer, Collection, Rag, Settings
from ragfm.citations import verifier
from ragfm.citations.confidence import (
    DEFAULT,
    OTHER_LANGUAGE,
    SHIPPED,
    SIGNALS,
    adapter_hash,
    answer_signals,
    reader_signals,
    select_calibration,
)
from ragfm.citations.grounding import CitedAnswer, cite_answer
from ragfm.citations.support import analyze
from ragfm.cli.tune import tune
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.calibration import READER_SIGNALS, Calibration
from ragfm.core.config import AskSection, load_settings
from ragfm.core.errors import ConfigError, DataError, ReaderBusyError
from ragfm.core.types import Hit, Message, Sampling, Stream
from ragfm.evaluation import Gold, Question, calibrate, store_calibration
from ragfm.evaluation.confidence_calibration import auc, expected_calibration_error, fit_logistic_regression
from ragfm.generation.prompt_template import load_strategy
from ragfm.models.adapters import WEIGHTS
from ragfm.store.views import language_of
from ragfm.testing import HashingEmbedder, ScriptedReader

BY_LIKELIHOOD = Calibration("ScoringReader", 0.0, {"likely": 4.0}, {"likely": -1.0}, threshold=0.5)


class ScoringReader(ScriptedReader):
    """Thinks as well of its answers as they say: "… sure", or not."""

    def score(
        self, messages: Sequence[Message], continuations: Sequence[str], *, adapter: str | None = None
    ) -> list[float]:
        assert tuple(messages) == self.prompts[-1]
        self.adapter = adapter
        return [-0.1 if "sure" in text else -2.0 * len(text.split()) for text in continuations]


class Stops(ScoringReader):
    """A Ctrl-C comes when it has answered thirty times."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        if len(self.prompts) == 30:
            raise KeyboardInterrupt
        return super().stream(messages, sampling)


def _rag(collection: Collection, docs: Path, script: list[str], **ask: object) -> Rag:
    collection.sync(docs)
    settings = Settings(ask=AskSection(**{"confidence": BY_LIKELIHOOD, "reranker": "none", **ask}))  # type: ignore[arg-type]
    handle = Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())
    return Rag(handle, reader=ScoringReader(script))


def cited(question: str, output: str, hits: list[Hit]) -> CitedAnswer:
    return cite_answer(question, output, hits, "en", verifier=None, corrects=False)


def test_answer_signals_of_a_cited_answer() -> None:
    texts = ["Everybody has 28 days of leave a year.", "The office opens at nine. Leave is asked for by mail."]
    hits = [Hit("a", text, 0, len(text), n, 0.7 - n / 10, {}, n=n + 1) for n, text in enumerate(texts)]
    question = "How many days of leave do interns get a year?"
    found = answer_signals(cited(question, "They get 28 days. They get 99 euros.", hits), hits)
    assert found == pytest.approx(
        {
            "cosine": 0.7,
            "gap": 0.1,
            "covered": 4 / 6,
            "nearest": 3 / 6,
            "supported": 0.5,
            "names": 1.0,
            "passage": 3 / 6,
            "asked": 3 / 6,
        },
        abs=0.2,
    )
    assert found["supported"] == 0.5
    assert found["covered"] >= found["nearest"] > 0
    nothing = CitedAnswer("", "", (), analyze(question, hits))
    keyword = answer_signals(nothing, [replace(hits[0], score=None)])
    assert keyword.keys() == {"covered", "passage", "nearest"}
    assert answer_signals(cited("?", "", []), []) == {}


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("They get 28 days.", 1.0),
        ("It is Ms Okafor [1].", 1.0),
        ("Interns get days of leave.", 0.0),
        ("The answer is: Interns. How many days do they get in 2026?", 0.0),
        ("Parents get leave [1].", 0.0),
        ("28.", 1.0),
    ],
)
def test_an_answer_names_something_where_the_question_did_not(answer: str, names: float) -> None:
    hit = Hit("a", "Everybody has 28 days of leave.", 0, 31, 1, 0.5, {}, n=1)
    question = "How many days of leave do interns get in 2026?"
    assert answer_signals(cited(question, answer, [hit]), [hit])["names"] == names


def test_likelihoods_are_by_token_and_missing_where_a_reader_has_none() -> None:
    reader = ScoringReader(["x"])
    reader.prompts.append(())
    assert reader_signals(reader, (), "five words are in this", 5, None) == {"likely": -2.0, "unknown": -6.0}
    reader_signals(reader, (), "x", 1, "an adapter")
    assert reader.adapter == "an adapter"
    assert reader_signals(ScriptedReader(), (), "x", 1, None) == {}

    class Busy(ScriptedReader):
        def score(self, messages: object, continuations: object) -> list[float]:
            raise ReaderBusyError("busy", "")

    assert reader_signals(Busy(), (), "x", 1, None) == {}


def test_a_signal_that_is_missing_counts_as_its_mean_and_another_embedders_cosine_does_not_count() -> None:
    fitted = Calibration(
        "r", -1.0, {"cosine": 10.0, "likely": 2.0}, {"cosine": 0.5, "likely": -1.0}, 0.5, embedder="one"
    )
    by_hand = 1 / (1 + np.exp(-(-1.0 + 10 * 0.2 + 2 * 0.5)))
    assert fitted.confidence({"cosine": 0.7, "likely": -0.5, "new": 9.0}, "one") == pytest.approx(by_hand, abs=1e-4)
    assert fitted.confidence({"cosine": 0.7}, "one") == fitted.confidence({"cosine": 0.7, "likely": -1.0}, "one")
    assert fitted.confidence({"cosine": 0.9, "likely": -1.0}, "other") == fitted.confidence({"likely": -1.0}, "other")
    assert fitted.confidence({"likely": 1e9}, "one") == 1.0


def test_an_answer_of_too_little_confidence_is_withheld(collection: Collection, docs: Path) -> None:
    rag = _rag(collection, docs, ["You get 28 days of leave, sure.", "You get 28 days of leave."])
    answer = rag.ask("How many days of leave do I get?")
    assert (answer.abstained, answer.confidence) == (
        False,
        pytest.approx(1 / (1 + np.exp(-4 * (1 - 0.1 / 6))), abs=1e-3),
    )
    assert answer.text.startswith("You get 28 days of leave, sure")
    assert answer.signals.keys() == set(SIGNALS) - {"closest"}
    stream = rag.stream("How many days of leave do I get?")
    assert "".join(stream) == f"You get 28 days of leave.\n{ABSTENTION}"
    withheld = stream.answer
    assert (withheld.text, withheld.abstained, withheld.citations) == (ABSTENTION, True, ())
    assert withheld.confidence == pytest.approx(0.018, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"mode": "strict"}, ABSTENTION),
        ({"mode": "open"}, "You get 28 days of leave [1]."),
        ({"min_confidence": 0.0}, "You get 28 days of leave [1]."),
        ({"min_confidence": 0.01}, "You get 28 days of leave [1]."),
    ],
)
def test_mode_and_threshold_decide(collection: Collection, docs: Path, settings: dict[str, object], text: str) -> None:
    rag = _rag(collection, docs, ["You get 28 days of leave."], **settings)
    stream = rag.stream("How many days of leave do I get?")
    pieces = list(stream)
    assert stream.answer.text == text
    assert stream.answer.confidence is not None
    doubt = "" if settings.get("mode") == "open" else "\n\nI am not sure of this."
    assert "".join(pieces) == (ABSTENTION if text == ABSTENTION else f"You get 28 days of leave.{doubt}")


@pytest.mark.parametrize(
    ("said", "mode", "text", "own"),
    [
        (ABSTENTION, "prefer", "28 days [1].", ABSTENTION),
        ("99 euros, sure.", "prefer", "28 days [1].", "99 euros, sure."),
        ("99 euros, sure.", "strict", "28 days [1].", "99 euros, sure."),
        ("You get 28 days.", "prefer", "You get 28 days [1].", None),
        ("99 euros, sure.", "open", "99 euros, sure.", None),
        (ABSTENTION, "open", ABSTENTION, None),
    ],
)
def test_the_verifier_corrects_the_reader_if_the_calibration_corrects(
    collection: Collection, docs: Path, said: str, mode: str, text: str, own: str | None
) -> None:
    trusting = replace(BY_LIKELIHOOD, weights={"located": 1.0}, means={"located": -9.0}, corrects=True)
    rag = _rag(collection, docs, [said], confidence=trusting, mode=mode)
    stream = rag.stream("How many days of leave do I get?")
    pieces = "".join(stream)
    answer = stream.answer
    assert (answer.text, answer.said) == (text, own)
    assert pieces == answer.shown
    assert (answer.quote is None) == (mode == "open")
    assert answer.abstained == (text == ABSTENTION)
    if mode != "open":
        assert answer.signals["silent"] == (said == ABSTENTION)
        assert (answer.signals["agree"] > 0.5) == (own is None)
        assert all(citation.supports and "28 days" in citation.quote for citation in answer.citations)


def test_without_a_verifier_nothing_is_corrected(collection: Collection, docs: Path) -> None:
    trusting = replace(BY_LIKELIHOOD, corrects=True)
    rag = _rag(collection, docs, ["99 euros, sure.", ABSTENTION], confidence=trusting, verifier="none")
    for text in ("99 euros, sure.", ABSTENTION):
        answer = rag.ask("How many days of leave do I get?")
        assert (answer.text, answer.said) == (text, None)
        assert not answer.signals.keys() & {"anywhere", "located", "agree", "silent"}


@pytest.mark.parametrize(
    ("question", "verifier"),
    [
        ("How many days of leave do I get?", "none"),
        ("Сколько дней отпуска?", "bundled"),  # no word of it is in the documents
    ],
)
def test_answers_the_verifier_did_not_read_are_not_withheld_by_its_signals(
    collection: Collection, docs: Path, question: str, verifier: str
) -> None:
    by_verifier = next(one for one in SHIPPED if one.corrects)
    assert READER_SIGNALS.isdisjoint(by_verifier.weights)
    rag = _rag(
        collection,
        docs,
        ["28 days."],
        confidence=replace(by_verifier, reader="ScoringReader", adapter=None),
        verifier=verifier,
    )
    answer = rag.ask(question)
    assert "28 days" in answer.text
    assert (answer.abstained, answer.confidence) == (False, None)
    assert answer.signals


STATION = """# Handbuch der Ballonstation

Jede Angestellte bekommt im Jahr 31 Tage bezahlten Urlaub. Der Antrag auf Urlaub geht an die Stationsleiterin.

# Fundsachen

Fundsachen liegen bis zum Ende der Saison im Schrank neben der Treppe.
"""
FACT, ELSEWHERE = (
    "Wie viele Tage bezahlten Urlaub bekommt jede Angestellte im Jahr?",
    "Wann fährt die Fähre nach Norden?",
)


def _ask_in_german(collection: Collection, tmp_path: Path, question: str, said: str, *, small: bool) -> Answer:
    (tmp_path / "docs").mkdir(exist_ok=True)
    (tmp_path / "docs" / "handbuch.md").write_text(STATION, encoding="utf-8")
    collection.sync(tmp_path / "docs")
    assert collection.language == "de"
    rag = Rag(collection, reader=ScriptedReader([said]))
    rag.calibration = next(one for one in SHIPPED if one.corrects) if small else DEFAULT
    return rag.ask(question)


@pytest.mark.parametrize(
    ("question", "said", "status"),
    [
        (FACT, "31 Tage.", "answered"),
        (FACT, "Der Schrank.", "unsure"),
        (ELSEWHERE, "Bis zum Ende der Saison.", "not_found"),
    ],
)
def test_an_answer_in_another_language_has_a_confidence(
    collection: Collection, tmp_path: Path, question: str, said: str, status: str
) -> None:
    answer = _ask_in_german(collection, tmp_path, question, said, small=False)
    assert answer.status == status
    assert answer.confidence is not None
    assert (answer.confidence >= 0.5) == (status == "answered")
    assert any(citation.verified for citation in answer.citations) == (status == "answered")
    assert answer.said is None


@pytest.mark.parametrize("said", [ABSTENTION, "The ferry is 12 euros."])
def test_a_small_reader_quotes_in_a_language_that_the_verifier_does_not_read(
    collection: Collection, tmp_path: Path, said: str
) -> None:
    answer = _ask_in_german(collection, tmp_path, FACT, said, small=True)
    assert answer.status != "not_found"
    assert answer.text == "Jede Angestellte bekommt im Jahr 31 Tage bezahlten Urlaub [1]."
    assert answer.said == said
    assert _ask_in_german(collection, tmp_path, ELSEWHERE, ABSTENTION, small=True).status == "not_found"


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (
            "Wann fährt das Schiff nach Brannay?",
            "Ich bin nicht sicher. In den Dokumenten steht: “The ferry to Brannay leaves at nine.” [",
        ),
        (
            "Où est le port de Brannay ?",
            "Je ne suis pas sûr. Les documents disent: “",
        ),
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
    rag.calibration = next(one for one in SHIPPED if one.corrects)
    answer = rag.ask(question)
    assert answer.status == "unsure"
    assert "closest" in answer.signals
    assert answer.shown.startswith(shown)
    assert "Brannay" in answer.shown


def test_distant_passages_answer_no_question_in_another_language() -> None:
    near, far = (OTHER_LANGUAGE.confidence({"closest": cosine}, OTHER_LANGUAGE.embedder) for cosine in (0.82, 0.74))
    assert not OTHER_LANGUAGE.withholds(near)
    assert OTHER_LANGUAGE.withholds(far)
    assert OTHER_LANGUAGE.confidence({"closest": 0.74}, "of another embedder") is None


def test_an_abstention_is_in_the_language_of_the_question(collection: Collection, tmp_path: Path) -> None:
    answer = _ask_in_german(collection, tmp_path, ELSEWHERE, ABSTENTION, small=True)
    assert answer.text == answer.shown == "Das weiß ich nicht."
    assert is_abstention(answer.text)


def test_a_calibration_gives_no_confidence_without_a_weighted_signal() -> None:
    for one in SHIPPED:
        assert one.confidence({}) is None
        assert one.confidence({"silent": 0.0}) is None
        assert one.confidence(dict(one.means)) is not None
        assert not one.withholds(None)
        assert not one.withholds(one.threshold)
        assert one.withholds(one.threshold - 1e-4)
        assert one.withholds(0.9, 0.95)
    by_cosine = Calibration("r", -1.0, {"cosine": 10.0}, {"cosine": 0.5}, 0.5, embedder="one")
    assert by_cosine.confidence({"cosine": 0.9}, "other") is None


def test_the_calibrations_were_fitted_to_the_verifier_that_ships() -> None:
    """With other weights, likelihoods mean something else: fit again (decision 011), then change this hash."""
    fitted_to = "98f1f774b11edfd6b3e1b20dc48e9e226158790779da63d802b5e4122feb421f"
    assert sha256((verifier.SHIPPED / verifier.WEIGHTS).read_bytes()).hexdigest() == fitted_to


@pytest.fixture
def few_shot(tmp_path: Path) -> str:
    """A strategy's file."""
    path = tmp_path / "few-shot.toml"
    path.write_text("system = 'S'\nask = '{question}'\n")
    return str(path)


def test_shipped_calibrations_apply_only_to_the_default_strategy(
    collection: Collection, docs: Path, few_shot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = _rag(collection, docs, []).collection  # with a calibration of its own, for another reader
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_: ScriptedReader())
    used = [
        Rag(handle, reader="bundled", adapter="none", strategy=name).calibration for name in ("zero-shot", few_shot)
    ]
    assert used == [SHIPPED[0], None]


def test_a_user_calibration_applies_only_to_the_strategy_it_was_fitted_to(
    collection: Collection, docs: Path, few_shot: str
) -> None:
    for fitted in ("zero-shot", few_shot):
        own = replace(BY_LIKELIHOOD, strategy=load_strategy(fitted).label)
        handle = _rag(collection, docs, [], confidence=own).collection
        used = {
            name: Rag(handle, reader=ScoringReader([]), strategy=name).calibration for name in ("zero-shot", few_shot)
        }
        assert {name for name, calibration in used.items() if calibration} == {fitted}


def test_a_calibration_applies_only_to_an_unchanged_strategy_file(collection: Collection, docs: Path) -> None:
    path = collection.path.parent / "my.toml"
    path.write_text("system = 'S'\nask = '{question}'\n")
    handle = _rag(collection, docs, []).collection
    fitted = replace(BY_LIKELIHOOD, strategy=Rag(handle, reader=ScoringReader([]), strategy="my.toml").strategy.label)
    handle = _rag(collection, docs, [], confidence=fitted).collection
    assert Rag(handle, reader=ScoringReader([]), strategy="my.toml").calibration == fitted
    path.write_text("system = 'T'\nask = '{question}'\n")
    load_strategy.cache_clear()
    assert Rag(handle, reader=ScoringReader([]), strategy="my.toml").calibration is None


def test_a_fitted_calibration_records_the_strategy(collection: Collection, docs: Path, few_shot: str) -> None:
    questions, script = _asked(80)
    handle = _rag(collection, docs, [], confidence=None, verifier="none").collection
    rag = Rag(handle, reader=ScoringReader(script), strategy=few_shot)
    assert calibrate(rag, questions).calibration.strategy == load_strategy(few_shot).label


def test_a_calibration_for_another_reader_is_ignored(collection: Collection, docs: Path) -> None:
    rag = _rag(collection, docs, ["28 days."], confidence=replace(BY_LIKELIHOOD, reader="bundled"))
    answer = rag.ask("How many days of leave do I get?")
    assert (answer.confidence, answer.signals, answer.abstained) == (None, {}, False)


def test_a_calibration_applies_to_one_adapter_wherever_it_is_stored(tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"
    one.write_bytes(b"one")
    other.write_bytes(b"other")
    with_one = replace(BY_LIKELIHOOD, adapter=adapter_hash(str(one)))
    assert select_calibration(with_one, "ScoringReader", str(one.rename(tmp_path / "moved.gguf"))) == with_one
    assert select_calibration(with_one, "ScoringReader", str(other)) is None
    assert select_calibration(with_one, "ScoringReader", None) is None
    assert select_calibration(BY_LIKELIHOOD, "ScoringReader", str(other)) is None
    assert select_calibration(BY_LIKELIHOOD, "ScoringReader", None) == BY_LIKELIHOOD


def test_an_adapter_of_transformers_is_a_folder_and_a_servers_own_a_name(tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(b"learned" if name != "other" else b"more")
    one, same, other = (adapter_hash(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert adapter_hash("on-the-server") == "on-the-server"


def test_an_abstention_has_no_confidence(collection: Collection, docs: Path) -> None:
    answer = _rag(collection, docs, [ABSTENTION]).ask("Why?")
    assert (answer.abstained, answer.confidence) == (True, None)


# --- Fitting -----------------------------------------------------------------------------------------------------


def test_the_regression_is_the_maximum_of_its_likelihood() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3)) * [1.0, 0.1, 5.0]
    true = np.array([1.0, -8.0, 0.0])
    y = (random.random(4000) < 1 / (1 + np.exp(-(x @ true - 1.0)))).astype(float)
    x -= x.mean(axis=0)
    bias, weights = fit_logistic_regression(x, y)
    assert bias == pytest.approx(-1.0, abs=0.15)
    assert weights == pytest.approx(true, rel=0.15, abs=0.03)
    z = bias + x @ weights
    assert (
        np.abs(
            ((y - 1 / (1 + np.exp(-z)))[:, None] * x / x.std(axis=0)).sum(axis=0) - 5 * weights * x.std(axis=0)
        ).max()
        < 1e-6
    )


def test_auc_and_error_are_those_of_small_cases() -> None:
    right = np.array([1.0, 0.0, 1.0, 0.0])
    assert auc(np.array([0.9, 0.1, 0.8, 0.2]), right) == 1.0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), right) == 0.5
    assert auc(np.array([0.9, 0.95, 0.1, 0.2]), right) == 0.25
    assert expected_calibration_error(np.full(40, 0.5), np.tile([1.0, 0.0], 20)) == 0.0
    assert expected_calibration_error(np.full(40, 0.75), np.tile([1.0, 0.0], 20)) == pytest.approx(0.25)


def _asked(count: int) -> tuple[list[Question], list[str]]:
    """Every other question is answered rightly, and mostly for sure; every fourth one can't be answered."""
    questions, script = [], []
    for n in range(count):
        right, surely = n % 2 == 0, (n % 2 == 0) != (n % 10 == 0)
        answers = () if n % 4 == 3 else ("28 days",)
        gold = (Gold("docs/leave.md"),) if answers else ()
        questions.append(Question(str(n), f"How many days of leave in {n}?", gold, answers, unanswerable=not answers))
        script.append(f"{'28 days' if right else 'Nine weeks'}{', sure' if surely else ', I would say so'}.")
    return questions, script


@pytest.mark.slow
def test_it_is_fitted_stored_and_used(collection: Collection, docs: Path, tmp_path: Path) -> None:
    questions, script = _asked(120)
    rag = _rag(collection, docs, script, confidence=None)
    report = calibrate(rag, questions, keep=0.8)
    assert rag.calibration is None
    assert report.adopted
    assert report.auc.low > 0.75
    assert report.error < 0.15
    assert (report.about["answers"], report.about["right"]) == (120, 60)
    assert report.given["right"] >= 0.8
    assert report.given["wrong"] < 0.2
    assert report.given["unanswerable"] < 0.2
    assert report.calibration.reader == "ScoringReader"
    assert len(report.risk) == 100
    assert report.risk[-1] == (1.0, 0.5)  # all are answered, half of them right
    assert report.risk[39][1] < 0.2
    (tmp_path / "ragfm.toml").write_text("# mine\n[ask]\nk = 2\n")
    written = store_calibration(report, tmp_path)
    assert [path.name for path in written] == ["ragfm.toml", "ragfm-confidence.json"]
    assert "# mine" in written[0].read_text()
    assert json.loads(written[1].read_text())["auc"]["value"] == report.auc.value
    settings = load_settings(tmp_path)
    assert (settings.ask.k, settings.ask.confidence) == (2, report.calibration)
    handle = Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())
    fitted = Rag(handle, reader=ScoringReader(["28 days, sure.", "Nine weeks, I would say so."]))
    assert not fitted.ask("How many days of leave in 7?").abstained
    assert fitted.ask("How many days of leave in 7?").abstained
    (tmp_path / "ragfm.toml").write_text(written[0].read_text().replace("threshold", "treshold"))
    with pytest.raises(ConfigError, match="treshold"):
        load_settings(tmp_path)


def test_chance_is_not_adopted_and_too_few_right_answers_are_said(
    collection: Collection, docs: Path, tmp_path: Path
) -> None:
    questions, _ = _asked(120)
    script = [f"You get 28 days of leave{', sure' if n % 4 < 2 else ', so'}." for n in range(120)]
    same = [Question(str(n), "Why?", (), ("28 days" if n % 2 else "12 seats",)) for n in range(120)]
    report = calibrate(_rag(collection, docs, script, confidence=None, verifier="none"), same)
    assert not report.adopted
    assert [path.name for path in store_calibration(report, tmp_path)] == ["ragfm-confidence.json"]
    with pytest.raises(DataError, match="0 of 120 answers are right"):
        calibrate(_rag(collection, docs, ["Nine weeks."], confidence=None, verifier="none"), questions)
    with pytest.raises(DataError, match="39 questions are too few"):  # before the first answer
        calibrate(_rag(collection, docs, [], confidence=None), questions[:39])


@pytest.mark.slow
def test_the_command_fits_and_stores(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.chdir(tmp_path)
    with Collection.open(".ragfm", embedder="hashing") as handle:
        handle.sync(docs)
    questions, script = _asked(80)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScoringReader(script))
    lines = [
        {"question": q.text, "id": q.id} | ({"answers": q.answers} if q.answers else {"unanswerable": True})
        for q in questions
    ]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(*words: str) -> Result:
        return CliRunner().invoke(tune, list(words), standalone_mode=False)

    assert "requires QUESTIONS" in str(run("--confidence").exception)
    assert "--adapter requires --confidence" in str(run("asked.jsonl", "--adapter", "x").exception)
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: Stops(script))
    stopped = run("asked.jsonl", "--confidence", "--as-said", "--dry-run")
    assert "kept in" in stopped.stderr
    assert len(Path(".ragfm-confidence.run").read_text().splitlines()) == 31
    rest = ScoringReader(script[30:])
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: rest)
    assert "No settings were changed" in run("asked.jsonl", "--confidence", "--as-said", "--dry-run").output
    assert len(rest.prompts) == 50
    assert not Path(".ragfm-confidence.run").exists()
    monkeypatch.setattr("ragfm.rag.configured_reader", lambda *_, **__: ScoringReader(script))
    dry = run("asked.jsonl", "--confidence", "--as-said", "--dry-run", "--out", "run")
    assert len(Path("run").read_text().splitlines()) == 81
    other = run("asked.jsonl", "--confidence", "--corrected", "--dry-run", "--out", "run")
    assert "corrects false there, true now" in str(other.exception)
    assert "No settings were changed" in dry.output
    assert not Path("ragfm.toml").exists()
    printed = run("asked.jsonl", "--confidence", "--as-said", "--keep-right", "0.8").output
    assert "80 answers to asked.jsonl, 40 of them correct" in printed
    assert "answers to unanswerable questions" in printed
    stored = load_settings(tmp_path).ask.confidence
    assert stored is not None
    assert (stored.reader, stored.corrects) == ("bundled", False)
    printed = run("asked.jsonl", "--confidence", "--corrected", "--dry-run").output
    assert "80 answers to asked.jsonl, " in printed
    assert "40 of them correct" not in printed, "the verifier's words were judged"


def test_a_reader_without_a_calibration_of_its_own_has_the_default(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.citations.confidence.DEFAULT", DEFAULT)
    collection.sync(docs)
    rag = Rag(collection, reader=ScriptedReader(["You get 28 days of leave.", "You get 99 euros."]))
    assert rag.calibration == DEFAULT
    right, wrong = (rag.ask("How many days of leave do I get?") for _ in range(2))
    assert right.confidence is not None
    assert wrong.confidence is not None
    assert right.confidence > wrong.confidence
    assert (right.status, wrong.status) == ("answered", "not_found")
