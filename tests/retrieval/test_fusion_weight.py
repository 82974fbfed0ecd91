"""The weight of the cosine where none is set: by what the embedding model knows, and said where it matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.core.types import Scalar
from ragfm.evaluation import Gold, Question, tune
from ragfm.models.model_lookup import find_model, is_english_only, weights_sha256
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, UNKNOWN_LANGUAGE_WEIGHT, default_weight, weight_for
from ragfm.testing import HashingEmbedder

BUNDLED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RUSSIAN = (
    "Отпуск длится двадцать восемь дней.",
    "Офис открыт с девяти до пяти.",
    "Собаки могут быть здесь по пятницам.",
)


class English(HashingEmbedder):
    """An embedder with the fingerprint of the bundled model."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        return {**super().fingerprint, "model": "bundled", "weights": BUNDLED}


def _opened(place: Path, **search: object) -> Collection:
    settings = Settings(search=SearchSection(**search))  # type: ignore[arg-type]
    return Collection.open(place / ".ragfm", settings=settings, embedder=English())


@pytest.fixture
def russian(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(RUSSIAN):
        (tmp_path / "docs" / f"{number}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_bundled_model_is_recognized() -> None:
    assert weights_sha256(find_model("bundled", "embedder")) == BUNDLED
    assert is_english_only(BUNDLED)
    assert not is_english_only("")


@pytest.mark.parametrize(
    ("language", "query", "weight"),
    [
        ("en", "how many days of leave?", DEFAULT_WEIGHT),
        ("simple", "how many days of leave?", DEFAULT_WEIGHT),
        (None, "how many days of leave?", DEFAULT_WEIGHT),
        ("en", "", DEFAULT_WEIGHT),
        ("en", "what are α and β?", DEFAULT_WEIGHT),
        ("en", "Grüße, naïve café", DEFAULT_WEIGHT),
        ("en", "сколько дней?", UNKNOWN_LANGUAGE_WEIGHT),
        ("en", "有多少天？", UNKNOWN_LANGUAGE_WEIGHT),
        ("de", "wie viele Tage?", UNKNOWN_LANGUAGE_WEIGHT),
        ("ru", "how many days?", UNKNOWN_LANGUAGE_WEIGHT),
    ],
)
def test_other_languages_lower_the_weight_of_an_english_model(language: str | None, query: str, weight: float) -> None:
    assert default_weight(BUNDLED, language, query) == weight
    assert default_weight("another", language, query) == DEFAULT_WEIGHT
    assert weight_for(query, SearchSection(), model=BUNDLED, language=language) == weight
    for given in (0.0, 0.6, 1.0):
        assert weight_for(query, SearchSection(weight=given), model=BUNDLED, language=language) == given


def test_a_code_never_raises_the_weight() -> None:
    assert (
        weight_for("was ist AB-1234/5?", SearchSection(), model=BUNDLED, language="de") == UNKNOWN_LANGUAGE_WEIGHT < 0.4
    )
    settings = SearchSection(code_weight=UNKNOWN_LANGUAGE_WEIGHT / 2)
    assert weight_for("was ist AB-1234/5?", settings, model=BUNDLED, language="de") == UNKNOWN_LANGUAGE_WEIGHT / 2


def test_a_search_uses_the_weight_by_language(russian: Path) -> None:
    def fused(**search: object) -> list[float | None]:
        with _opened(russian, **search) as collection:
            return [hit.scores["fused"] for hit in collection.search("отпуск и офис", mode="hybrid")]

    with _opened(russian) as collection:
        collection.sync(russian / "docs")
    assert fused() == fused(weight=UNKNOWN_LANGUAGE_WEIGHT)
    assert fused() != fused(weight=DEFAULT_WEIGHT)


def test_a_changed_weight_is_warned_about_once_and_shown(russian: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _opened(russian) as collection:
        collection.sync(russian / "docs")
        (said,) = [record.getMessage() for record in caplog.records]
        assert f"(weight {UNKNOWN_LANGUAGE_WEIGHT:g}): " in said
        assert "language is ru" in said
        assert "ragfm reembed --embedder" in said
        words = collection.status().indexes[1]
        assert (words["language"], words["weight"], words["why"]) == (
            "ru",
            UNKNOWN_LANGUAGE_WEIGHT,
            said[said.index("the doc") :],
        )
        caplog.clear()
        (russian / "docs" / "3.txt").write_text("Ещё один документ о том, что было.", encoding="utf-8")
        assert collection.sync(russian / "docs").added == 1
        assert not caplog.records
        for number in range(9):
            (russian / "docs" / f"en{number}.txt").write_text(f"This is what it was, and it is the {number}th of all.")
        collection.sync(russian / "docs")
        assert collection.status().indexes[1]["weight"] == DEFAULT_WEIGHT
        assert not caplog.records


@pytest.mark.parametrize("search", [{"weight": 0.6}, {"weight": UNKNOWN_LANGUAGE_WEIGHT}])
def test_a_weight_set_by_the_user_gives_no_warning(
    russian: Path, caplog: pytest.LogCaptureFixture, search: dict[str, object]
) -> None:
    with _opened(russian, **search) as collection:
        collection.sync(russian / "docs")
        words = collection.status().indexes[1]
    assert not caplog.records
    assert words["weight"] == search["weight"]
    assert "set" in words["why"]


def test_tuning_compares_with_the_weight_by_language(russian: Path) -> None:
    questions = [Question(str(n), RUSSIAN[n % 3][:12], (Gold(f"docs/{n % 3}.txt"),)) for n in range(20)]
    with _opened(russian) as collection:
        collection.sync(russian / "docs")
        report = tune(collection, questions)
    assert report.current.weight is None
    values = {trial.weight: trial.value for trial in report.trials}
    assert values[None] == values[UNKNOWN_LANGUAGE_WEIGHT]
    assert not report.adopted
