"""The sentences that answers say about themselves."""

from __future__ import annotations

import pytest
from ragfm_indexes.text_analysis import STOP_WORDS

from ragfm.core.abstention import is_abstention
from ragfm.core.status_sentences import ENGLISH, status_sentences


def test_all_languages_of_stop_words_have_sentences_of_their_own() -> None:
    for language in STOP_WORDS.keys() - {"en"}:
        sentences = status_sentences(language)
        assert all(sentences)
        assert not set(sentences) & set(ENGLISH)
        assert is_abstention(sentences.unknown)
        assert not is_abstention(sentences.quoting)


@pytest.mark.parametrize(
    "answer",
    [
        "I don't eat meat because of my religion [1].",
        "I do not accept returns after 30 days [1].",
        "I cannot recommend the soup [1].",
        "It is not allowed to store passwords in the source code [1].",
        "The documents must not contain personal information [2].",
    ],
)
def test_an_answer_with_a_negation_is_no_abstention(answer: str) -> None:
    assert not is_abstention(answer)


def test_unknown_languages_get_english() -> None:
    assert status_sentences("simple") == status_sentences(None) == status_sentences("en") == ENGLISH
