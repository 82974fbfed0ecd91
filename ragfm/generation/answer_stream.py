"""An answer as a stream: the reader's pieces of text until it stops or somebody closes the stream."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Literal

from ragfm.core.errors import RagfmError
from ragfm.core.text import loop_start, repetition_start
from ragfm.core.types import CLOSED, Answer, Reader, Sampling, Stream, Usage
from ragfm.generation.prompt import Prompt
from ragfm.generation.reader_output import OutputNormalizer, split_reasoning

_log = logging.getLogger(__name__)
_SENTENCE_ENDS = frozenset(".!?\n")


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they are generated; afterwards `answer` is the complete answer with citations.

    `prompt` is the reader's prompt, None if retrieval found nothing. If no passage fitted, the reader was not called.
    `close()` stops the generation from any thread: a thread that waits for a piece then gets a RagfmError.
    """

    def __init__(self, pieces: Generator[str, None, Answer], prompt: Prompt | None, handle: ReaderHandle) -> None:
        self.prompt = prompt
        self._pieces = pieces
        self._context = copy_context()  # that of the question, for each step, whichever thread takes it
        self._handle = handle
        self._answer: Answer | None = None

    @classmethod
    def of(cls, answer: Answer) -> AnswerStream:
        """A stream of one piece, for an answer that needs no reader."""

        def pieces() -> Generator[str, None, Answer]:
            yield answer.shown
            return answer

        return cls(pieces(), None, ReaderHandle())

    @property
    def answer(self) -> Answer:
        """The complete answer. Raises RuntimeError before the last piece was taken."""
        if self._answer is None:
            raise RuntimeError("the answer is complete when the stream has ended")
        return self._answer

    @property
    def cited_spans(self) -> Sequence[tuple[int, int]]:
        """For each citation of the answer, the sentence that it supports, as (start, end) in the streamed text."""
        return self._handle.cited_spans

    @property
    def checking(self) -> bool:
        """Whether the next step checks the text against the passages, which computes; others wait for the reader."""
        return self._handle.checking

    def step(self) -> str | None:
        """The next piece, None at the end. It is empty before and after the check of the text."""
        try:
            return self._context.run(next, self._pieces)
        except StopIteration as stop:
            self._answer = stop.value or self._answer
            return None

    def __next__(self) -> str:
        while (piece := self.step()) is not None:
            if piece:
                return piece
        raise StopIteration

    def read(self) -> Answer:
        """Take the remaining pieces. Returns the complete answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Stop generating. Closing twice does nothing."""
        self._handle.close()
        with suppress(ValueError):  # it runs in another thread, where the reader's stream has just been closed
            self._pieces.close()


class ReaderHandle:
    """The reader's stream behind an answer, so that another thread can close it; and attributes of `AnswerStream`."""

    def __init__(self) -> None:
        self.cited_spans: Sequence[tuple[int, int]] = ()
        self.checking = False
        self.prompt: Prompt | None = None
        self._stream: Stream | None = None
        self._closed = False

    def attach(self, stream: Stream) -> Stream:
        """Close this stream together with the answer; at once if the answer is closed already."""
        self._stream = stream
        if self._closed:
            stream.close()
            raise RagfmError(CLOSED)
        return stream

    def close(self) -> None:
        """Close the attached stream, and any that is attached later."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()


@dataclass(frozen=True, slots=True)
class ReaderOutput:
    """A reader's answer, apart from its reasoning. `start` is where `text` starts in the generated text."""

    text: str = ""
    reasoning: str = ""
    usage: Usage = field(default_factory=Usage)
    finish_reason: Literal["stop", "length"] = "stop"
    start: int = 0


def generate(
    reader: Reader, prompt: Prompt, sampling: Sampling, handle: ReaderHandle, *, silent: bool
) -> Generator[str, None, ReaderOutput]:
    """Generate an answer: yield its normalised pieces, unless `silent`, and return the whole; see `reader_output`.

    Generation stops at the first repeated sentence, or in a loop: a small model that repeats itself does so until its
    tokens run out.
    """
    text, tokens = "", 0
    repeated: int | None = None
    opens_thinking = getattr(reader, "opens_thinking", lambda _: False)
    with handle.attach(reader.stream(prompt.messages, sampling)) as stream:
        normalizer = OutputNormalizer(len(prompt.shown), in_reasoning=opens_thinking(prompt.messages))
        for piece in stream:
            tokens += 1
            certain = normalizer.feed(piece)
            text += certain
            if certain and not silent:
                yield certain
            repeated = loop_start(text)
            if repeated is None and not _SENTENCE_ENDS.isdisjoint(certain):
                repeated = repetition_start(text)
            if repeated is not None:
                break
    if repeated is None and (rest := normalizer.finish()):
        text += rest
        if not silent:
            yield rest
    generated = text[:repeated]
    reasoning, answer = split_reasoning(generated)
    start = len(generated.rstrip()) - len(answer)  # the answer is the end of the generated text
    usage = stream.usage
    if repeated is not None:  # the stream was closed before it had its usage
        usage = Usage(reader.count_tokens(prompt.messages), 0, tokens)
    _log.debug("The reader generated an answer: %s", usage)
    reasoning = "\n".join(part for part in (normalizer.reasoning, reasoning) if part)
    return ReaderOutput(answer, reasoning, usage, stream.finish_reason or "stop", start)
