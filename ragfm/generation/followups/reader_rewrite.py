"""Follow-ups rewritten by the reader, one line under a grammar; what it says is checked before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Sampling
from ragfm.generation.followups.noun_phrases import (
    AUXILIARIES,
    DETERMINERS,
    PREPOSITIONS,
    PRONOUNS,
    QUESTIONS,
    split_words,
)
from ragfm.generation.prompt import neutralize_control_tokens

if TYPE_CHECKING:
    from ragfm.core.types import Reader
    from ragfm.generation.followups.english_rules import Turn

__all__ = ["rewrite_with_reader"]

GRAMMAR = 'root ::= [^ \\n?] [^\\n?]* "?"'
_TOKENS = 64
_TURNS = 2  # that it is shown
_ANSWER = 300  # characters of an answer that it is shown
_LONGER = 3  # times as long as the last two questions it may get
_NEW = 2  # words that neither the question nor the conversation has

_SYSTEM = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation. "
    "Change as little as you can. A question that can be understood alone stays as it is."
)
_EXAMPLES = (
    ("Q: When does the museum open?\nA: At ten o'clock.\nQ: And on Mondays?", "When does the museum open on Mondays?"),
    ("Q: Who made the clock?\nA: Anna Ritter.\nQ: Where was she born?", "Where was Anna Ritter born?"),
    ("Q: How much is a ticket?\nA: Nine euros.\nQ: Where can I park?", "Where can I park?"),
)
_LEANING = frozenset("it its they them their that this those these one ones he she him his her there".split())
_EMPTY = (
    _LEANING | PREPOSITIONS | AUXILIARIES | PRONOUNS | DETERMINERS | QUESTIONS
    | frozenset("and or but so not then also too else much many long first second third last other".split())
)  # fmt: skip


def rewrite_with_reader(question: str, before: Sequence[Turn], reader: Reader) -> str | None:
    """The question as the reader makes it stand alone; None where what it says can't be meant.

    Raises UnsupportedError for a reader that takes no grammar.
    """
    talk = [f"Q: {turn.question}\nA: {turn.answer[:_ANSWER]}" for turn in before[-_TURNS:]]
    messages = [Message("system", _SYSTEM)]
    for given, wanted in _EXAMPLES:
        messages += [Message("user", given), Message("assistant", wanted)]
    messages.append(Message("user", neutralize_control_tokens("\n".join([*talk, f"Q: {question}"]))))
    try:
        with reader.stream(messages, Sampling(max_tokens=_TOKENS, grammar=GRAMMAR)) as stream:
            said = "".join(stream).strip()
    except TooLongError:
        return None
    return said if stream.finish_reason == "stop" and _is_meant(said, question, before) else None


def _is_meant(said: str, question: str, before: Sequence[Turn]) -> bool:
    """Whether it is neither empty nor long, keeps the question's words, and brings in hardly any of its own."""
    asked, words = _content(question), _content(said)
    known = asked.union(*(_content(f"{turn.question} {turn.answer}") for turn in before))
    return (
        bool(words)
        and len(said) <= _LONGER * (len(question) + len(before[-1].question))
        and 2 * len(asked & words) >= len(asked)
        and len(words - known) <= _NEW
    )


def _content(text: str) -> set[str]:
    return {word.text.rstrip("s") for word in split_words(text) if word.text[0].isalnum() and word.text not in _EMPTY}
