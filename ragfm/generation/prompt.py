"""The prompt: numbered passages and a question, as messages that fit the reader's window.

Counted with the reader's own tokenizer, after its chat template; a passage is shown whole or not at all.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import ContextOverflowError
from ragfm.core.types import Dropped, Hit, Message, Reader
from ragfm.generation.prompt_template import Strategy, Words, load_strategy, numbered
from ragfm.retrieval.passages import passage_with

__all__ = [
    "Earlier",
    "Prompt",
    "build_prompt",
    "prompt_beginning",
    "prompt_fingerprint",
    "without_control_tokens",
]

_TURNS = 4  # of the history are in a prompt: they stand behind the passages, and are evaluated for each question


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reader is given: `shown` are the passages in it, with their number `n`; hits in `dropped` aren't."""

    messages: tuple[Message, ...]
    shown: tuple[Hit, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True)
class Earlier:
    """A question of before in its stand-alone form, with the hits for it; `at` is its place in the history."""

    question: str
    hits: Sequence[Hit]
    at: int


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    reader: Reader,
    *,
    history: Sequence[Message] = (),
    earlier: Sequence[Earlier] = (),
    answer_tokens: int = 256,
    arrange: Callable[[Sequence[Hit]], Sequence[Hit]] = tuple,
    only: bool = True,
    ask: str | None = None,
    strategy: Strategy | None = None,
) -> Prompt:
    """The messages that ask `reader` to answer `question` from `hits`, with `answer_tokens` left for the answer.

    Hits that don't fit are dropped whole, lowest rank first. `arrange` makes passages of the others, which are numbered
    from 1; by default each is one, in rank order. `history` holds the turns before, oldest first, of which the last few
    stand between passages and question, fewer where they take more than half of the room. Raises ContextOverflowError
    where the question does not fit even on its own. `only` forbids the reader to answer from what it knows itself.
    `strategy` is `zero-shot` by default; `ask` stands before the question, in place of its call for an answer.

    A follow-up goes on with `earlier` questions, the last ones of the history: the passages of each stay where they
    were shown, and new ones follow. So a reader that has the prompt before in memory evaluates no passage again. Where
    that does not fit any more, it is as if there were none.
    """
    strategy = strategy or load_strategy()
    words, room = strategy.words(only=only), reader.context_tokens - answer_tokens
    layout = _Layout(reader, room, history, arrange, strategy, words, ask)
    now = Earlier(question, hits, len(history))
    found: Prompt | None = None
    for turn in (*earlier, now):
        found = (found and layout.further(found, turn)) or layout.anew(turn)
    if found is None:
        tokens = reader.count_tokens(layout.messages(now))
        raise ContextOverflowError(
            f"The question makes a prompt of {tokens} tokens, and the reader has room for {room}"
            f" ({reader.context_tokens} less {answer_tokens} for the answer).",
            "Ask a shorter question, lower ask.answer_tokens, or give the reader a larger window (ask.context_tokens).",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things stand in the prompts of one conversation, none of which has more than `room` tokens."""

    reader: Reader
    room: int
    history: Sequence[Message]
    arrange: Callable[[Sequence[Hit]], Sequence[Hit]]
    strategy: Strategy
    words: Words
    ask: str | None

    def anew(self, turn: Earlier) -> Prompt | None:
        """A prompt with the passages of one turn; None where its question does not fit."""
        past = self._recent(turn)

        def overflows(k: int) -> bool:
            return self._overflows(self.messages(turn, self.arrange(turn.hits[:k]), past))

        shown = len(turn.hits)
        if overflows(shown):
            # A shorter prompt never has more tokens, so the number of passages can be found by bisection.
            shown = bisect_left(range(shown), True, key=overflows) - 1
        if shown < 0:
            return None
        passages = self.arrange(turn.hits[:shown])
        why = f"does not fit: the reader has room for {self.room} tokens, which {shown} hits take up"
        return Prompt(
            messages=tuple(self.messages(turn, passages, past)),
            shown=_numbered(passages),
            dropped=tuple(Dropped(hit.chunk_id, why) for hit in turn.hits[shown:]),
        )

    def further(self, before: Prompt, turn: Earlier) -> Prompt | None:
        """One with the passages of the prompt before, then those that are new; None where it does not fit."""
        new = self.arrange([hit for hit in turn.hits if passage_with(hit, before.shown) is None])
        passages = [*before.shown, *new]
        messages = self.messages(turn, passages, self._recent(turn))
        messages[:-1] = before.messages[:-1]  # examples that were picked stay, too
        return None if self._overflows(messages) else Prompt(tuple(messages), _numbered(passages), ())

    def messages(self, turn: Earlier, passages: Sequence[Hit] = (), past: Sequence[Message] = ()) -> list[Message]:
        """Those that ask a turn's question."""
        opening = [Message("system", self.words.system), *self.strategy.turns(turn.question)]
        return _messages(opening, turn.question, passages, past, self.words, self.ask)

    def _recent(self, turn: Earlier) -> Sequence[Message]:
        """The last turns before one, as many as fit. A turn begins with the user's message."""
        history = self.history[: turn.at]
        turns = [at for at, message in enumerate(history) if message.role == "user"][-_TURNS:]

        def fits(first: int) -> bool:
            return self.reader.count_tokens(self.messages(turn, (), history[first:])) <= self.room // 2

        first = bisect_left(turns, True, key=fits)
        return history[turns[first] :] if first < len(turns) else ()

    def _overflows(self, messages: Sequence[Message]) -> bool:
        return self.reader.count_tokens(messages) > self.room


def prompt_beginning(strategy: Strategy, *, only: bool = True) -> list[Message]:
    """What all prompts of a strategy begin with: it depends on no question and no document."""
    shots = [turn for shot in strategy.shots for turn in shot.turns]
    return _harmless([Message("system", strategy.words(only=only).system), *shots])


def prompt_fingerprint(*, only: bool = True, strategy: Strategy | None = None) -> str:
    """A hash of the words and the layout of all that a prompt has beside question and passages.

    An adapter has learned to answer one prompt; with another it does harm. It learns questions that have no history,
    so that this counts as it did before: as a turn of stand-ins.
    """
    hits = [Hit("uri", "text", 0, 4, n, None, {}, context=context) for n, context in enumerate(["", "context"])]
    past = (Message("user", "before"), Message("assistant", ABSTENTION))
    strategy = strategy or load_strategy()
    words = strategy.words(only=only)
    shots = [turn for shot in strategy.shots for turn in shot.turns]
    asked = _messages([Message("system", words.system), *shots, *past], "q", hits, (), words)
    messages = [[message.role, message.content] for message in asked]
    return blake2b(json.dumps(messages).encode() + strategy.fingerprint.encode(), digest_size=16).hexdigest()


def _messages(
    opening: Sequence[Message], question: str, hits: Sequence[Hit], past: Sequence[Message], words: Words,
    ask: str | None = None,
) -> list[Message]:  # fmt: skip
    """The user's message behind those that it opens with: passages, what was said, and what is asked."""
    parts = numbered([without_markers(f"{hit.context}\n{hit.text}" if hit.context else hit.text) for hit in hits])
    if past:  # as text: where it was turns of the chat, small readers answered worse
        lines = "\n".join(f"{'Q' if message.role == 'user' else 'A'}: {message.content}" for message in past)
        parts.append(without_markers(lines))
    parts.append(words.ask.replace("{question}", question) if ask is None else f"{ask}{question}")
    return _harmless([*opening, Message("user", "\n\n".join(parts))])


def _numbered(passages: Sequence[Hit]) -> tuple[Hit, ...]:
    return tuple(replace(passage, n=n) for n, passage in enumerate(passages, 1))


def _harmless(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, content=without_control_tokens(message.content)) for message in messages]


# Readers tokenise the rendered template with its control tokens on, so a document that holds `<|im_end|>`, `</s>` or
# `[/INST]` could end its turn and speak as the system or the user. A zero-width non-joiner after the first sign leaves
# the words readable but makes them ordinary text. It does not stop instructions in plain words.
_CONTROL_TOKEN = re.compile(r"<(?=[|｜]|/?\w+>)|\[(?=/?[A-Z][A-Z_]+\])")


def without_control_tokens(text: str) -> str:
    """The text with no word that a chat template could take for the end of a turn."""
    return _CONTROL_TOKEN.sub("\\g<0>\u200c", text)


# A line of a document that begins like a passage ("[3] …") would be a passage of its own to the reader.
_BREAKS, _BLANKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029", r"\ \t\xa0\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_NUMBERED = re.compile(rf"(?:\A|[{_BREAKS}])[{_BLANKS}]*\[(?=\s*\d+\s*\])")


def without_markers(text: str) -> str:
    """The text with no line that a reader could take for the beginning of a passage."""
    return _NUMBERED.sub("\\g<0>\u200c", text)
