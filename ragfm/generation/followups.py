"""Follow-up questions: make a question that depends on earlier ones stand alone, for the search and the prompt.

The documents tell whether a question depends on the one before, in any language: then both questions as one text are
closer to some passage than the question alone, and both are searched and asked. A reader may rewrite them as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeAlias

from ragfm.core.errors import TooLongError
from ragfm.core.text import QUESTION_MARKS
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.prompt import neutralize_control_tokens
from ragfm.generation.small_talk import GREETING

Followup: TypeAlias = Literal["auto", "reader", "off"]
MIN_GAIN = 0.08
"""Gain of the cosine from which a question depends on the one before.

The right document is first for 73 of 76 labelled follow-ups (39 without the earlier question, 75 always with it) and 16
of 19 changes of topic (17, 7).
"""
_MAX_TURNS = 8
GRAMMAR = 'root ::= [^ \\n?] [^\\n?]* "?"'
_MAX_TOKENS = 64
_SHOWN_TURNS = 2
_MAX_ANSWER = 300  # characters of each answer in the prompt
_MAX_GROWTH = 3  # relative to the length of the last two questions
_MAX_NEW_WORDS = 1  # of five letters or more: words of grammar are shorter
_SYSTEM = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation. "
    "Change as little as you can. A question that can be understood alone stays as it is."
)
_EXAMPLES = (
    ("Q: When does the museum open?\nA: At ten o'clock.\nQ: And on Mondays?", "When does the museum open on Mondays?"),
    ("Q: Who made the clock?\nA: Anna Ritter.\nQ: Where was she born?", "Where was Anna Ritter born?"),
    ("Q: How much is a ticket?\nA: Nine euros.\nQ: Where can I park?", "Where can I park?"),
)


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


def stand_alone(
    question: str,
    history: Sequence[Message],
    closeness: Callable[[str], float],
    *,
    how: Followup = "auto",
    reader: Reader | None = None,
) -> str:
    """The stand-alone form of a question; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first; `closeness` is the cosine of a text and the passage nearest to it.
    A question that depends on the one before follows it. With `reader`, the reader rewrites all questions; an output
    that is not plausible is not used. Raises UnsupportedError for `reader` with a reader without grammars.
    """
    topic: list[str] = []
    before: list[tuple[str, str]] = []  # stand-alone forms with their answers
    for turn in turns_of(history)[-_MAX_TURNS:]:
        topic = _topic(turn.question, topic, closeness)
        before.append((_joined(topic), turn.answer))
    if not before or how == "off":
        return question
    rewritten = _rewrite(question, before, reader) if reader and how == "reader" else None
    return rewritten or _joined(_topic(question, topic, closeness))


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


def _rewrite(question: str, before: Sequence[tuple[str, str]], reader: Reader) -> str | None:
    """The reader's stand-alone form of a question, one line under a grammar; None if it is not plausible."""
    conversation = [f"Q: {asked}\nA: {answer[:_MAX_ANSWER]}" for asked, answer in before[-_SHOWN_TURNS:]]
    messages = [Message("system", _SYSTEM)]
    for example, rewritten in _EXAMPLES:
        messages += [Message("user", example), Message("assistant", rewritten)]
    messages.append(Message("user", neutralize_control_tokens("\n".join([*conversation, f"Q: {question}"]))))
    try:
        with reader.stream(messages, Sampling(max_tokens=_MAX_TOKENS, grammar=GRAMMAR)) as stream:
            output = "".join(stream).strip()
    except TooLongError:
        return None
    known = {word for text in (question, *(text for turn in before for text in turn)) for word in _words(text)}
    new = [word for word in set(_words(output)) - known if len(word) >= 5]
    plausible = (
        stream.finish_reason == "stop"
        and output
        and len(output) <= _MAX_GROWTH * (len(question) + len(before[-1][0]))
        and all(_words(output) != _words(asked) for asked, _ in before)
        and len(new) <= _MAX_NEW_WORDS
    )
    return output if plausible else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
