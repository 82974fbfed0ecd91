"""The prompt: numbered passages and a question, as messages that fit the reader's window.

Tokens are counted by the reader, after its chat template. A passage is shown whole or not at all. For a reader with
vision, the picture of a figure follows its text, if it fits; else the text stands for it.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TypeAlias

from ragfm.core.abstention import ABSTENTION
from ragfm.core.errors import ContextOverflowError, UnsupportedError
from ragfm.core.types import Dropped, Hit, ImagePart, Message, Reader, embedded_text
from ragfm.generation.prompt_template import PromptTexts, Strategy, load_strategy, number_passages
from ragfm.retrieval.passages import passage_with

Widening: TypeAlias = tuple[Callable[[Sequence[Hit]], Sequence[Hit]], int]
"""Finds chunks around hits, and the tokens of all passages up to which they are shown."""

_MAX_TURNS = 4  # of the history in a prompt: they follow the passages, so no prefix cache has them


@dataclass(frozen=True, slots=True)
class Prompt:
    """A reader's prompt: its messages, the passages that it shows, numbered in `n`, and the hits that were dropped.

    `pictures` are the pictures of figures that it shows, by their hash. `dropped` also names the shown hits whose
    picture is left out.
    """

    messages: tuple[Message, ...]
    shown: tuple[Hit, ...]
    dropped: tuple[Dropped, ...]
    pictures: Mapping[str, ImagePart] = field(default_factory=dict)

    @property
    def pictured(self) -> frozenset[int]:
        """The numbers of the passages whose picture is shown."""
        return frozenset(hit.n for hit in self.shown if hit.n is not None and hit.image in self.pictures)

    @property
    def has_images(self) -> bool:
        """Whether it shows an image: of a figure, or of the user."""
        return any(message.images for message in self.messages)


@dataclass(frozen=True, slots=True)
class EarlierTurn:
    """An earlier question in its stand-alone form, its hits, and its index in the history.

    `images` are those that the user asks about; earlier ones are in the history.
    """

    question: str
    hits: Sequence[Hit]
    at: int
    images: Sequence[ImagePart] = ()


def build_prompt(
    question: str,
    hits: Sequence[Hit],
    reader: Reader,
    *,
    history: Sequence[Message] = (),
    earlier: Sequence[EarlierTurn] = (),
    answer_tokens: int = 256,
    arrange: Callable[[Sequence[Hit]], Sequence[Hit]] = tuple,
    documents_only: bool = True,
    instruction: str | None = None,
    strategy: Strategy | None = None,
    widening: Sequence[Widening] = (),
    images: Sequence[ImagePart] = (),
    picture_of: Callable[[str], ImagePart | None] | None = None,
) -> Prompt:
    """Build the messages that ask `reader` to answer `question` from `hits`.

    Hits that do not fit are dropped whole, lowest rank first. A picture is shown if there is room for it with the text
    of its hit, of all better ones, and their pictures; worse hits may have to give way. The last turns of the history
    are placed between passages and question, as many as fit in half of the room. A follow-up keeps the passages of
    `earlier` turns where they were shown and adds new ones after them, so that the reader's prefix cache has most of
    the prompt; if that does not fit, only the new passages are shown.

    Args:
        question: The question, stand-alone.
        hits: The passages, best first.
        reader: Counts tokens; its `context_tokens` are the window.
        history: Earlier messages, oldest first.
        earlier: The turns of the history that the question depends on.
        answer_tokens: Tokens of the window that are left for the answer.
        arrange: Turns hits into passages, which are numbered from 1. Default: each hit is one, in rank order.
        documents_only: Forbid the reader to answer from its own knowledge.
        instruction: Text before the question, instead of the strategy's request for an answer.
        strategy: Texts and examples. Default: `zero-shot`.
        widening: Finds chunks around hits, such as those next to them. As many as fit into a number of tokens, together
            with all other passages and without pictures, are shown too.
        images: Images that the user asks about.
        picture_of: Finds the picture of a figure by its hash, None if there is none any more; for a reader with vision.

    Raises ContextOverflowError if the question does not fit even without passages.

    """
    strategy = strategy or load_strategy()
    texts, room = strategy.texts(documents_only=documents_only), reader.context_tokens - answer_tokens
    layout = _Layout(reader, room, history, arrange, strategy, texts, instruction, widening, picture_of)
    now = EarlierTurn(question, hits, len(history), images)
    prompt: Prompt | None = None
    for turn in (*earlier, now):
        prompt = (prompt and layout.extend(prompt, turn)) or layout.start(turn)
    if prompt is None:
        tokens = reader.count_tokens(layout.messages(now))
        raise ContextOverflowError(
            f"The question is too long: without passages the prompt has {tokens} tokens, and the limit is {room} "
            f"({reader.context_tokens} minus {answer_tokens} for the answer).",
            "Ask a shorter question, lower ask.answer_tokens, or give the reader a larger window (ask.context_tokens).",
        )
    return prompt


@dataclass(frozen=True, slots=True)
class _Layout:
    """Lays out the prompts of one conversation; none exceeds `room` tokens."""

    reader: Reader
    room: int
    history: Sequence[Message]
    arrange: Callable[[Sequence[Hit]], Sequence[Hit]]
    strategy: Strategy
    texts: PromptTexts
    instruction: str | None
    widening: Sequence[Widening]
    picture_of: Callable[[str], ImagePart | None] | None

    def start(self, turn: EarlierTurn) -> Prompt | None:
        """A prompt with the passages of one turn; None if its question does not fit."""
        recent = self._recent(turn)
        pictures, left_out = self._choose_pictures(
            turn.hits, lambda at, shown: self.messages(turn, self.arrange(turn.hits[: at + 1]), recent, shown)
        )

        def overflows(k: int) -> bool:
            return self._overflows(self.messages(turn, self.arrange(turn.hits[:k]), recent, pictures))

        shown = len(turn.hits)
        if overflows(shown):
            # A shorter prompt never has more tokens, so bisection finds the number of passages.
            shown = bisect_left(range(shown), True, key=overflows) - 1
        if shown < 0:
            return None
        passages = self._fill_up(turn, turn.hits[:shown], recent, pictures)
        why = f"does not fit: the reader has room for {self.room} tokens, which {shown} hits take up"
        return Prompt(
            messages=tuple(self.messages(turn, passages, recent, pictures)),
            shown=_number(passages),
            dropped=(
                *(left_out[hit.chunk_id] for hit in turn.hits[:shown] if hit.chunk_id in left_out),
                *(Dropped(hit.chunk_id, why) for hit in turn.hits[shown:]),
            ),
            pictures={hit.image: pictures[hit.image] for hit in passages if hit.image in pictures},
        )

    def _choose_pictures(
        self,
        hits: Sequence[Hit],
        messages: Callable[[int, Mapping[str, ImagePart]], Sequence[Message]],
        shown: Mapping[str, ImagePart] | None = None,
    ) -> tuple[dict[str, ImagePart], dict[int, Dropped]]:
        """The pictures of hits that fit, by their hash, and by chunk those that are left out, with the reason.

        `messages` makes a prompt of the hits up to an index, with pictures; `shown` are pictures that are in it anyway.
        """
        chosen, left_out = dict(shown or {}), dict[int, Dropped]()
        for at, hit in enumerate(hits if self.picture_of else ()):
            if hit.image is None or hit.image in chosen:
                continue
            assert self.picture_of
            picture, why = self.picture_of(hit.image), ""
            if picture is None:
                why = "it is no longer in the collection"
            else:
                try:
                    if self._overflows(messages(at, {**chosen, hit.image: picture})):
                        why = f"it does not fit: the reader has room for {self.room} tokens"
                except UnsupportedError as error:
                    why = error.message.rstrip(".")
            if picture and not why:
                chosen[hit.image] = picture
            else:
                left_out[hit.chunk_id] = Dropped(hit.chunk_id, f"only its picture, which its text stands for: {why}")
        return chosen, left_out

    def _fill_up(
        self, turn: EarlierTurn, hits: Sequence[Hit], recent: Sequence[Message], pictures: Mapping[str, ImagePart]
    ) -> Sequence[Hit]:
        """The passages of hits, and of as many chunks around them as there is room for."""

        def tokens(passages: Sequence[Hit], pictures: Mapping[str, ImagePart] = pictures) -> int:
            return self.reader.count_tokens(self.messages(turn, passages, recent, pictures))

        passages = self.arrange(hits)
        if not self.widening or not hits:
            return passages
        empty, of_pictures = tokens((), {}), tokens(passages) - tokens(passages, {}) if pictures else 0
        chosen = list(hits)
        for find, passage_tokens in self.widening:
            limit = min(self.room, empty + passage_tokens + of_pictures)
            if tokens(self.arrange(chosen)) >= limit:
                continue  # nothing has to be read
            known = {hit.chunk_id for hit in chosen}
            longer = [*chosen, *(hit for hit in find(hits) if hit.chunk_id not in known)]

            def exceeds(count: int, hits: Sequence[Hit] = longer, limit: int = limit) -> bool:
                return tokens(self.arrange(hits[:count])) > limit

            fitting = bisect_left(range(len(chosen) + 1, len(longer) + 1), True, key=exceeds)
            chosen = longer[: len(chosen) + fitting]
        return self.arrange(chosen)

    def extend(self, previous: Prompt, turn: EarlierTurn) -> Prompt | None:
        """The previous prompt's passages, then the new ones of a turn; None if they do not fit."""
        new = self.arrange([hit for hit in turn.hits if passage_with(hit, previous.shown) is None])
        passages, recent = [*previous.shown, *new], self._recent(turn)

        def messages(_: int, pictures: Mapping[str, ImagePart]) -> list[Message]:
            built = self.messages(turn, passages, recent, pictures)
            return [*previous.messages[:-1], built[-1]]

        if self._overflows(messages(0, previous.pictures)):
            return None
        pictures, left_out = self._choose_pictures(new, messages, previous.pictures)
        return Prompt(tuple(messages(0, pictures)), _number(passages), tuple(left_out.values()), pictures)

    def messages(
        self,
        turn: EarlierTurn,
        passages: Sequence[Hit] = (),
        recent: Sequence[Message] = (),
        pictures: Mapping[str, ImagePart] | None = None,
    ) -> list[Message]:
        """The messages that ask a turn's question."""
        opening = [Message("system", self.texts.system), *self.strategy.examples]
        return _messages(
            opening, turn.question, passages, recent, self.texts, self.instruction, pictures or {}, turn.images
        )

    def _recent(self, turn: EarlierTurn) -> Sequence[Message]:
        """The last turns before one, as many as fit. A turn starts with the user's message."""
        history = self.history[: turn.at]
        starts = [at for at, message in enumerate(history) if message.role == "user"][-_MAX_TURNS:]

        def fits(start: int) -> bool:
            return self.reader.count_tokens(self.messages(turn, (), history[start:])) <= self.room // 2

        first = bisect_left(starts, True, key=fits)
        return history[starts[first] :] if first < len(starts) else ()

    def _overflows(self, messages: Sequence[Message]) -> bool:
        return self.reader.count_tokens(messages) > self.room


def prompt_fingerprint(*, documents_only: bool = True, strategy: Strategy | None = None) -> str:
    """A hash of the texts and the layout of a prompt, apart from question and passages.

    An adapter is trained for one prompt and makes answers worse with any other. The stand-in turn of a history keeps
    fingerprints of existing adapters valid.
    """
    hits = [Hit("uri", "text", 0, 4, n, None, {}, context=context) for n, context in enumerate(["", "context"])]
    history = (Message("user", "before"), Message("assistant", ABSTENTION))
    strategy = strategy or load_strategy()
    texts = strategy.texts(documents_only=documents_only)
    messages = _messages([Message("system", texts.system), *strategy.examples, *history], "q", hits, (), texts)
    content = json.dumps([[message.role, message.text] for message in messages])
    return blake2b(content.encode(), digest_size=16).hexdigest()


def _messages(
    opening: Sequence[Message],
    question: str,
    hits: Sequence[Hit],
    recent: Sequence[Message],
    texts: PromptTexts,
    instruction: str | None = None,
    pictures: Mapping[str, ImagePart] | None = None,
    images: Sequence[ImagePart] = (),
) -> list[Message]:
    """The opening messages, then the user's message: passages, recent turns, and the question.

    A picture follows the first passage that has it. Some chat templates put all images first, so its number names it.
    """
    sections: list[tuple[str | ImagePart, ...]] = []
    remaining = dict(pictures or {})
    passages = number_passages([neutralize_markers(embedded_text(hit.context, hit.text)) for hit in hits])
    for n, (hit, passage) in enumerate(zip(hits, passages, strict=True), 1):
        picture = remaining.pop(hit.image or "", None)
        sections.append((f"{passage}\nThe picture of [{n}]:\n", picture) if picture else (passage,))
    if recent:  # as text: small readers answer worse if recent turns are turns of the chat
        lines = "\n".join(f"{'Q' if message.role == 'user' else 'A'}: {message.text}" for message in recent)
        sections.append((neutralize_markers(lines), *(image for message in recent for image in message.images)))
    if images:
        sections.append(tuple(images))
    sections.append((f"{instruction}{question}" if instruction else texts.ask.replace("{question}", question),))
    parts: list[str | ImagePart] = []
    for part in [part for section in sections for part in ("\n\n", *section)][1:]:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    content = tuple(parts) if len(parts) > 1 else "".join(part for part in parts if isinstance(part, str))
    return _neutralize([*opening, Message("user", content)])


def _number(passages: Sequence[Hit]) -> tuple[Hit, ...]:
    return tuple(replace(passage, n=n) for n, passage in enumerate(passages, 1))


def _neutralize(messages: Sequence[Message]) -> list[Message]:
    neutral: list[Message] = []
    for message in messages:
        parts = [neutralize_control_tokens(part) if isinstance(part, str) else part for part in message.parts]
        neutral.append(replace(message, content=tuple(parts) if message.images else "".join(map(str, parts))))
    return neutral


# Readers tokenize the rendered template with its control tokens on, so a document that holds `<|im_end|>`, `</s>` or
# `[/INST]` could end its turn and speak as the system or the user. A zero-width non-joiner after the first character
# leaves the text readable but makes it ordinary text. It does not stop instructions in plain words.
_CONTROL_TOKEN = re.compile(r"[<\[](?=[|｜])|<(?=/?[\w:]+>)|\[(?=/?[A-Z][A-Z_]+\])")


def neutralize_control_tokens(text: str) -> str:
    """The text without anything that a chat template could read as the end of a turn."""
    return _CONTROL_TOKEN.sub("\\g<0>\u200c", text)


# A line of a document that starts like a passage ("[3] …") would be a passage of its own to the reader.
_BREAKS, _BLANKS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029", r"\ \t\xa0\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_MARKER_LINE = re.compile(rf"(?:\A|[{_BREAKS}])[{_BLANKS}]*\[(?=\s*\d+\s*\])")


def neutralize_markers(text: str) -> str:
    """The text without lines that a reader could read as the start of a passage."""
    return _MARKER_LINE.sub("\\g<0>\u200c", text)
