"""Rag: the retriever-reader pipeline (Lewis et al. 2020; Chen et al. 2017), from a question to a cited answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ragfm.adapter import serving_adapter
from ragfm.answer_log import AnswerLog, Circumstances
from ragfm.errors import CollectionError
from ragfm.followup import stand_alone
from ragfm.ground import composed, grounded
from ragfm.passages import arrange, distinct
from ragfm.prompt import ABSTENTION, Prompt, build_prompt, is_abstention, prompt_fingerprint
from ragfm.readers import load_reader
from ragfm.text import said_again
from ragfm.types import Answer, Sampling, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ragfm.collection import Collection
    from ragfm.extract import Extraction
    from ragfm.types import Citation, Dropped, Hit, Message, Reader

__all__ = ["AnswerStream", "Rag"]

Model = TypeVar("Model", bound="BaseModel")

_ENDS = frozenset(".!?\n")  # of a sentence
_SPARE = 3  # times as many hits are looked at, since some may say the same


class Rag:
    """Answers questions from a collection's documents.

    `reader` is a name or an object, by default that of the settings; `k` is how many passages it is given at most.
    `adapter` is a folder that `ragfm adapt` made, or a GGUF file; for a reader by name it is checked, and refused where
    it was trained on another model or for another prompt. Other numbers come from the collection's settings. `log` is
    the answer log, where the settings ask for one. Thread-safe.
    """

    def __init__(
        self, collection: Collection, *, reader: str | Reader | None = None, k: int | None = None,
        adapter: str | None = None,
    ) -> None:  # fmt: skip
        self.collection = collection
        settings = self._settings = collection.settings.ask
        self.k = settings.k if k is None else k
        if reader is None or isinstance(reader, str):
            self._reader_name = reader or collection.settings.reader
            if adapter:
                fingerprint = prompt_fingerprint(only=settings.mode != "open")
                adapter = serving_adapter(adapter, self._reader_name, fingerprint)
            self.reader: Reader = load_reader(self._reader_name, context_tokens=settings.context_tokens)
        else:
            self._reader_name = type(reader).__name__
            self.reader = reader
        self.sampling = Sampling(max_tokens=settings.answer_tokens, adapter=adapter)
        self.log = AnswerLog.beside(collection.path) if settings.log else None

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
        citation markers put right, which the pieces have not; in the mode `strict` it comes as one piece. `history`
        holds the turns before, oldest first; a follow-up is searched for by a form of it that stands alone. `hits` are
        what to answer from, best first, where they were found in another way; `k` and `filter` don't count then. Raises
        FilterError, and TooLongError where the question is longer than the embedder's or the reader's window.
        """
        asked = self._asked(question, history, filter, hits)
        pieces, prompt = self._begin(asked)
        if self.log:
            shown, dropped = (prompt.shown, prompt.dropped) if prompt else ((), ())
            nothing_yet = Answer(question, "", False, (), shown, dropped, Usage(), 0.0, query=asked.query)
            pieces = self.log.recorded(pieces, self._circumstances(prompt, asked.start), nothing_yet)
        return AnswerStream(pieces, prompt)

    @overload
    def extract(
        self, question: str, schema: type[Model], *, history: Sequence[Message] = (), filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[Model]: ...  # fmt: skip

    @overload
    def extract(
        self, question: str, schema: Mapping[str, Any], *, history: Sequence[Message] = (), filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[dict[str, Any]]: ...  # fmt: skip

    def extract(
        self, question: str, schema: Any, *, history: Sequence[Message] = (), filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[Any]:  # fmt: skip
        """An object that meets a JSON schema or a pydantic model, from the documents, with citations for each field.

        What stands in no passage is null where the schema allows that, else its field says so. Texts and lists of no
        given length have at most 200 characters and 10 items. Raises ConfigError and UnsupportedError for a schema or
        a reader that this can't be done with, ExtractionError where the object is cut off or does not meet the schema,
        and what `stream` raises.
        """
        from ragfm.extract import EXTRACT, Extraction, Field, fill, form_of, validated

        form = form_of(schema)
        asked = self._asked(question, history, filter, hits)
        tokens = min(max(self._settings.answer_tokens, form.characters // 2), self.reader.context_tokens // 2)
        hits, prompt = self._found(asked, tokens=tokens, ask=EXTRACT.format(form=form.words))
        how = self._circumstances(prompt, asked.start)
        data, usage, fields = None, Usage(), list[Field]()
        if prompt and prompt.shown:
            sampling = replace(self.sampling, max_tokens=tokens)
            data, fields, usage = fill(form, asked.query, self.reader, prompt, sampling)
        found = Extraction(
            question, asked.query, None if data is None else validated(data, form, schema), data, tuple(fields),
            _numbered(hits, prompt), prompt.dropped if prompt else (), usage, asked.seconds,
        )  # fmt: skip
        return replace(found, log_id=self.log.record(found.answer, how)) if self.log else found

    def choose(self, hits: Sequence[Hit]) -> tuple[list[Hit], list[Dropped]]:
        """Of hits, best first, those to answer from; and what of the ones before the last only says them again."""
        return distinct(hits, self.k) if self._settings.distinct else (list(hits[: self.k]), [])

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """What the reader is asked, from these hits. Raises ContextOverflowError where the question does not fit."""
        return self._prompt(question, hits, tokens=self.sampling.max_tokens or 1, only=self._settings.mode != "open")

    def _prompt(
        self, question: str, hits: Sequence[Hit], history: Sequence[Message] = (), *, tokens: int, only: bool,
        ask: str | None = None,
    ) -> Prompt:  # fmt: skip
        return build_prompt(
            question,
            hits,
            self.reader,
            history=history,
            answer_tokens=tokens,
            arrange=self._arrangement(),
            only=only,
            ask=ask,
        )

    def _circumstances(self, prompt: Prompt | None, start: float) -> Circumstances:
        return Circumstances(
            self._reader_name, self.sampling.adapter, self.collection.groups, prompt, start, time.monotonic() - start
        )

    def _asked(
        self, question: str, history: Sequence[Message], filter: str | None, hits: Sequence[Hit] | None
    ) -> _Asked:  # fmt: skip
        if not question.strip():
            raise ValueError("the question is empty")
        start = time.monotonic()
        query = stand_alone(question, history, how=self._settings.followup, reader=self.reader)
        return _Asked(question, query, start, history, filter, hits)

    def _begin(self, asked: _Asked) -> tuple[Generator[str, None, Answer], Prompt | None]:
        """The answer's pieces, and the prompt that they come from."""
        only = self._settings.mode != "open"
        hits, prompt = self._found(asked, tokens=self.sampling.max_tokens or 1, only=only)
        if not prompt or (only and not prompt.shown):  # without a passage the reader would answer from memory
            return _abstain(asked, hits, prompt.dropped if prompt else ()), prompt
        return self._generate(asked, hits, prompt), prompt

    def _found(
        self, asked: _Asked, *, tokens: int, only: bool = True, ask: str | None = None
    ) -> tuple[Sequence[Hit], Prompt | None]:
        """The hits, and the prompt that asks for an answer from them, with so many tokens left for it."""
        given = asked.hits
        hits, chosen, twice = (given, given, []) if given is not None else self._search(asked.query, asked.filter)
        if not hits and only:
            return hits, None
        prompt = self._prompt(asked.in_prompt, chosen, asked.history, tokens=tokens, only=only, ask=ask)
        return hits, replace(prompt, dropped=(*twice, *prompt.dropped))

    def _search(self, query: str, filter: str | None) -> tuple[Sequence[Hit], Sequence[Hit], list[Dropped]]:
        """The hits, best first; those to answer from; and the others, which only say again what a better one says."""
        hits = self.collection.search(query, (_SPARE if self._settings.distinct else 1) * self.k, filter=filter)
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

    def _generate(self, asked: _Asked, hits: Sequence[Hit], prompt: Prompt) -> Generator[str, None, Answer]:
        strict = self._settings.mode == "strict"
        pieces: list[str] = []
        again: int | None = None
        with self.reader.stream(prompt.messages, self.sampling) as stream:
            for piece in stream:
                pieces.append(piece)
                if not strict:
                    yield piece
                if not _ENDS.isdisjoint(piece) and (again := said_again("".join(pieces))) is not None:
                    break  # a small model that repeats itself does so until its tokens are used up
        raw = "".join(pieces)[:again].strip()
        usage = stream.usage if again is None else Usage(self.reader.count_tokens(prompt.messages), 0, len(pieces))
        text, citations, unsupported = self._checked(asked.query, raw, prompt)
        abstained = not text or is_abstention(raw)
        text = text or ABSTENTION
        if strict or not raw:
            yield text
        return Answer(
            question=asked.question,
            text=text,
            abstained=abstained,
            citations=citations,
            hits=_numbered(hits, prompt),
            dropped=prompt.dropped,
            usage=usage,
            seconds=asked.seconds,
            unsupported=unsupported,
            query=asked.query,
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the user said, the form of it that stands alone, when that was, and what there is to answer from."""

    question: str
    query: str
    start: float
    history: Sequence[Message]
    filter: str | None
    hits: Sequence[Hit] | None

    @property
    def in_prompt(self) -> str:
        """The user's words, and where they lean on earlier ones, what they mean."""
        return self.question if self.query == self.question else f"{self.question} ({self.query})"

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 3)


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


def _numbered(hits: Sequence[Hit], prompt: Prompt | None) -> tuple[Hit, ...]:
    """The hits, each with the number of the passage that it is shown in, alone or with its neighbours."""
    shown = prompt.shown if prompt else ()
    return tuple(
        replace(
            hit, n=next((p.n for p in shown if p.uri == hit.uri and p.start <= hit.start and hit.end <= p.end), None)
        )
        for hit in hits
    )


def _abstain(
    asked: _Asked, hits: Sequence[Hit] = (), dropped: Sequence[Dropped] = ()
) -> Generator[str, None, Answer]:  # fmt: skip
    """An abstention for which no reader is asked."""
    yield ABSTENTION
    return Answer(
        asked.question, ABSTENTION, True, (), tuple(hits), tuple(dropped), Usage(), asked.seconds, query=asked.query
    )
