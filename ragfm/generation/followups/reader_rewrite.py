"""Rewrite follow-up questions with the reader: one line under a grammar, checked before it is used.

Small readers cannot do this: they repeat the question or answer it. `can_rewrite` finds out with a few fixed dialogues.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

from ragfm.core.cache import cache_folder, read_json, replace_file
from ragfm.core.errors import TooLongError, UnsupportedError
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.followups.english_rules import Turn
from ragfm.generation.prompt import neutralize_control_tokens

GRAMMAR = 'root ::= [^ \\n?] [^\\n?]* "?"'
_MAX_TOKENS = 64
_SHOWN_TURNS = 2
_MAX_ANSWER = 300  # characters of each answer in the prompt
_MAX_GROWTH = 3  # relative to the length of the last two questions
_MAX_NEW_WORDS = 1  # that neither the question nor the conversation has

_SYSTEM = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation. "
    "Change as little as you can. A question that can be understood alone stays as it is."
)
_EXAMPLES = (
    ("Q: When does the museum open?\nA: At ten o'clock.\nQ: And on Mondays?", "When does the museum open on Mondays?"),
    ("Q: Who made the clock?\nA: Anna Ritter.\nQ: Where was she born?", "Where was Anna Ritter born?"),
    ("Q: How much is a ticket?\nA: Nine euros.\nQ: Where can I park?", "Where can I park?"),
)
_FUNCTION_WORDS = frozenset(
    """
    a about also am an and any are at be been but by can could did do does else first for from had has have he her him
    his how i if in into is it its just last long many may me more much must my no not of on one ones or other our per
    same second she should so some than that the their them then there these they third this those to too us was we
    were what when where which who whom whose why will with would you your
    """.split()
)


class _Dialogue(NamedTuple):
    """A conversation whose last question has to be rewritten with the words `has` and without the words `lacks`."""

    question: str
    answer: str
    follow_up: str
    has: str
    lacks: str


_CHECK = (
    _Dialogue("Is the pool open on Sundays?", "Yes, from nine [1].", "And the sauna?", "sauna open sundays", "pool"),
    _Dialogue("Who repairs the bicycles?", "Tom Weaver does [2].", "Where does he live?", "tom weaver live", "he"),
    _Dialogue(
        "How much is a day ticket?", "Nine euros [1].", "Who designed the bridge?", "who designed bridge", "ticket"
    ),
    _Dialogue("Where is the old mill?", "On the Aller [1].", "When was it built?", "when mill built", "it aller"),
    _Dialogue(
        "Which rooms can I rent?",
        "The Oak Room and the Elm Room [1].",
        "How large is the second one?",
        "large elm",
        "oak",
    ),
    _Dialogue("What did Nordin earn in 2019?", "40 million [1].", "What about Karsten?", "karsten earn 2019", "nordin"),
)


_BUNDLED = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # the bundled reader fails the check


def can_rewrite(reader: Reader) -> bool:
    """Whether a reader rewrites a few fixed dialogues well. The result is stored for the model's file.

    Always False for the bundled reader, and for readers without an `identity` or without grammars.
    """
    identity: str | None = getattr(reader, "identity", None)
    if identity is None or identity == _BUNDLED:
        return False
    file = cache_folder() / "rewrites.json"
    key = blake2b(repr((identity, _SYSTEM, _EXAMPLES, _CHECK)).encode(), digest_size=16).hexdigest()
    known = read_json(file)
    if key not in known:
        passed = True
        for dialogue in _CHECK:  # stops at the first failure, so a small reader is asked once or twice
            try:
                output = rewrite_with_reader(dialogue.follow_up, [Turn(dialogue.question, dialogue.answer)], reader)
            except UnsupportedError:
                output = None
            words = set(_words(output or ""))
            passed = words.issuperset(dialogue.has.split()) and words.isdisjoint(dialogue.lacks.split())
            if not passed:
                break
        known = {**read_json(file), key: passed}
        with suppress(OSError):  # then the check runs again in the next process
            replace_file(file, json.dumps(known).encode())
    return bool(known[key])


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
        and asked <= words
        and len(words - known) <= _MAX_NEW_WORDS
    )
    return output if plausible else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _content_words(text: str) -> set[str]:
    return {word.rstrip("s") for word in _words(text) if word not in _FUNCTION_WORDS}
