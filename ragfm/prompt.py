"""The prompt: numbered passages and a question, as messages that fit the reader's window.

Counted with the reader's own tokenizer, after its chat template; a passage is shown whole or not at all.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

from ragfm.errors import ContextOverflowError
from ragfm.types import Dropped, Hit, Message, Reader

__all__ = ["ABSTENTION", "Prompt", "build_prompt", "is_abstention", "prompt_fingerprint", "without_control_tokens"]

ABSTENTION = "I don't know."
"""The answer where the passages don't have one."""

# docs/decisions/003-the-answer-prompt.md has the figures behind the wording and the order.
SYSTEM = (
    f'You answer from the passages, citing them like [1]. If the passages do not have the answer, say "{ABSTENTION}"'
)
ASK = "Using only the passages above, answer in one short sentence: "
OPEN_SYSTEM = "Where passages help, you answer from them, citing them like [1]; else you answer from what you know."
OPEN_ASK = "Using the passages above where they help, answer in one short sentence: "


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reader is given: `shown` are the passages in it, with their number `n`; hits in `dropped` aren't."""

    messages: tuple[Message, ...]
    shown: tuple[Hit, ...]
    dropped: tuple[Dropped, ...]


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    reader: Reader,
    *,
    history: Sequence[Message] = (),
    answer_tokens: int = 256,
    arrange: Callable[[Sequence[Hit]], Sequence[Hit]] = tuple,
    only: bool = True,
    ask: str | None = None,
) -> Prompt:
    """The messages that ask `reader` to answer `question` from `hits`, with `answer_tokens` left for the answer.

    Hits that don't fit are dropped whole, lowest rank first. `arrange` makes passages of the others, which are numbered
    from 1; by default each is one, in rank order. `history` holds the turns before, oldest first; where it and the
    question take more than half of the room, its oldest turns are left out. Raises ContextOverflowError where the
    question does not fit even on its own. `only` forbids the reader to answer from what it knows itself. `ask` stands
    before the question, in place of the call for one short sentence.
    """
    room = reader.context_tokens - answer_tokens
    past = _recent(history, question, reader, room // 2)
    messages = partial(_messages, question, only=only, ask=ask)

    def overflows(k: int) -> bool:
        return reader.count_tokens(messages(arrange(hits[:k]), past)) > room

    shown = len(hits)
    if overflows(shown):
        # A shorter prompt never has more tokens, so the number of passages can be found by bisection.
        shown = bisect_left(range(shown), True, key=overflows) - 1
    if shown < 0:
        tokens = reader.count_tokens(messages((), past))
        raise ContextOverflowError(
            f"The question makes a prompt of {tokens} tokens, and the reader has room for {room}"
            f" ({reader.context_tokens} less {answer_tokens} for the answer).",
            "Ask a shorter question, leave less for the answer, or take a reader with a larger window.",
        )
    passages = arrange(hits[:shown])
    return Prompt(
        messages=tuple(messages(passages, past)),
        shown=tuple(replace(passage, n=n) for n, passage in enumerate(passages, 1)),
        dropped=tuple(
            Dropped(hit.chunk_id, f"does not fit: the reader has room for {room} tokens, which {shown} hits take up")
            for hit in hits[shown:]
        ),
    )


def prompt_fingerprint(*, only: bool = True) -> str:
    """A hash of the words and the layout of all that a prompt has beside question and passages.

    An adapter has learned to answer one prompt; with another it does harm.
    """
    hits = [Hit("uri", "text", 0, 4, n, None, {}, context=context) for n, context in enumerate(["", "context"])]
    past = (Message("user", "before"), Message("assistant", ABSTENTION))
    messages = [[message.role, message.content] for message in _messages("q", hits, past, only=only)]
    return blake2b(json.dumps(messages).encode(), digest_size=16).hexdigest()


def _recent(history: Sequence[Message], question: str, reader: Reader, room: int) -> Sequence[Message]:
    """The most recent turns that fit. A turn begins with the user's message: templates want the roles to alternate."""
    turns = [i for i, message in enumerate(history) if message.role == "user"]

    def fits(start: int) -> bool:
        return reader.count_tokens(_messages(question, (), history[start:])) <= room

    first = bisect_left(turns, True, key=fits)
    return history[turns[first] :] if first < len(turns) else ()


def _messages(
    question: str, hits: Sequence[Hit], history: Sequence[Message], *, only: bool = True, ask: str | None = None
) -> list[Message]:  # fmt: skip
    passages = [
        f"[{n}] {hit.context}\n{hit.text}" if hit.context else f"[{n}] {hit.text}" for n, hit in enumerate(hits, 1)
    ]
    request = Message("user", "\n\n".join([*passages, f"{ask or (ASK if only else OPEN_ASK)}{question}"]))
    messages = [Message("system", SYSTEM if only else OPEN_SYSTEM), *history, request]
    return [replace(message, content=without_control_tokens(message.content)) for message in messages]


# Readers tokenise the rendered template with its control tokens on, so a document that holds `<|im_end|>`, `</s>` or
# `[/INST]` could end its turn and speak as the system or the user. A zero-width non-joiner after the first sign leaves
# the words readable but makes them ordinary text. It does not stop instructions in plain words.
_CONTROL_TOKEN = re.compile(r"<(?=[|｜]|/?\w+>)|\[(?=/?[A-Z][A-Z_]+\])")


def without_control_tokens(text: str) -> str:
    """The text with no word that a chat template could take for the end of a turn."""
    return _CONTROL_TOKEN.sub("\\g<0>\u200c", text)


_SOURCES = r"(?:\w+\ )?(?:passages?|text|texts|context|documents?|sources?|information|excerpts?)"
_SAY = r"(?:contain|mention|say|provide|state|specify|include|give|have|answer|tell|explain|indicate|describe)"
_ABSTAINS = re.compile(
    rf"""(?:(?:i(?:'|\ a)m\ sorry|sorry|unfortunately|(?:based\ on|according\ to)\ [\w\ ]+?)[,.]?\ (?:but\ )?)?
    (?: i(?:'m|\ am)\ not\ (?:sure|certain)
      | i\ (?:do\ not|don't)\ (?:know|have\ (?:enough|any|that|the)\b)
      | i\ (?:cannot|can't|could\ not|couldn't|am\ unable\ to|am\ not\ able\ to)\ (?:answer|find|determine|tell|say)
      | none\ of\ the\ {_SOURCES}
      | (?:the|these|those)\ {_SOURCES}(?:\ (?:above|below|given|provided))?
        \ (?:(?:do(?:es)?\ not|don't|doesn't)\ (?:\w+ly\ )?{_SAY} | {_SAY}s?\ (?:no|nothing) | ha(?:s|ve)\ no)
      | there\ is\ (?:no|not\ enough)\ (?:information|mention|answer)
      | (?:the|this|that)\ (?:answer|information)\ (?:is\ not|isn't|cannot\ be|can't\ be|could\ not\ be)
      | (?:it|this|that)\ is\ not\ (?:mentioned|stated|specified|given|provided|known)
    )\b""",
    re.VERBOSE,
)
_TURN = re.compile(r"\b(?:but|however|although|though|except|instead|only)\b")


def is_abstention(text: str) -> bool:
    """Whether an answer as a whole says that the answer is not known, in these or similar words.

    An answer that says so of one thing and then answers another is not an abstention.
    """
    plain = re.sub(r"\s*\[\d+\]", "", text.replace("’", "'")).strip().lower()
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+|\n+", plain) if sentence.strip()]
    return bool(sentences) and all(
        (match := _ABSTAINS.match(sentence)) and not _TURN.search(sentence, match.end()) for sentence in sentences
    )
