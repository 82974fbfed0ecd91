"""Rag: the retriever-reader pipeline (Lewis et al. 2020; Chen et al. 2017), from a question to a cited answer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ragfm.citations.answer_check import corrected, doubted
from ragfm.citations.confidence import BY_READER, fitting, likelihoods, signals_of
from ragfm.citations.grounding import composed, grounded, said_otherwise
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.errors import CollectionError, TooLongError
from ragfm.core.text import check_characters
from ragfm.core.types import Answer, Citation, Sampling, Usage
from ragfm.generation.answer_log import AnswerLog, Circumstances
from ragfm.generation.answer_stream import AnswerStream, Held, said_by
from ragfm.generation.prompt import Earlier, Prompt, build_prompt, prompt_beginning, prompt_fingerprint
from ragfm.generation.prompt_template import load_strategy
from ragfm.generation.readers import configured_reader
from ragfm.generation.retrieval_cache import Remembered
from ragfm.models.adapters import serving_adapter
from ragfm.retrieval.fusion_weight import is_english
from ragfm.retrieval.passages import arrange, distinct, passage_with

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ragfm.citations.verifier import Reading
    from ragfm.collection import Collection
    from ragfm.core.types import Dropped, Hit, Message, Reader
    from ragfm.generation.structured_output import Extraction

__all__ = ["AnswerStream", "Rag"]

Model = TypeVar("Model", bound="BaseModel")

_SPARE = 3  # times as many hits are looked at, since some may say the same


class Rag:
    """Answers questions from a collection's documents.

    `reader` is a name or an object, by default that of the settings; `k` is how many passages it is given at most.
    `adapter`, for a reader by name, is a folder that `ragfm adapt` made, or a GGUF file; it is refused where it was
    trained on another model or for another prompt. By default it is that of the settings, where the reader is theirs,
    else the one that comes with ragfm for the bundled reader and this prompt; `none` is without. `strategy` says how
    the reader is asked, by name or file. Other numbers come from the collection's settings. `log` is the answer log,
    where the settings ask for one. `base_reader` is what all handles share, `reader` is it for those who see what
    `collection` does. Thread-safe.
    """

    def __init__(
        self, collection: Collection, *, reader: str | Reader | None = None, k: int | None = None,
        adapter: str | None = None, strategy: str | None = None,
    ) -> None:  # fmt: skip
        self.collection = collection
        settings = self._settings = collection.settings.ask
        self.strategy = load_strategy(strategy or settings.strategy, collection.path.parent)
        self.k = settings.k if k is None else k
        if reader is None or isinstance(reader, str):
            self.reader_name = reader or collection.settings.reader
            if reader is None:
                adapter = adapter or collection.settings.adapter
            fingerprint = prompt_fingerprint(only=settings.mode != "open", strategy=self.strategy)
            adapter = serving_adapter(adapter, self.reader_name, fingerprint)
            self.base_reader: Reader = configured_reader(self.reader_name, collection.settings)
        else:
            self.reader_name = type(reader).__name__
            self.base_reader = reader
        if keep := getattr(self.base_reader, "keep", None):
            keep(prompt_beginning(self.strategy, only=settings.mode != "open"))
        self.reader = _scoped(self.base_reader, collection)
        self.sampling = Sampling(max_tokens=settings.answer_tokens + self.strategy.thinking_tokens, adapter=adapter)
        self.log = AnswerLog.beside(collection.path) if settings.log else None
        self.calibration = fitting(settings.confidence, self.reader_name, adapter, self.strategy.known_as)
        self._remembered = Remembered(settings.followup)

    def with_options(
        self, *, collection: Collection | None = None, reader: Reader | None = None, k: int | None = None,
        sampling: Sampling | None = None,
    ) -> Rag:  # fmt: skip
        """The same over another handle on the collection, or with another `k` or sampling.

        `reader` is of the same model, to be shared with others that have loaded it.
        """
        other = copy.copy(self)
        other.collection, other.base_reader = collection or self.collection, reader or self.base_reader
        if collection is not None or reader is not None:
            other.reader = _scoped(other.base_reader, other.collection)
        other.k = self.k if k is None else k
        other.sampling = sampling or self.sampling
        return other

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
        citation markers put right, which the pieces have not. In the mode `strict`, where the reader thinks first, and
        where the verifier corrects it, it comes as one piece; else an answer of too little confidence is followed by a
        line that takes it back, and one that a passage contradicts by a sentence that says so. `history` holds the
        turns before, oldest first; a follow-up is searched for by a form of it that stands alone, and its prompt goes
        on from the passages of the turns that it leans on. `hits` are what to answer from, best first, where they were
        found in another way; `k` and `filter` don't count then. Raises FilterError, and TooLongError where the question
        is longer than the embedder's or the reader's window.
        """
        asked = self._asked(question, history, filter, hits)
        held = Held()
        pieces, prompt = self._begin(asked, held)
        if self.log:
            shown, dropped = (prompt.shown, prompt.dropped) if prompt else ((), ())
            nothing_yet = Answer(question, "", False, (), shown, dropped, Usage(), 0.0, query=asked.query)
            pieces = self.log.recorded(pieces, self._circumstances(prompt, asked.start), nothing_yet)
        return AnswerStream(pieces, prompt, held)

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
        from ragfm.generation.structured_output import EXTRACT, Extraction, fill, form_of, validated

        form = form_of(schema)
        asked = self._asked(question, history, filter, hits)
        tokens = min(max(self._settings.answer_tokens, form.characters // 2), self.reader.context_tokens // 2)
        hits, prompt = self._found(asked, tokens=tokens, ask=EXTRACT.format(form=form.words))
        sampling = replace(self.sampling, max_tokens=tokens, adapter=None)  # it has learned another prompt
        how = replace(self._circumstances(prompt, asked.start), adapter=None)
        numbered, dropped = _numbered(hits, prompt), prompt.dropped if prompt else ()
        found: Extraction[Any] = Extraction(
            question, asked.query, None, None, (), numbered, dropped, Usage(), asked.seconds
        )
        try:
            if prompt and prompt.shown:
                data, fields, usage = fill(form, asked.query, self.reader, prompt, sampling)
                found = replace(found, usage=usage)  # it was used even where the object turns out to be none
                value = validated(data, form, schema)
                found = replace(found, value=value, data=data, fields=tuple(fields), seconds=asked.seconds)
        except BaseException:
            if self.log:
                failed = replace(found.answer, abstained=False, seconds=asked.seconds)
                self.log.record(failed, how, finished=False)
            raise
        return replace(found, log_id=self.log.record(found.answer, how)) if self.log else found

    def choose(self, hits: Sequence[Hit]) -> tuple[list[Hit], list[Dropped]]:
        """Of hits, best first, those to answer from; and what of the ones before the last only says them again."""
        return distinct(hits, self.k) if self._settings.distinct else (list(hits[: self.k]), [])

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """What the reader is asked, from these hits. Raises ContextOverflowError where the question does not fit."""
        return self._prompt(question, hits, tokens=self.sampling.max_tokens or 1, only=self._settings.mode != "open")

    def _prompt(
        self, question: str, hits: Sequence[Hit], history: Sequence[Message] = (), earlier: Sequence[Earlier] = (), *,
        tokens: int, only: bool, ask: str | None = None,
    ) -> Prompt:  # fmt: skip
        return build_prompt(
            question,
            hits,
            self.reader,
            history=history,
            earlier=earlier,
            answer_tokens=tokens,
            arrange=self._arrangement(),
            only=only,
            ask=ask,
            strategy=None if ask else self.strategy,
        )

    def _circumstances(self, prompt: Prompt | None, start: float) -> Circumstances:
        return Circumstances(
            self.reader_name, self.sampling.adapter, self.collection.groups, prompt, start, time.monotonic() - start
        )

    def _asked(
        self, question: str, history: Sequence[Message], filter: str | None, hits: Sequence[Hit] | None
    ) -> _Asked:  # fmt: skip
        if not question.strip():
            raise ValueError("the question is empty")
        for what, text in (("question", question), *(("conversation", turn.content) for turn in history)):
            check_characters(what, text)
        start = time.monotonic()
        query = self._form(question, history)
        return _Asked(question, query, start, history, filter, hits)

    def _begin(self, asked: _Asked, held: Held) -> tuple[Generator[str, None, Answer], Prompt | None]:
        """The answer's pieces, and the prompt that they come from."""
        only = self._settings.mode != "open"
        hits, prompt = self._found(asked, tokens=self.sampling.max_tokens or 1, only=only)
        if not prompt or (only and not prompt.shown):  # without a passage the reader would answer from memory
            return _abstain(asked, hits, prompt.dropped if prompt else ()), prompt
        return self._generate(asked, hits, prompt, held), prompt

    def _found(
        self, asked: _Asked, *, tokens: int, only: bool = True, ask: str | None = None
    ) -> tuple[Sequence[Hit], Prompt | None]:
        """The hits, and the prompt that asks for an answer from them, with so many tokens left for it."""
        given = asked.hits
        hits, chosen, twice = (given, given, []) if given is not None else self._search(asked.query, asked.filter)
        if not hits and only:
            return hits, None
        earlier = self._earlier(asked) if given is None and asked.query != asked.question else []
        prompt = self._prompt(asked.query, chosen, asked.history, earlier, tokens=tokens, only=only, ask=ask)
        return hits, replace(prompt, dropped=(*twice, *prompt.dropped))

    def _earlier(self, asked: _Asked) -> list[Earlier]:
        """The turns that a follow-up goes on with, back to the last question that stands alone.

        Their passages are searched for again, so that nobody has to keep them, and who may no longer see one, or asks
        after it has changed, is not shown what it was.
        """
        turns = list[Earlier]()
        for at, message in reversed(list(enumerate(asked.history))):
            if message.role == "user" and message.content.strip():
                query = self._form(message.content, asked.history[:at])
                hits: Sequence[Hit] = ()
                with suppress(TooLongError):  # it was no answer then, either
                    _, hits, _ = self._search(query, asked.filter)
                turns.append(Earlier(query, hits, at))
                if query == message.content:
                    break
        return turns[::-1]

    def _form(self, question: str, history: Sequence[Message]) -> str:
        """The form of a question that stands alone."""
        return self._remembered.form(question, history, self.collection, self.reader)

    def _search(self, query: str, filter: str | None) -> tuple[Sequence[Hit], Sequence[Hit], list[Dropped]]:
        """The hits, best first; those to answer from; and the others, which only say again what a better one says."""
        k = (_SPARE if self._settings.distinct else 1) * self.k
        hits = self._remembered.hits(query, k, filter, self.collection)
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

    def _generate(self, asked: _Asked, hits: Sequence[Hit], prompt: Prompt, held: Held) -> Generator[str, None, Answer]:
        whole = self._corrects or self._settings.mode == "strict" or self.strategy.answer_after is not None
        said = yield from said_by(self.reader, prompt, self.sampling, self.strategy, held, silent=whole)
        answer = self._checked(asked, hits, prompt, said.text, said.usage)
        if whole or not said.text:
            yield answer.text
        elif answer.abstained and not is_abstention(said.text):
            yield f"\n{ABSTENTION}"  # what was shown can't be taken back
        else:
            said_so = (said_otherwise(citation.n, citation.quote) for citation in answer.citations)
            yield from (sentence for sentence in said_so if sentence in answer.text)
        return replace(answer, finish_reason=said.finish_reason, reasoning=said.reasoning)

    def _checked(self, asked: _Asked, hits: Sequence[Hit], prompt: Prompt, said: str, usage: Usage) -> Answer:
        """The reader's words as an answer: with their citations, corrected, or withheld."""
        readings = self._readings(asked.query, prompt.shown) if said and self.calibration else ()
        raw = corrected(said, readings) if readings and self._corrects else said
        text, citations, unsupported = raw, tuple[Citation, ...](), tuple[tuple[int, int], ...]()
        signals, confidence = dict[str, float](), None
        if raw and not is_abstention(raw):
            settings, strict = self._settings, self._settings.mode == "strict"
            sentences = grounded(asked.query, raw, prompt.shown)
            if self.calibration:
                signals = signals_of(asked.query, _found_now(hits, prompt), sentences, said, readings)
                if not is_abstention(said):
                    signals |= self._likelihoods(prompt, said, usage)
                confidence = self.calibration.confidence(signals, self.collection.contract.get("weights"))
            if readings and len(sentences) == 1:  # of several, some may say more than was asked for
                sentences = [doubted(asked.query, sentences[0], readings)]
            text, citations, unsupported = composed(sentences, strict=strict, contradictions=settings.contradictions)
            if (strict and not citations) or self._withholds(confidence):
                text, citations, unsupported = "", (), ()
        return Answer(
            question=asked.question,
            text=text or ABSTENTION,
            abstained=not text or is_abstention(raw),
            citations=citations,
            hits=_numbered(hits, prompt),
            dropped=prompt.dropped,
            usage=usage,
            seconds=asked.seconds,
            unsupported=unsupported,
            query=asked.query,
            confidence=confidence,
            signals=signals,
            said=said if said != raw else None,
        )

    def _likelihoods(self, prompt: Prompt, said: str, usage: Usage) -> dict[str, float]:
        if self.calibration is None or self.calibration.weights.keys().isdisjoint(BY_READER):
            return {}
        return likelihoods(self.reader, prompt.messages, said, usage.completion_tokens, self.sampling.adapter)

    @property
    def _corrects(self) -> bool:
        """Whether the verifier's words stand in for the reader's."""
        return self._settings.mode != "open" and self.calibration is not None and self.calibration.corrects

    def _readings(self, query: str, shown: Sequence[Hit]) -> Sequence[Reading]:
        """What the verifier makes of the passages; nothing where it is off, or does not know the language."""
        if self._settings.verifier == "none" or not is_english(query, self.collection.language):
            return ()
        from ragfm.citations.verifier import shipped_verifier

        return shipped_verifier().read(query, shown)

    def _withholds(self, confidence: float | None) -> bool:
        """Whether so little confidence makes an abstention better than the answer."""
        if self.calibration is None or self._settings.mode == "open":
            return False
        return self.calibration.withholds(confidence, self._settings.min_confidence)


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
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 3)


def _scoped(reader: Reader, collection: Collection) -> Reader:
    """The reader for those who may see what the handle does: its memory of prompts is not shared with others."""
    if collection.groups is None or not (scoped := getattr(reader, "scoped", None)):
        return reader
    result: Reader = scoped("\n".join(["groups", *sorted(collection.groups)]))
    return result


def _numbered(hits: Sequence[Hit], prompt: Prompt | None) -> tuple[Hit, ...]:
    """The hits, each with the number of the passage that has it; then the other passages, which earlier turns found."""
    shown = prompt.shown if prompt else ()
    within = [passage_with(hit, shown) for hit in hits]
    numbered = [replace(hit, n=passage.n if passage else None) for hit, passage in zip(hits, within, strict=True)]
    return (*numbered, *(passage for passage in shown if passage not in within))


def _found_now(hits: Sequence[Hit], prompt: Prompt) -> list[Hit]:
    """Of the passages that are shown those that were found for this question, with the scores that they have for it."""
    best = [next((hit for hit in hits if passage_with(hit, [passage])), None) for passage in prompt.shown]
    return [replace(p, score=hit.score, scores=hit.scores) for p, hit in zip(prompt.shown, best, strict=True) if hit]


def _abstain(
    asked: _Asked, hits: Sequence[Hit] = (), dropped: Sequence[Dropped] = ()
) -> Generator[str, None, Answer]:  # fmt: skip
    """An abstention for which no reader is asked."""
    yield ABSTENTION
    return Answer(
        asked.question, ABSTENTION, True, (), tuple(hits), tuple(dropped), Usage(), asked.seconds, query=asked.query
    )
