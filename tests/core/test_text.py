from __future__ import annotations

import time

import pytest
import sentencex
from hypothesis import example, given
from hypothesis import strategies as st

from ragfm.core.text import complete_pairs, displayed_name, sentence_spans

AWKWARD = st.text(
    st.sampled_from(list("aB1.!?()[]“”\"' \n\t-#|*=。！؟۔\u0301\u200b\u200d\u2003\u2028\x85\x1f\ud800\U0001f600"))
)


def sentences(text: str, language: str = "en") -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text, language)]


@given(st.one_of(st.text(), AWKWARD, st.text(st.characters())), st.sampled_from(["en", "de", "zh", "ar", "", "none"]))
@example("B\u2003.", "en")  # sentencex panics
@example("\ud800. A b. C", "en")
@example("x " * 5000, "en")
@example("“a. " * 5000, "en")
def test_spans_cover_every_visible_character(text: str, language: str) -> None:
    end = 0
    for start, stop in sentence_spans(text, language):
        assert start >= end
        assert not text[end:start].strip()
        assert text[start:stop] == text[start:stop].strip() != ""
        end = stop
    assert not text[end:].strip()


def test_abbreviations_end_no_sentence() -> None:
    assert sentences("Dr. Ada came at 3.15 p.m. on foot. 😀 Why? “So.”") == [
        "Dr. Ada came at 3.15 p.m. on foot.",
        "😀 Why?",
        "“So.”",
    ]
    assert sentences("你好。再见！", "zh") == ["你好。", "再见！"]
    assert sentences("Das ist z. B. gut. Ja.", "de") == ["Das ist z. B. gut.", "Ja."]


def test_a_heading_is_one_sentence() -> None:
    assert sentences("## 3.5. Cut\n\nDr. Ada cuts. Then she pastes.\n# Who? Why?\nShe.") == [
        "## 3.5. Cut",
        "Dr. Ada cuts.",
        "Then she pastes.",
        "# Who? Why?",
        "She.",
    ]
    assert len(sentences("# " + "A title. " * 99)) == 99


def test_lines_that_open_a_block_end_a_sentence() -> None:
    text = "# Leave\nYou have\n30 days\n- of rest\n  at home\n- of work\n1. First\n| a |\n|---|\nEnd\n===\nof\n \nall"
    assert sentences(text) == [
        "# Leave",
        "You have\n30 days",
        "- of rest\n  at home",
        "- of work",
        "1. First",
        "| a |",
        "|---|",
        "End",
        "===",
        "of",
        "all",
    ]


def test_emphasis_ends_with_its_sentence() -> None:
    assert sentences("**A killed ingestion.** *It* continues. _Really!_ It does.") == [
        "**A killed ingestion.**",
        "*It* continues.",
        "_Really!_",
        "It does.",
    ]


def test_a_table_row_is_one_sentence_unless_its_cells_hold_paragraphs() -> None:
    row = "| Curfew violations. . | 91.0 | Includes all. Excludes none. |"
    assert sentences(f"{row}\n| {'A long text. ' * 40}|")[:2] == [row, "| A long text."]


def test_white_space_has_no_sentences() -> None:
    assert sentence_spans("") == []
    assert sentence_spans(" \n\u3000\t") == []


def test_a_window_changes_no_sentence() -> None:
    long = " ".join(f"word{n}" for n in range(1000)) + "."
    text = "Short one. " * 500 + long + " Last."
    assert sentences(text) == [*["Short one."] * 500, long, "Last."]


@pytest.mark.parametrize("unit", ["你好。", "“é. ", "é", "\n", "| a |\n", ". "])
def test_takes_linear_time(unit: str) -> None:
    text = unit * (600_000 // len(unit))
    start = time.thread_time()
    sentence_spans(text)
    assert time.thread_time() - start < 10  # where sentencex alone is quadratic, it takes minutes


def test_a_text_that_sentencex_fails_on_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def panic(*_: str) -> list[str]:
        raise PanicException

    monkeypatch.setattr(sentencex, "segment", panic)
    assert sentences("One. Two.\n\nThree.") == ["One. Two.", "Three."]
    monkeypatch.setattr(sentencex, "segment", lambda _, text: [text[1:]])
    assert sentences("One. Two.\n\nThree.") == ["One. Two.", "Three."]


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(sentencex, "segment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sentence_spans("One. Two.")


@pytest.mark.parametrize(
    ("text", "span", "completed"),
    [
        ("The default is 0.1 (10% of table size).", "0.1 (10%", "0.1 (10% of table size)"),
        ("It is 0.1 (10% of\nthe size).", "0.1 (10%", "0.1"),
        ("| 0.1 (10% | size) |", "0.1 (10%", "0.1"),
        (f"It is 0.1 (10%, {'as ever ' * 5}).", "0.1 (10%", "0.1"),
        ("See (below and see)", "(below", "(below and see)"),
        ("See (below\n", "(below", "(below"),
        ("Call (0) 12 [a [b] c].", "[b] c", "[b] c"),
        ("The (new) rule", "new) rule", "(new) rule"),
        ("1) The rule", "1) The", "1) The"),
        ('A "chocolate substitute" label', 'chocolate substitute" label', '"chocolate substitute" label'),
        ('A label "chocolate"', 'label "chocolate', 'label "chocolate"'),
        ('A screen of 27" or more', '27" or', '27" or'),
        ("Der „neue“ und “new rule” hier", "“new", "“new rule”"),
        ("no brackets", "no", "no"),
    ],
)
def test_both_of_a_pair_of_brackets_or_quotation_marks(text: str, span: str, completed: str) -> None:
    start = text.index(span)
    first, last = complete_pairs(text, start, start + len(span))
    assert text[first:last] == completed


def test_names_that_look_like_others_are_escaped() -> None:
    assert (
        displayed_name("fdp.\u202etxt, a\u2215b\uff0fc, \u0645\u200f.md")
        == "fdp.\\u202etxt, a\\u2215b\\uff0fc, \u0645\\u200f.md"
    )
    assert displayed_name("Straße/år–2024.md") == "Straße/år–2024.md"
