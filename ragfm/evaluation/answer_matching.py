"""Compare answers with right answers: exact match and token F1 as in the SQuAD script, and containment.

Rajpurkar et al. 2016. Citation markers are not words.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ragfm.core.types import Hit
from ragfm.evaluation.question_sets import Question

MARKER = re.compile(r"\[(\d+)\]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
# A character of Chinese or Japanese, which write no spaces between words.
_UNSPACED = re.compile(
    r"([\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af])"
)
_YES_NO = frozenset({"yes", "no", "maybe", "true", "false"})


def normalize(text: str) -> str:
    """Lower-case a text and remove punctuation, articles and citation markers, as the SQuAD script does."""
    plain = "".join(character for character in MARKER.sub(" ", text).lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def token_f1(answer: str, right: str) -> float:
    """F1 of the words of an answer against those of a right answer, in [0, 1]."""
    words, right_words = normalize(answer).split(), normalize(right).split()
    if not words or not right_words:
        return float(words == right_words)
    common = sum((Counter(words) & Counter(right_words)).values())
    return 2 * common / (len(words) + len(right_words))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text contains one of the answers as whole words; in Chinese and Japanese as whole characters."""
    plain = f" {normalize_unicode(text)} "
    return any(f" {words} " in plain for words in map(normalize_unicode, answers) if words)


def is_yes_no(answers: Sequence[str]) -> bool:
    """Whether all answers are yes, no, maybe, true or false. A passage cannot be checked for such an answer."""
    return bool(answers) and all(normalize(answer) in _YES_NO for answer in answers)


def passage_has_answer(passage: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether a passage contains one of the answers; for yes/no answers, whether its document is among the gold."""
    if is_yes_no(answers):
        return any(gold.uri == passage.uri for gold in question.gold)
    return contains_answer(passage.text, answers)


def normalize_unicode(text: str) -> str:
    """Normalize, and also replace non-ASCII punctuation and symbols, which the SQuAD script keeps, by spaces."""
    if not text.isascii():
        composed = unicodedata.normalize("NFC", text)
        spaced = "".join(c if c.isascii() or unicodedata.category(c)[0] not in "PS" else " " for c in composed)
        text = _UNSPACED.sub(r" \1 ", spaced)
    return normalize(text)
