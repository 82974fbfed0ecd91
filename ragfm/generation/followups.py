"""Follow-up questions: make a question that depends on earlier ones stand alone, for the search and the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.followup_rules import rewrite_in_english
from ragfm.generation.prompt import neutralize_control_tokens
from ragfm.generation.small_talk import is_greeting

Followup: TypeAlias = Literal["auto", "reader", "off"]
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


def stand_alone(
    question: str, history: Sequence[Message], *, how: Followup = "auto", reader: Reader | None = None
) -> str:
    """The stand-alone form of a question; unchanged if it stands alone.

    `history` holds the earlier turns, oldest first. `auto` applies rules for English, which do not change other
    languages. With `reader`, the reader rewrites all questions; if its output is not plausible, the rules apply. Raises
    UnsupportedError for `reader` with a reader without grammars.
    """
    turns: list[tuple[str, str]] = []  # questions with their answers, empty if there is none
    for message in history:
        if message.role == "user":
            turns.append((message.text, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = (turns[-1][0], message.text)
    before: list[tuple[str, str]] = []
    for asked, answer in [turn for turn in turns if turn[0].strip() and not is_greeting(turn[0])][-_MAX_TURNS:]:
        before.append((rewrite_in_english(asked, *before[-1]) if before else asked, answer))
    if not before or how == "off":
        return question
    rewritten = _rewrite(question, before, reader) if reader and how == "reader" else None
    return rewritten or rewrite_in_english(question, *before[-1])


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
