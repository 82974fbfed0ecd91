"""Rewrite follow-up questions with the reader: one line under a grammar, checked before it is used."""

from __future__ import annotations

from collections.abc import Sequence

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.followups.english_rules import Turn
from ragfm.generation.followups.noun_phrases import (
    AUXILIARIES,
    DETERMINERS,
    PREPOSITIONS,
    PRONOUNS,
    QUESTIONS,
    split_words,
)
from ragfm.generation.prompt import neutralize_control_tokens

GRAMMAR = 'root ::= [^ \\n?] [^\\n?]* "?"'
_MAX_TOKENS = 64
_SHOWN_TURNS = 2
_MAX_ANSWER = 300  # characters of each answer in the prompt
_MAX_GROWTH = 3  # relative to the length of the last two questions
_MAX_NEW_WORDS = 2  # that neither the question nor the conversation has

_SYSTEM = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation. "
    "Change as little as you can. A question that can be understood alone stays as it is."
)
_EXAMPLES = (
    ("Q: When does the museum open?\nA: At ten o'clock.\nQ: And on Mondays?", "When does the museum open on Mondays?"),
    ("Q: Who made the clock?\nA: Anna Ritter.\nQ: Where was she born?", "Where was Anna Ritter born?"),
    ("Q: How much is a ticket?\nA: Nine euros.\nQ: Where can I park?", "Where can I park?"),
)
_REFERRING = frozenset("it its they them their that this those these one ones he she him his her there".split())
_OTHER_WORDS = frozenset("and or but so not then also too else much many long first second third last other".split())
_FUNCTION_WORDS = _REFERRING | PREPOSITIONS | AUXILIARIES | PRONOUNS | DETERMINERS | QUESTIONS | _OTHER_WORDS


def rewrite_with_reader(question: str, before: Sequence[Turn], reader: Reader) -> str | None:
    """The reader's stand-alone form of a question; None if its output is not plausible.

    Raises UnsupportedError for a reader without grammars.
    """
    conversation = [f"Q: {turn.question}\nA: {turn.answer[:_MAX_ANSWER]}" for turn in before[-_SHOWN_TURNS:]]
    messages = [Message("system", _SYSTEM)]
    for example, rewritten in _EXAMPLES:
        messages += [Message("user", example), Message("assistant", rewritten)]
    messages.append(Message("user", neutralize_control_tokens("\n".join([*conversation, f"Q: {question}"]))))
    try:
        with reader.stream(messages, Sampling(max_tokens=_MAX_TOKENS, grammar=GRAMMAR)) as stream:
            output = "".join(stream).strip()
    except TooLongError:
        return None
    # Plausible output is neither empty nor long, keeps the question's words, and adds hardly any of its own.
    asked, words = _content_words(question), _content_words(output)
    known = asked.union(*(_content_words(f"{turn.question} {turn.answer}") for turn in before))
    plausible = (
        stream.finish_reason == "stop"
        and words
        and len(output) <= _MAX_GROWTH * (len(question) + len(before[-1].question))
        and 2 * len(asked & words) >= len(asked)
        and len(words - known) <= _MAX_NEW_WORDS
    )
    return output if plausible else None


def _content_words(text: str) -> set[str]:
    return {
        word.text.rstrip("s")
        for word in split_words(text)
        if word.text[0].isalnum() and word.text not in _FUNCTION_WORDS
    }
