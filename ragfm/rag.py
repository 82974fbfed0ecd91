"""Rag: the retriever-reader pipeline (Lewis et al. 2020; Chen et al. 2017), from a question to a cited answer.

    retrieve → rerank → build prompt → generate → cite → score → decide

Each step is a function from values to values. `Collection.search` retrieves and reranks, `generation.prompt` builds the
prompt, `generation.answer_stream` generates, `citations` cites, scores and decides.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ragfm.citations.answer_check import check_citations, correct_answer
from ragfm.citations.confidence import READER_SIGNALS, answer_signals, reader_signals, select_calibration
from ragfm.citations.decision import decide
from ragfm.citations.grounding import cite
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.errors import CollectionError, TooLongError
from ragfm.core.text import check_characters
from ragfm.core.types import Answer, Sampling, Usage
from ragfm.generation.answer_log import AnswerContext, AnswerLog
from ragfm.generation.answer_stream import AnswerStream, ReaderHandle, ReaderOutput, generate
from ragfm.generation.prompt import EarlierTurn, Prompt, build_prompt, prompt_fingerprint, prompt_prefix
from ragfm.generation.prompt_template import load_strategy
from ragfm.generation.readers import configured_reader
from ragfm.generation.retrieval_cache import RetrievalCache
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

_CANDIDATES_PER_PASSAGE = 3  # hits searched for each passage, since some may be near-duplicates


class Rag:
    """Answers questions from a collection's documents. Thread-safe.

    Args:
        collection: The documents. A restricted handle answers from what its groups may see.
        reader: A name (`bundled`, a GGUF file, a folder, a model of the hub, `PLUGIN:NAME`) or a reader object.
            Default: that of the settings.
        k: Maximum number of passages in the prompt. Default: `ask.k` of the settings.
        adapter: For a reader by name, a folder made by `ragfm adapt train`, a GGUF file, or `none`. Default: the
            adapter of the settings if the reader is theirs, else the one that ships for the bundled reader. An adapter
            that was trained on a different model or prompt raises AdapterMismatchError.
        strategy: Prompt strategy, by name or TOML file. Default: `ask.strategy` of the settings.

    `base_reader` is shared between handles; `reader` is the same model with a prompt cache that is private to the
    collection handle's groups. `log` is the answer log, None unless the settings ask for one.

    """

    def __init__(
        self,
        collection: Collection,
        *,
        reader: str | Reader | None = None,
        k: int | None = None,
        adapter: str | None = None,
        strategy: str | None = None,
    ) -> None:
        self.collection = collection
        settings = self._settings = collection.settings.ask
        self.strategy = load_strategy(strategy or settings.strategy, collection.path.parent)
        self.k = settings.k if k is None else k
        documents_only = settings.mode != "open"
        if reader is None or isinstance(reader, str):
            self.reader_name = reader or collection.settings.reader
            if reader is None:
                adapter = adapter or collection.settings.adapter
            fingerprint = prompt_fingerprint(documents_only=documents_only, strategy=self.strategy)
            adapter = serving_adapter(adapter, self.reader_name, fingerprint)
            self.base_reader: Reader = configured_reader(self.reader_name, collection.settings)
        else:
            self.reader_name = type(reader).__name__
            self.base_reader = reader
        if keep := getattr(self.base_reader, "keep", None):
            keep(prompt_prefix(self.strategy, documents_only=documents_only))
        self.reader = _scoped(self.base_reader, collection)
        self.sampling = Sampling(max_tokens=settings.answer_tokens + self.strategy.thinking_tokens, adapter=adapter)
        self.log = AnswerLog.for_collection(collection.path) if settings.log else None
        self.calibration = select_calibration(settings.confidence, self.reader_name, adapter, self.strategy.label)
        self._cache = RetrievalCache(settings.followup)

    def with_options(
        self,
        *,
        collection: Collection | None = None,
        reader: Reader | None = None,
        k: int | None = None,
        sampling: Sampling | None = None,
    ) -> Rag:
        """A copy with another handle on the same collection, another `k`, or other sampling.

        `reader` must be of the same model; it lets several collections share one that is loaded.
        """
        other = copy.copy(self)
        other.collection, other.base_reader = collection or self.collection, reader or self.base_reader
        if collection is not None or reader is not None:
            other.reader = _scoped(other.base_reader, other.collection)
        other.k = self.k if k is None else k
        other.sampling = sampling or self.sampling
        return other

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Answer:
        """Answer a question; see `stream`."""
        stream = self.stream(question, history=history, filter=filter, hits=hits)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> AnswerStream:
        """Answer a question as a stream of text; `stream.answer` has the citations at the end.

        Retrieval is done when this returns; text is generated as it is taken. The streamed text is the reader's own;
        `stream.answer.text` has corrected citation markers. The answer comes in one piece in `strict` mode, with a
        reasoning strategy, and if the verifier may correct it. Otherwise an answer that is withheld afterwards is
        followed by a line with the abstention.

        Args:
            question: The question; a follow-up is rewritten to stand alone for the search.
            history: Earlier turns, oldest first.
            filter: A filter on metadata, see `Collection.search`.
            hits: Passages to answer from, best first, instead of a search; `k` and `filter` are then ignored.

        Raises FilterError, and TooLongError if the question exceeds the window of the embedder or the reader.

        """
        asked = self._ask(question, history, filter, hits)
        documents_only = self._settings.mode != "open"
        passages = self._retrieve(asked, documents_only=documents_only)
        prompt = self._build_prompt(asked, passages, documents_only=documents_only)
        handle = ReaderHandle()
        if prompt and (prompt.shown or not documents_only):
            pieces = self._answer(asked, passages, prompt, handle)
        else:  # without passages the reader would answer from memory
            pieces = _abstain(asked, passages, prompt)
        if self.log:
            shown, dropped = (prompt.shown, prompt.dropped) if prompt else ((), ())
            nothing_yet = Answer(question, "", False, (), shown, dropped, Usage(), 0.0, query=asked.query)
            pieces = self.log.record_stream(pieces, self._context(prompt, asked), nothing_yet)
        return AnswerStream(pieces, prompt, handle)

    def _answer(
        self, asked: _Question, passages: _Passages, prompt: Prompt, handle: ReaderHandle
    ) -> Generator[str, None, Answer]:
        """Generate → cite → score → decide."""
        calibration, query = self.calibration, asked.query
        corrects = self._settings.mode != "open" and calibration is not None and calibration.corrects
        silent = corrects or self._settings.mode == "strict" or self.strategy.answer_after is not None

        # Generate.
        output = yield from generate(self.reader, prompt, self.sampling, self.strategy, handle, silent=silent)

        # Cite: which passages support which sentence, and do they answer the question?
        readings = self._verify(query, prompt.shown) if output.text and calibration else ()
        text = correct_answer(output.text, readings) if readings and corrects else output.text
        answers = bool(text) and not is_abstention(text)
        cited = cite(query, text, prompt.shown) if answers else []
        one_claim = bool(readings) and len(cited) == 1  # of several sentences, some may say more than the question asks
        checked = [check_citations(query, cited[0], readings)] if one_claim else cited

        # Score: how likely is it right?
        signals: dict[str, float] = {}
        confidence: float | None = None
        if answers and calibration:
            signals = answer_signals(query, _found_for_question(passages.hits, prompt), cited, output.text, readings)
            if not is_abstention(output.text):
                signals |= self._reader_signals(prompt, output)
            confidence = calibration.confidence(signals, self.collection.contract.get("weights"))

        # Decide: answer, or abstain?
        decision = decide(text, checked, confidence, calibration, self._settings)
        answer = _answer_values(
            asked,
            passages,
            prompt,
            text=decision.answer.text,
            abstained=decision.abstained,
            citations=decision.answer.citations,
            contradictions=decision.answer.contradictions,
            unsupported=decision.answer.unsupported,
            usage=output.usage,
            confidence=confidence,
            signals=signals,
            said=output.text if output.text != text else None,
            finish_reason=output.finish_reason,
            reasoning=output.reasoning,
        )
        if silent or not output.text:
            yield answer.text
            handle.cited_spans = [(citation.answer_start, citation.answer_end) for citation in answer.citations]
        else:
            handle.cited_spans = [
                (start + output.start, end + output.start) for start, end in decision.answer.output_spans
            ]
            if answer.abstained and not is_abstention(output.text):
                yield f"\n{ABSTENTION}"  # what was streamed cannot be taken back
        return answer

    @overload
    def extract(
        self,
        question: str,
        schema: type[Model],
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[Model]: ...

    @overload
    def extract(
        self,
        question: str,
        schema: Mapping[str, Any],
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[dict[str, Any]]: ...

    def extract(
        self,
        question: str,
        schema: Any,
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
    ) -> Extraction[Any]:
        """Extract an object that meets a JSON schema or a pydantic model, with citations for each field.

        A value that no passage supports is null where the schema allows it, else its field is marked as unsupported.
        Strings and lists without a maximum length have at most 200 characters and 10 items.

        Raises ConfigError for a schema and UnsupportedError for a reader that cannot be used, ExtractionError if the
        object is cut off or does not meet the schema, and the errors of `stream`.
        """
        from ragfm.generation.structured_output import (
            INSTRUCTION,
            Extraction,
            fill_schema,
            output_schema,
            validate_output,
        )

        form = output_schema(schema)
        asked = self._ask(question, history, filter, hits)
        tokens = min(max(self._settings.answer_tokens, form.characters // 2), self.reader.context_tokens // 2)
        instruction = INSTRUCTION.format(form=form.words)
        passages = self._retrieve(asked, documents_only=True)
        prompt = self._build_prompt(asked, passages, documents_only=True, tokens=tokens, instruction=instruction)
        sampling = replace(self.sampling, max_tokens=tokens, adapter=None)  # adapters are trained for another prompt
        context = replace(self._context(prompt, asked), adapter=None)
        numbered, dropped = _number(passages.hits, prompt), prompt.dropped if prompt else ()
        extraction: Extraction[Any] = Extraction(
            question, asked.query, None, None, (), numbered, dropped, Usage(), asked.seconds
        )
        try:
            if prompt and prompt.shown:
                data, fields, usage = fill_schema(form, asked.query, self.reader, prompt, sampling)
                extraction = replace(extraction, usage=usage)  # tokens count even if the object is invalid
                value = validate_output(data, form, schema)
                extraction = replace(extraction, value=value, data=data, fields=tuple(fields), seconds=asked.seconds)
        except BaseException:
            if self.log:
                failed = replace(extraction.answer, abstained=False, seconds=asked.seconds)
                self.log.record(failed, context, finished=False)
            raise
        return replace(extraction, log_id=self.log.record(extraction.answer, context)) if self.log else extraction

    def choose(self, hits: Sequence[Hit]) -> tuple[list[Hit], list[Dropped]]:
        """Of hits, best first: those to answer from, and the near-duplicates that were dropped before the last one."""
        return distinct(hits, self.k) if self._settings.distinct else (list(hits[: self.k]), [])

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """The prompt for a question and hits. Raises ContextOverflowError if the question alone does not fit."""
        asked = _Question(question, question, time.monotonic(), (), None, hits)
        prompt = self._build_prompt(
            asked, _Passages(hits, hits, (), ()), documents_only=self._settings.mode != "open", empty=True
        )
        assert prompt
        return prompt

    # --- Steps -------------------------------------------------------------------------------------------------------

    def _ask(
        self, question: str, history: Sequence[Message], filter: str | None, hits: Sequence[Hit] | None
    ) -> _Question:
        """Check a question and its conversation, and rewrite it to stand alone."""
        if not question.strip():
            raise ValueError("the question is empty")
        check_characters("question", question)
        for turn in history:
            check_characters("conversation", turn.content)
        start = time.monotonic()
        query = self._cache.stand_alone(question, history, self.collection, self.reader)
        return _Question(question, query, start, history, filter, hits)

    def _retrieve(self, asked: _Question, *, documents_only: bool) -> _Passages:
        """Search (and rerank), leave out near-duplicates, and search again for the earlier turns of a follow-up."""
        if asked.hits is not None:
            return _Passages(asked.hits, asked.hits, (), ())
        passages = self._search(asked.query, asked.filter)
        if asked.query == asked.question or (documents_only and not passages.hits):
            return passages

        # Earlier turns that the follow-up depends on, back to the last question that stands alone. Their passages are
        # searched again: nobody has to store them, and access rights and changes since then apply.
        earlier: list[EarlierTurn] = []
        for at, message in reversed(list(enumerate(asked.history))):
            if message.role == "user" and message.content.strip():
                query = self._cache.stand_alone(message.content, asked.history[:at], self.collection, self.reader)
                hits: Sequence[Hit] = ()
                with suppress(TooLongError):  # it had no answer at the time, either
                    hits = self._search(query, asked.filter).chosen
                earlier.append(EarlierTurn(query, hits, at))
                if query == message.content:
                    break
        return replace(passages, earlier=tuple(reversed(earlier)))

    def _search(self, query: str, filter: str | None) -> _Passages:
        k = (_CANDIDATES_PER_PASSAGE if self._settings.distinct else 1) * self.k
        hits = self._cache.search(query, k, filter, self.collection)
        chosen, duplicates = self.choose(hits)
        return _Passages(hits[: len(chosen) + len(duplicates)], chosen, tuple(duplicates), ())

    def _build_prompt(
        self,
        asked: _Question,
        passages: _Passages,
        *,
        documents_only: bool,
        tokens: int | None = None,
        instruction: str | None = None,
        empty: bool = False,
    ) -> Prompt | None:
        """The prompt with `tokens` left for the answer; None without hits, unless the reader may use its memory."""
        if not passages.hits and documents_only and not empty:
            return None

        @cache  # a document's text is read once
        def text_of(uri: str) -> str:
            try:
                return self.collection.document(uri).text
            except CollectionError:  # removed since
                return ""

        merge = partial(arrange, text_of=text_of, merge=self._settings.merge, order=self._settings.order)
        prompt = build_prompt(
            asked.query,
            passages.chosen,
            self.reader,
            history=asked.history,
            earlier=passages.earlier,
            answer_tokens=tokens or self.sampling.max_tokens or 1,
            arrange=merge,
            documents_only=documents_only,
            instruction=instruction,
            strategy=None if instruction else self.strategy,
        )
        return replace(prompt, dropped=(*passages.duplicates, *prompt.dropped))

    def _verify(self, query: str, passages: Sequence[Hit]) -> Sequence[Reading]:
        """The verifier's readings of the passages; none if it is off or does not know the language."""
        if self._settings.verifier == "none" or not is_english(query, self.collection.language):
            return ()
        from ragfm.citations.verifier import shipped_verifier

        return shipped_verifier().read(query, passages)

    def _reader_signals(self, prompt: Prompt, output: ReaderOutput) -> dict[str, float]:
        if self.calibration is None or self.calibration.weights.keys().isdisjoint(READER_SIGNALS):
            return {}
        tokens = output.usage.completion_tokens
        return reader_signals(self.reader, prompt.messages, output.text, tokens, self.sampling.adapter)

    def _context(self, prompt: Prompt | None, asked: _Question) -> AnswerContext:
        return AnswerContext(
            self.reader_name,
            self.sampling.adapter,
            self.collection.groups,
            prompt,
            asked.start,
            time.monotonic() - asked.start,
        )


# --- Values of the steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Question:
    """A question, its stand-alone form `query`, when it was asked, and what to answer it from."""

    question: str
    query: str
    start: float
    history: Sequence[Message]
    filter: str | None
    hits: Sequence[Hit] | None

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 3)


@dataclass(frozen=True, slots=True)
class _Passages:
    """Hits, best first; those chosen for the prompt; near-duplicates; and the hits of earlier turns."""

    hits: Sequence[Hit]
    chosen: Sequence[Hit]
    duplicates: Sequence[Dropped]
    earlier: Sequence[EarlierTurn]


def _answer_values(
    asked: _Question, passages: _Passages, prompt: Prompt | None, *, text: str, abstained: bool, **values: Any
) -> Answer:
    return Answer(
        question=asked.question,
        query=asked.query,
        text=text,
        abstained=abstained,
        citations=values.pop("citations", ()),
        hits=_number(passages.hits, prompt),
        dropped=prompt.dropped if prompt else tuple(passages.duplicates),
        usage=values.pop("usage", Usage()),
        seconds=asked.seconds,
        **values,
    )


def _abstain(asked: _Question, passages: _Passages, prompt: Prompt | None) -> Generator[str, None, Answer]:
    """An abstention for which no reader is asked."""
    yield ABSTENTION
    return _answer_values(asked, passages, prompt, text=ABSTENTION, abstained=True)


def _scoped(reader: Reader, collection: Collection) -> Reader:
    """The reader with a prompt cache of its own for the handle's groups: cache hits must not reveal others' prompts."""
    if collection.groups is None or not (scoped := getattr(reader, "scoped", None)):
        return reader
    result: Reader = scoped("\n".join(["groups", *sorted(collection.groups)]))
    return result


def _number(hits: Sequence[Hit], prompt: Prompt | None) -> tuple[Hit, ...]:
    """The hits, each with the number of the passage that has it, then the passages that only earlier turns found."""
    shown = prompt.shown if prompt else ()
    passages = [passage_with(hit, shown) for hit in hits]
    numbered = [replace(hit, n=passage.n if passage else None) for hit, passage in zip(hits, passages, strict=True)]
    return (*numbered, *(passage for passage in shown if passage not in passages))


def _found_for_question(hits: Sequence[Hit], prompt: Prompt) -> list[Hit]:
    """The shown passages that were found for this question rather than an earlier one, with their scores for it."""
    found = []
    for passage in prompt.shown:
        best = next((hit for hit in hits if passage_with(hit, [passage])), None)
        if best:
            found.append(replace(passage, score=best.score, scores=best.scores))
    return found
