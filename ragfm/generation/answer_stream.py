"""An answer as it comes: the reader's words piece by piece, until they end or somebody closes it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ragfm.core.errors import RagfmError
from ragfm.core.text import said_again
from ragfm.core.types import CLOSED, Answer, Usage

if TYPE_CHECKING:
    from ragfm.core.types import Reader, Sampling, Stream
    from ragfm.generation.prompt import Prompt
    from ragfm.generation.prompt_template import Strategy

__all__ = ["AnswerStream", "Held", "Said", "said_by"]

_ENDS = frozenset(".!?\n")  # of a sentence


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; afterwards `answer` is the whole with its citations.

    `prompt` is what the reader was given, None where nothing was found; where no passage fitted, it was not asked.
    `close()` stops the generation, from any thread: who waits for a piece then gets a RagfmError.
    """

    def __init__(self, pieces: Generator[str, None, Answer], prompt: Prompt | None, held: Held) -> None:
        self.prompt = prompt
        self._pieces = pieces
        self._held = held
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RuntimeError before the last piece was taken."""
        if self._answer is None:
            raise RuntimeError("the answer is known when the stream has ended")
        return self._answer

    @property
    def cited_spans(self) -> list[tuple[int, int]]:
        """For each citation of the answer, the sentence that it supports, as (start, end) in the streamed text."""
        return [(citation.answer_start, citation.answer_end) for citation in self.answer.citations]

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            self._answer = stop.value or self._answer
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating. Closing twice does nothing."""
        self._held.close()
        with suppress(ValueError):  # it runs in another thread, where the reader's stream has just been closed
            self._pieces.close()


class Held:
    """The reader's stream that an answer comes from, so that another thread can close it."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._closed = False

    def take(self, stream: Stream) -> Stream:
        """Have a stream closed with the answer; at once, where that is closed already."""
        self._stream = stream
        if self._closed:
            stream.close()
            raise RagfmError(CLOSED)
        return stream

    def close(self) -> None:
        """Close it, and whatever comes after it."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()


@dataclass(frozen=True, slots=True)
class Said:
    """What a reader said, its thoughts apart."""

    text: str
    reasoning: str
    usage: Usage
    finish_reason: Literal["stop", "length"]


def said_by(
    reader: Reader, prompt: Prompt, sampling: Sampling, strategy: Strategy, held: Held, *, silent: bool
) -> Generator[str, None, Said]:
    """What the reader says, piece by piece unless it is to be `silent`, and as a whole."""
    pieces: list[str] = []
    again: int | None = None
    with held.take(reader.stream(prompt.messages, sampling)) as stream:
        for piece in stream:
            pieces.append(piece)
            if not silent:
                yield piece
            if not _ENDS.isdisjoint(piece) and (again := said_again("".join(pieces))) is not None:
                break  # a small model that repeats itself does so until its tokens are used up
    reasoning, text = strategy.parted("".join(pieces)[:again])
    usage = stream.usage if again is None else Usage(reader.count_tokens(prompt.messages), 0, len(pieces))
    return Said(text, reasoning, usage, stream.finish_reason or "stop")
