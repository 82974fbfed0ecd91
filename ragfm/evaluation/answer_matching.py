"""Whether an answer is one of the right ones: exact match and token F1 as SQuAD's own script has them, and containment.

Rajpurkar et al. 2016. Markers of citations don't count as words.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragfm.core.types import Hit
    from ragfm.evaluation.question_sets import Question

MARKER = re.compile(r"\[(\d+)\]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_UNSPACED = re.compile(
    r"([\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af])"
)
"""A sign of Chinese or Japanese, which put no spaces between words."""
_VERDICTS = frozenset({"yes", "no", "maybe", "true", "false"})


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and markers, as SQuAD's own script does it."""
    plain = "".join(sign for sign in MARKER.sub(" ", text).lower() if sign not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def token_f1(answer: str, right: str) -> float:
    """The harmonic mean of the shares of common words, each word as often as it stands there."""
    words, wanted = normalised(answer).split(), normalised(right).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether a text has one of the answers in it, word for word; in Chinese and Japanese sign for sign."""
    plain = f" {_parted(text)} "
    return any(f" {words} " in plain for words in map(_parted, answers) if words)


def is_verdict(answers: Sequence[str]) -> bool:
    """Whether the right answers are yes, no and their like: no text holds them, however often the words stand there."""
    return bool(answers) and all(normalised(answer) in _VERDICTS for answer in answers)


def answered_by(passage: Hit, question: Question, answers: Sequence[str]) -> bool:
    """Whether a passage holds one of the answers; for a verdict, whether it is of a document that was asked about."""
    if is_verdict(answers):
        return any(gold.uri == passage.uri for gold in question.gold)
    return holds(passage.text, answers)


def _parted(text: str) -> str:
    """As `normalised`, with a space for each typographic sign: SQuAD's own script knows those of ASCII alone."""
    if not text.isascii():
        signs = unicodedata.normalize("NFC", text)
        signs = "".join(s if s.isascii() or unicodedata.category(s)[0] not in "PS" else " " for s in signs)
        text = _UNSPACED.sub(r" \1 ", signs)
    return normalised(text)
