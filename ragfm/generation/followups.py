"""Follow-up questions: make a question that depends on earlier ones stand alone, for the search and the prompt.

The documents tell whether a question depends on the one before, in any language: then both questions as one text are
closer to some passage than the question alone, and both are searched and asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from ragfm.core.errors import TooLongError
from ragfm.core.text import QUESTION_MARKS
from ragfm.core.types import Message
from ragfm.generation.small_talk import GREETING

MIN_GAIN = 0.08
"""Gain of the cosine from which a question depends on the one before.

The right document is first for 73 of 76 labelled follow-ups (39 without the earlier question, 75 always with it) and 16
of 19 changes of topic (17, 7).
"""
_MAX_TURNS = 8


class Turn(NamedTuple):
    """A question of a conversation, the index of its message, and its answer, empty if there is none."""

    at: int
    question: str
    answer: str


def turns_of(history: Sequence[Message]) -> list[Turn]:
    """The questions of a conversation, oldest first, without small talk."""
    turns: list[Turn] = []
    for at, message in enumerate(history):
        if message.role == "user":
            turns.append(Turn(at, message.text, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = turns[-1]._replace(answer=message.text)
    return [turn for turn in turns if turn.question.strip() and turn.answer != GREETING]


def stand_alone(question: str, history: Sequence[Message], closeness: Callable[[str], float]) -> str:
    """The stand-alone form of a question: behind the ones that it depends on; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first; `closeness` is the cosine of a text and the passage nearest to it.
    """
    topic: list[str] = []
    for turn in turns_of(history)[-_MAX_TURNS:]:
        topic = _topic(turn.question, topic, closeness)
    return _joined(_topic(question, topic, closeness))


def _topic(question: str, earlier: Sequence[str], closeness: Callable[[str], float]) -> list[str]:
    """The question, behind the first and the last one of the earlier topic if it depends on them."""
    together = [*earlier[:1], *earlier[1:][-1:], question]
    with suppress(TooLongError):
        if earlier and closeness(_joined(together)) - closeness(question) >= MIN_GAIN:
            return together
    return [question]


def _joined(questions: Sequence[str]) -> str:
    *earlier, last = questions
    return " ".join([*(one if one.endswith((*QUESTION_MARKS, ".", "!")) else f"{one}?" for one in earlier), last])
