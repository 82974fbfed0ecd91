"""Rag: the retriever-reader pipeline (Lewis et al. 2020; Chen et al. 2017), from a question to a cited answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from ragfm.adapter import serving_adapter
from ragfm.errors import CollectionError
from ragfm.ground import composed, grounded
from ragfm.passages import arrange, distinct
from ragfm.prompt import ABSTENTION, Prompt, build_prompt, is_abstention, prompt_fingerprint
from ragfm.readers import load_reader
from ragfm.types import Answer, Sampling, Usage

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.types import Citation, Dropped, Hit, Message, Reader

__all__ = ["AnswerStream", "Rag"]

_SPARE = 3  # times as many hits are looked at, since some may say the same


class Rag:
    """Answers questions from a collection's documents.

    `reader` is a name or an object, by default that of the settings; `k` is how many passages it is given at most.
    `adapter` is a folder that `ragfm adapt` made, or a GGUF file; for a reader by name it is checked, and refused where
    it was trained on another model or for another prompt. Other numbers come from the collection's settings.
    Thread-safe.
    """

    def __init__(
        self, collection: Collection, *, reader: str | Reader | None = None, k: int | None = None,
        adapter: str | None = None,
    ) -> None:  # fmt: skip
        self.collection = collection
        settings = self._settings = collection.settings.ask
        self.k = settings.k if k is None else k
        if reader is None or isinstance(reader, str):
            name = reader or collection.settings.reader
            if adapter:
                adapter = serving_adapter(adapter, name, prompt_fingerprint(only=settings.mode != "open"))
            self.reader: Reader = load_reader(name, context_tokens=settings.context_tokens)
        else:
            self.reader = reader
        self.sampling = Sampling(max_tokens=settings.answer_tokens, adapter=adapter)

    def ask(
        self, question: str, *, history: Sequence[Message] = (), filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Answer:  # fmt: skip
        """The answer to a question, once it is complete; see `stream`."""
        stream = self.stream(question, history=history, filter=filter, hits=hits)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self, question: str, *, history: Sequence[Message] = (), filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> AnswerStream:  # fmt: skip
        """The answer as it is generated, in the reader's own words; its citations are known at the end.

        The passages are found before this returns, the text is generated as it is taken. `stream.answer.text` has the
        citation markers put right, which the pieces have not. `history` holds the turns before, oldest first. Raises
        FilterError, and TooLongError where the question is longer than the embedder's or the reader's window.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        start = time.monotonic()
        hits, chosen, twice = (hits, hits, []) if hits is not None else self._search(question, filter)
        only = self._settings.mode != "open"
        if not hits and only:
            return AnswerStream(_abstain(question, start), None)
        prompt = self.prompt(question, chosen, history=history)
        prompt = replace(prompt, dropped=(*twice, *prompt.dropped))
        if not prompt.shown and only:  # without a passage the reader would answer from memory
            return AnswerStream(_abstain(question, start, hits, prompt.dropped), prompt)
        return AnswerStream(self._generate(question, hits, prompt, start), prompt)

    def choose(self, hits: Sequence[Hit]) -> tuple[list[Hit], list[Dropped]]:
        """Of hits, best first, those to answer from; and what of the ones before the last only says them again."""
        return distinct(hits, self.k) if self._settings.distinct else (list(hits[: self.k]), [])

    def prompt(self, question: str, hits: Sequence[Hit], *, history: Sequence[Message] = ()) -> Prompt:
        """What the reader is asked, from these hits. Raises ContextOverflowError where the question does not fit."""
        return build_prompt(
            question,
            hits,
            self.reader,
            history=history,
            answer_tokens=self.sampling.max_tokens or 1,
            arrange=self._arrangement(),
            only=self._settings.mode != "open",
        )

    def _search(self, question: str, filter: str | None) -> tuple[Sequence[Hit], Sequence[Hit], list[Dropped]]:
        """The hits, best first; those to answer from; and the others, which only say again what a better one says."""
        hits = self.collection.search(question, (_SPARE if self._settings.distinct else 1) * self.k, filter=filter)
        chosen, twice = self.choose(hits)
        return hits[: len(chosen) + len(twice)], chosen, twice

    def _arrangement(self) -> Callable[[Sequence[Hit]], list[Hit]]:
        """How hits become passages; a document's text is read at most once."""

        @cache
        def text_of(uri: str) -> str:
            try:
                return self.collection.document(uri).text
            except CollectionError:  # removed since
                return ""

        return partial(arrange, text_of=text_of, merge=self._settings.merge, order=self._settings.order)

    def _generate(
        self, question: str, hits: Sequence[Hit], prompt: Prompt, start: float
    ) -> Generator[str, None, Answer]:
        strict = self._settings.mode == "strict"
        pieces: list[str] = []
        with self.reader.stream(prompt.messages, self.sampling) as stream:
            for piece in stream:
                pieces.append(piece)
                if not strict:
                    yield piece
        raw = "".join(pieces).strip()
        text, citations, unsupported = self._checked(question, raw, prompt)
        abstained = not text or is_abstention(raw)
        text = text or ABSTENTION
        if strict or not raw:
            yield text
        return Answer(
            question=question,
            text=text,
            abstained=abstained,
            citations=citations,
            hits=tuple(replace(hit, n=_number(hit, prompt)) for hit in hits),
            dropped=prompt.dropped,
            usage=stream.usage,
            seconds=round(time.monotonic() - start, 3),
            unsupported=unsupported,
        )

    def _checked(
        self, question: str, raw: str, prompt: Prompt
    ) -> tuple[str, tuple[Citation, ...], tuple[tuple[int, int], ...]]:
        """The reader's words with their citations, and where nothing supports them; no words where none is left."""
        if not raw or is_abstention(raw):
            return raw, (), ()
        strict = self._settings.mode == "strict"
        sentences = grounded(question, raw, prompt.shown)
        text, citations, unsupported = composed(sentences, strict=strict, contradictions=self._settings.contradictions)
        return ("" if strict and not citations else text), citations, unsupported


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; afterwards `answer` is the whole with its citations.

    `prompt` is what the reader was given, None where nothing was found; where no passage fitted, it was not asked.
    `close()` stops the generation.
    """

    def __init__(self, pieces: Generator[str, None, Answer], prompt: Prompt | None) -> None:
        self.prompt = prompt
        self._pieces = pieces
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises RuntimeError before the last piece was taken."""
        if self._answer is None:
            raise RuntimeError("the answer is known when the stream has ended")
        return self._answer

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            self._answer = stop.value or self._answer
            raise StopIteration from None

    def close(self) -> None:
        """Stop generating. Closing twice does nothing."""
        self._pieces.close()


def _number(hit: Hit, prompt: Prompt) -> int | None:
    """The passage that a hit is shown in, alone or with its neighbours."""
    return next((p.n for p in prompt.shown if p.uri == hit.uri and p.start <= hit.start and hit.end <= p.end), None)


def _abstain(
    question: str, start: float, hits: Sequence[Hit] = (), dropped: Sequence[Dropped] = ()
) -> Generator[str, None, Answer]:
    """An abstention for which no reader is asked."""
    yield ABSTENTION
    seconds = round(time.monotonic() - start, 3)
    return Answer(question, ABSTENTION, True, (), tuple(hits), tuple(dropped), Usage(), seconds)
