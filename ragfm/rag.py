"""Rag: the retriever-reader pipeline (Lewis et al. 2020; Chen et al. 2017), from a question to a cited answer.

    retrieve → rerank → build prompt → generate → cite → score → decide

`Rag.stream` retrieves and builds the prompt, `Rag._answer` does the rest while the text is consumed. Each step is a
function from values to values: `generation.passage_retrieval` and `Collection.search` retrieve and rerank,
`generation.prompt` builds the prompt, `generation.answer_stream` generates, `answering` cites, scores and decides.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ragfm.answering.calculation import CalculatedAnswer, MissingOperandError, calculate_answer
from ragfm.answering.confidence import OTHER_LANGUAGE, UNREAD, adapter_hash, answer_signals, select_calibration
from ragfm.answering.decision import decide
from ragfm.answering.grounding import VERIFIED, Grounding, cite_answer
from ragfm.answering.judge import configured_judge
from ragfm.answering.policy import LARGE, SMALL
from ragfm.core.abstention import is_abstention
from ragfm.core.errors import CollectionError
from ragfm.core.promise import Guarantee
from ragfm.core.status_sentences import status_sentences
from ragfm.core.tracing import span
from ragfm.core.types import Answer, Citation, Contradiction, Message, Sampling, Usage
from ragfm.generation.answer_log import AnswerContext, Origin
from ragfm.generation.answer_stream import AnswerStream, ReaderHandle, ReaderOutput, generate
from ragfm.generation.passage_retrieval import PassageRetriever, Retrieved
from ragfm.generation.prompt import Prompt, Widening, build_prompt, prompt_fingerprint
from ragfm.generation.prompt_template import load_strategy
from ragfm.generation.readers import (
    DEFAULT_PASSAGES,
    MANY_PASSAGES,
    NO_READER,
    available_reader,
    check_images,
    configured_reader,
)
from ragfm.generation.small_talk import GREETING
from ragfm.models.adapters import serving_adapter
from ragfm.models.model_lookup import is_english_only
from ragfm.retrieval.document_dates import Superseded, find_superseded
from ragfm.retrieval.passages import arrange, distinct, match_hits

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ragfm.collection import Collection
    from ragfm.core.types import Dropped, Embedder, Hit, ImagePart, Reader
    from ragfm.generation.structured_output import Extraction

__all__ = ["AnswerStream", "Rag"]

Model = TypeVar("Model", bound="BaseModel")
Cited = TypeVar("Cited", Citation, Contradiction)

CANNOT_SEE = "The reader cannot see pictures; figures were used by their text."
"""A note of answers that a reader without vision gave from figures."""
_adapter_hash = cache(adapter_hash)  # its file is read once, as by the reader
_DATE = re.compile(r"\d{4}(?:-\d\d){0,2}")  # of ISO 8601
_DATE_KEYS = ("date", "period", "modified")  # stated, covered by the report, of the file
CUT_OFF = "The reader's tokens ran out before it answered; raise ask.answer_tokens."
"""A note of answers of a reader that was cut off in its reasoning."""


class Rag:
    """Answers questions from a collection's documents. Thread-safe.

    Args:
        collection: The documents. A restricted handle answers from what its groups may see.
        reader: A name (`bundled`, a GGUF file, a folder, a model of the hub, `PLUGIN:NAME`) or a reader object.
            Default: that of the settings, or `none`, which quotes the documents, for `bundled` without llama.cpp.
        k: Maximum number of passages in the prompt. Default: `ask.k` of the settings, else by the reader's size.
        adapter: For a reader by name, a folder made by `ragfm adapt train`, a GGUF file, or `none`. Default: the
            adapter of the settings if the reader is theirs, else the one that ships for the bundled reader. An adapter
            that was trained on a different model or prompt raises AdapterMismatchError.
        strategy: Prompt strategy: `zero-shot` or a TOML file. Default: `ask.strategy` of the settings.
        hops: Rounds of search, see `Collection.search`. Default: `ask.hops` of the settings.

    `judge` reads the evidence, and `policy` says what the reader may do; without a judge, answers have no confidence.
    `base_reader` is shared between handles; `reader` is the same model with a prompt cache that is private to the
    collection handle's groups. `log` is the answer log, None unless the settings enable it.

    """

    def __init__(
        self,
        collection: Collection,
        *,
        reader: str | Reader | None = None,
        k: int | None = None,
        adapter: str | None = None,
        strategy: str | None = None,
        hops: int | None = None,
    ) -> None:
        if isinstance(collection, str | Path):
            raise TypeError(f"Rag takes a collection, such as Collection.open({str(collection)!r})")
        self.collection = collection
        settings = self._settings = collection.settings.ask
        self.strategy = load_strategy(strategy or settings.strategy, collection.settings_file.parent)
        self._documents_only = settings.mode != "open"
        if reader is None or isinstance(reader, str):
            self.reader_name = reader or available_reader(collection.settings.reader)
            if reader is None:
                adapter = adapter or collection.settings.adapter
            if self.reader_name == NO_READER:
                adapter = None
            fingerprint = prompt_fingerprint(documents_only=self._documents_only, strategy=self.strategy)
            adapter = serving_adapter(adapter, self.reader_name, fingerprint)
            self.base_reader: Reader = configured_reader(self.reader_name, collection.settings, adapter)
        else:
            self.reader_name = type(reader).__name__
            self.base_reader = reader
        self._passages: int = getattr(self.base_reader, "passages", DEFAULT_PASSAGES)
        self.k: int = _checked(k) or settings.k or self._passages
        self.origin = Origin()
        self.reader = _scoped(self.base_reader, collection, self.origin)
        self.sampling = Sampling(max_tokens=settings.answer_tokens, adapter=adapter)
        self.log = collection.answer_log if settings.log else None
        self.calibration = select_calibration(settings.confidence, self.reader_name, adapter, self.strategy.label)
        self.judge = configured_judge(settings.verifier, self.reader_name)
        own = self.calibration is settings.confidence  # users decide with `ragfm tune --confidence`
        small = self.calibration.corrects if own else self.reader_name in ("bundled", NO_READER)
        self.policy = SMALL if small else LARGE
        self._retriever = PassageRetriever(settings, settings.hops if hops is None else hops)

    def with_options(
        self,
        *,
        collection: Collection | None = None,
        reader: Reader | None = None,
        k: int | None = None,
        sampling: Sampling | None = None,
        origin: Origin | None = None,
    ) -> Rag:
        """A copy with another handle on the same collection, another `k`, other sampling, or an origin for the log.

        `reader` must be of the same model; it lets several collections share one that is loaded.
        """
        other = copy.copy(self)
        other.collection, other.base_reader = collection or self.collection, reader or self.base_reader
        other.origin = origin or self.origin
        if collection is not None or reader is not None:
            other.reader = _scoped(other.base_reader, other.collection, other.origin)
        other.k = _checked(k) or self.k
        other.sampling = sampling or self.sampling
        return other

    def ask(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
        images: Sequence[ImagePart] = (),
    ) -> Answer:
        """Answer a question; see `stream`, which, unlike this, another thread can end."""
        return self.stream(question, history=history, filter=filter, hits=hits, images=images).read()

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        filter: str | None = None,
        hits: Sequence[Hit] | None = None,
        images: Sequence[ImagePart] = (),
    ) -> AnswerStream:
        """Answer a question as a stream of text; `stream.answer` has the citations at the end.

        Retrieval is done when this returns; text is generated as it is consumed. The streamed text is the reader's own;
        `stream.answer.shown` is the answer as a user should read it. The answer comes in this form, and in one piece,
        in `strict` mode, and from a small reader, which the judge may correct. Otherwise an answer that is withheld
        afterwards is followed by a line with the abstention, and an unsure one by a line that says so.

        Args:
            question: The question; a follow-up is made to stand alone, for the search and the reader.
            history: Earlier turns, oldest first.
            filter: A filter on metadata, see `Collection.search`.
            hits: Passages to answer from, best first, instead of a search; `k` and `filter` are then ignored.
            images: Images that the question is about, for a reader with vision. The search uses the text only.

        A reader with vision also sees the pictures of figures among the passages.

        Raises FilterError, TooLongError if the question exceeds the window of the embedder or the reader, and
        UnsupportedError for images that the reader cannot see.

        """
        check_images([Message("user", tuple(images)), *history], vision=self._sees, reader=f"'{self.reader_name}'")

        handle = ReaderHandle()
        pieces = self._pieces(handle, question, history, filter, hits, images)
        stream = AnswerStream(pieces, None, handle)
        stream.step()  # retrieve, rerank, build the prompt
        stream.prompt = handle.prompt
        return stream

    def _pieces(
        self,
        handle: ReaderHandle,
        question: str,
        history: Sequence[Message],
        filter: str | None,
        hits: Sequence[Hit] | None,
        images: Sequence[ImagePart],
    ) -> Generator[str, None, Answer]:
        """An empty piece once the prompt is built, then those of the answer."""
        with span("ask", workflow="ask", query=question, turns=len(history)) as active:
            # Retrieve and rerank.
            retrieved = self._retrieve(question, history, filter, hits)
            if retrieved.small_talk and self._documents_only:
                yield ""
                yield GREETING
                return Answer(question, GREETING, "answered", (), (), (), Usage(), 0.0, query=question)

            # Build the prompt.
            prompt = None
            if retrieved.hits or not self._documents_only:
                prompt = self._build_prompt(retrieved, documents_only=self._documents_only, images=images)
            handle.prompt = prompt
            numbered, _ = match_hits(retrieved.hits, prompt.shown if prompt else ())
            superseded = find_superseded([hit for hit in numbered if hit.n is not None], self.collection.metadata)
            retrieved = replace(retrieved, hits=numbered)

            # Calculate, or generate, cite, score and decide: while the caller takes the text.
            pieces = self._answer(retrieved, prompt, handle, superseded)
            if self.log:
                context = self._log_context(prompt, retrieved.start)
                shown, dropped = (prompt.shown, prompt.dropped) if prompt else ((), ())
                unfinished = Answer(question, "", "answered", (), shown, dropped, Usage(), 0.0, query=retrieved.query)
                pieces = self.log.record_stream(pieces, context, unfinished)
            yield ""
            answer = yield from pieces
            active.set(status=answer.status, confidence=answer.confidence, citations=len(answer.citations))
            active.set(passages=len(prompt.shown) if prompt else 0, answer=answer.shown)
            return answer

    def _calculated(
        self, retrieved: Retrieved, prompt: Prompt, handle: ReaderHandle, calculated: CalculatedAnswer
    ) -> Generator[str, None, Answer]:
        """The answer that was calculated from numbers of the passages, without the reader."""
        sentences = status_sentences(retrieved.language or self.collection.language)
        sure = calculated.confidence >= self._settings.wrong_cost * (1 - calculated.confidence)
        answer = Answer(
            question=retrieved.question,
            query=retrieved.query,
            text=calculated.text,
            status="answered" if sure else "unsure",
            shown=calculated.text if sure else f"{calculated.text}\n\n{sentences.doubt}",
            confidence=calculated.confidence,
            citations=calculated.citations,
            calculation=calculated.calculation,
            hits=tuple(retrieved.hits),
            dropped=prompt.dropped,
            usage=Usage(),
            seconds=retrieved.seconds,
            searches=tuple(retrieved.searches),
            answered_guarantee=self._answered_guarantee,
        )
        handle.cited_spans = [(one.answer_start, one.answer_end) for one in answer.citations]
        yield answer.shown
        return answer

    def _answer(
        self,
        retrieved: Retrieved,
        prompt: Prompt | None,
        handle: ReaderHandle,
        superseded: Sequence[Superseded],
    ) -> Generator[str, None, Answer]:
        """Calculate, or generate → cite → score → decide."""
        query, settings, calibration = retrieved.query, self._settings, self.calibration
        shown = prompt.shown if prompt else ()
        language, asked = self.collection.language if shown else None, retrieved.language
        # The judge cannot see pictures, so it corrects no answer that may come from one.
        pictured = prompt.pictured if prompt else frozenset[int]()
        policy = self.policy if self._documents_only and not pictured else LARGE
        one_piece = not policy.streams or settings.mode == "strict"

        # Calculate what no passage states. If a number of it is missing, the reader guesses it.
        promise = settings.guarantee
        lapsed = self.collection.answer_log.why_lapsed(promise, self.fingerprint) if promise else None
        verified = promise.threshold if promise and lapsed is None else VERIFIED
        grounding = Grounding(query, shown, language, self.judge, asked=asked, pictured=pictured, verified=verified)
        missing = ""
        if prompt and shown and self._documents_only and not prompt.has_images:
            handle.checking = True  # empty pieces around it, so that a server can choose when it computes
            yield ""
            try:
                calculated = calculate_answer(grounding, self._bundled_embedder)
            except MissingOperandError as error:
                calculated, missing = None, error.message
            handle.checking = False
            if calculated:
                return (yield from self._calculated(retrieved, prompt, handle, calculated))
            yield ""

        # Generate. Without passages the reader would answer from memory.
        sentences = status_sentences(asked or language)
        output = ReaderOutput()
        if prompt and (shown or not self._documents_only):
            with span("generate", model=self.reader_name, max_tokens=self.sampling.max_tokens) as active:
                output = yield from generate(self.reader, prompt, self.sampling, handle, silent=one_piece)
                active.set(**_usage(output.usage), finish_reasons=[output.finish_reason], answer=output.text)

        # Cite: which passages support which sentence, and do they answer the question?
        # Across languages, no words tell which sentence answers, but a multilingual embedder does.
        weights = self.collection.contract.get("weights")
        differs = asked is not None and language not in (None, "simple", asked)
        foreign = differs and self.judge is not None and self._documents_only and not is_english_only(weights)
        handle.checking = True
        yield ""
        closeness = partial(self._closeness, query) if foreign else None
        corrects = policy.corrects and self.judge is not None
        cited = cite_answer(grounding, output.text, corrects=corrects, closeness=closeness)
        handle.checking = False
        yield ""

        # Score: how likely is it right?
        signals: dict[str, float] = {}
        confidence: float | None = None
        if prompt and cited.sentences and self.judge:
            signals = answer_signals(cited)
            if not cited.readings:  # the judge does not read this language
                calibration = OTHER_LANGUAGE if foreign else UNREAD
            confidence = calibration.confidence(signals, weights)

        # Decide: answer, or abstain?
        decision = decide(
            cited,
            confidence,
            policy,
            settings,
            threshold=calibration.threshold if settings.min_confidence is None else settings.min_confidence,
            doubtful=foreign or bool(missing),
            sentences=sentences,
        )
        composed, quote = decision.answer, decision.quote
        if composed.contradictions:  # which of the documents is newer?
            composed = replace(
                composed,
                citations=self._dated(composed.citations),
                contradictions=self._dated(composed.contradictions),
            )
            quote = quote and self._dated([quote])[0]
        notes = [CANNOT_SEE] if not self._sees and any(hit.image for hit in shown) else []
        notes += [missing] if missing else []
        cited_passages = {citation.n for citation in composed.citations}
        for older, newer, older_date, newer_date in superseded:
            if cited_passages & {older.n, newer.n}:
                notes.append(f"{older.name} ({older_date}) is older than {newer.name} ({newer_date}).")
        notes += [CUT_OFF] if output.finish_reason == "length" and not output.text else []
        if promise and lapsed is None and any(one.verified and one.probability is None for one in composed.citations):
            lapsed = "no judge read this answer: its citations are quotations"
        answer = Answer(
            question=retrieved.question,
            query=query,
            text=composed.text,
            status=decision.status,
            quote=quote,
            shown=decision.shown,
            citations=composed.citations,
            contradictions=composed.contradictions,
            nearest=decision.nearest,
            unsupported=composed.unsupported,
            hits=tuple(retrieved.hits),
            dropped=prompt.dropped if prompt else (),
            usage=output.usage,
            seconds=retrieved.seconds,
            confidence=confidence,
            signals=signals,
            said=output.text if output.text != cited.text else None,
            finish_reason=output.finish_reason,
            reasoning=output.reasoning,
            searches=tuple(retrieved.searches),
            notes=tuple(notes),
            guarantee=promise.guarantee(lapsed) if promise else None,
            answered_guarantee=self._answered_guarantee,
        )

        # Finish the stream.
        if one_piece or not output.text:
            handle.cited_spans = [(citation.answer_start, citation.answer_end) for citation in answer.citations]
            yield answer.shown
        else:
            handle.cited_spans = [(start + output.start, end + output.start) for start, end in composed.output_spans]
            if answer.abstained and not is_abstention(output.text):
                yield f"\n{sentences.unknown}"  # what was streamed cannot be taken back
            elif answer.shown != answer.text:
                yield answer.shown.removeprefix(answer.text)
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
        Strings and lists without a maximum length have at most 200 characters and 10 items, others 1,000 more than the
        minimum.

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
        retrieved = self._retrieve(question, history, filter, hits)
        tokens = min(max(self._settings.answer_tokens, form.characters // 2), self.reader.context_tokens // 2)
        prompt = None
        if retrieved.hits:
            instruction = INSTRUCTION.format(form=form.words)
            prompt = self._build_prompt(retrieved, documents_only=True, tokens=tokens, instruction=instruction)
        sampling = replace(self.sampling, max_tokens=tokens, adapter=None)  # adapters are trained for another prompt
        context = replace(self._log_context(prompt, retrieved.start), adapter=None, fingerprint=None)
        numbered, _ = match_hits(retrieved.hits, prompt.shown if prompt else ())
        extraction: Extraction[Any] = Extraction(
            question,
            retrieved.query,
            value=None,
            data=None,
            fields=(),
            hits=numbered,
            dropped=prompt.dropped if prompt else (),
            usage=Usage(),
            seconds=retrieved.seconds,
        )
        try:
            if prompt and prompt.shown:
                with span("generate", model=self.reader_name, max_tokens=tokens) as active:
                    data, fields, usage = fill_schema(
                        form, retrieved.query, self.reader, prompt, sampling, self.collection.language, self.judge
                    )
                    active.set(**_usage(usage))
                extraction = replace(extraction, usage=usage)  # tokens count even if the object is invalid
                value = validate_output(data, form, schema)
                extraction = replace(
                    extraction, value=value, data=data, fields=tuple(fields), seconds=retrieved.seconds
                )
        except BaseException:
            if self.log:
                failed = replace(extraction.answer, status="answered", seconds=retrieved.seconds)
                self.log.record(failed, context, finished=False)
            raise
        return replace(extraction, log_id=self.log.record(extraction.answer, context)) if self.log else extraction

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What a promise about verified citations holds for.

        The documents' content is left out, or each sync would end the promise: most changes leave the judge as good as
        it is. Labels after a change that does not are evidence against the promise. Another collection may be of
        another kind, so its id is in.
        """
        contract = self.collection.contract
        return {
            "collection": self.collection.id,
            "embedder": str(contract.get("weights") or contract["model"]),
            "judge": self.judge.sha256 if self.judge else "none",
            "reader": self.reader_name,
            "adapter": _adapter_hash(self.sampling.adapter) or "none",
            "strategy": self.strategy.label,
        }

    def _log_context(self, prompt: Prompt | None, start: float) -> AnswerContext:
        """For the log: a question that was asked at `start`, whose passages were retrieved just now."""
        found, groups = time.monotonic() - start, self.collection.groups
        adapter = self.sampling.adapter
        return AnswerContext(self.reader_name, adapter, groups, prompt, start, found, self.origin, self.fingerprint)

    @property
    def answer_fingerprint(self) -> Mapping[str, str]:
        """What a promise about answers holds for: the confidence depends on the calibration, too."""
        settings = (self.calibration, self._settings.min_confidence, self._settings.mode)
        return {**self.fingerprint, "calibration": sha256(repr(settings).encode()).hexdigest()[:16]}

    @property
    def _answered_guarantee(self) -> Guarantee | None:
        """What is promised about answers that are `answered`."""
        promise = self._settings.answered_guarantee
        if promise is None:
            return None
        lapsed = self.collection.answer_log.why_lapsed(promise, self.answer_fingerprint)
        if self._settings.wrong_cost < promise.wrong_cost:
            lapsed = f"ask.wrong_cost is {self._settings.wrong_cost:g}, below {promise.wrong_cost:g}"
        return promise.guarantee(lapsed)

    @property
    def _sees(self) -> bool:
        """Whether the reader sees pictures."""
        return bool(getattr(self.base_reader, "vision", False))

    def _bundled_embedder(self) -> Embedder | None:
        """The embedder of the collection if it is the bundled one, so that no second one is loaded."""
        return self.collection.embedder if self.collection.contract.get("embedder") == "bundled" else None

    def _closeness(self, query: str, texts: Sequence[str]) -> list[float]:
        """The cosine of each text and the query."""
        embedder = self.collection.embedder
        cosines: list[float] = (embedder.embed_passages(texts) @ embedder.embed_queries([query])[0]).tolist()
        return cosines

    def _dated(self, cited: Sequence[Cited]) -> tuple[Cited, ...]:
        """Citations or contradictions with the dates of their documents."""

        def date_of(uri: str) -> str:
            metadata = self.collection.metadata(uri)
            dates = (_DATE.match(str(metadata.get(key, ""))) for key in _DATE_KEYS)
            return next((date[0] for date in dates if date), "")

        return tuple(replace(one, date=date_of(one.uri)) for one in cited)

    def choose(self, hits: Sequence[Hit]) -> tuple[list[Hit], list[Dropped]]:
        """Of hits, best first: those to answer from, and the near-duplicates that were dropped before the last one."""
        return distinct(hits, self.k)

    def prompt(self, question: str, hits: Sequence[Hit], *, pictures: bool = True) -> Prompt:
        """The prompt for a question and hits, with `pictures` of figures if the reader sees them.

        Raises ContextOverflowError if the question alone does not fit.
        """
        retrieved = Retrieved(question, question, time.monotonic(), (), hits, hits)
        return self._build_prompt(retrieved, documents_only=self._documents_only, pictures=pictures)

    def _retrieve(
        self, question: str, history: Sequence[Message], filter: str | None, hits: Sequence[Hit] | None
    ) -> Retrieved:
        """Retrieve → rerank."""
        return self._retriever.find(question, history, filter, hits, k=self.k, collection=self.collection)

    def _build_prompt(
        self,
        retrieved: Retrieved,
        *,
        documents_only: bool,
        tokens: int | None = None,
        instruction: str | None = None,
        images: Sequence[ImagePart] = (),
        pictures: bool = True,
    ) -> Prompt:
        """Build the prompt, with `tokens` of the window left for the answer."""

        @cache  # a document's text is read once
        def text_of(uri: str) -> str:
            try:
                return self.collection.document(uri).text
            except CollectionError:  # removed since
                return ""

        def picture_of(image: str) -> ImagePart | None:
            try:
                return self.collection.image(image)
            except CollectionError:  # removed since
                return None

        prompt = build_prompt(
            retrieved.query,
            retrieved.chosen,
            self.reader,
            history=retrieved.history,
            earlier=retrieved.earlier,
            answer_tokens=tokens or self.sampling.max_tokens or 1,
            arrange=partial(arrange, text_of=text_of),
            documents_only=documents_only,
            instruction=instruction,
            strategy=None if instruction else self.strategy,
            widening=self._widening() if retrieved.searched else (),
            images=images,
            picture_of=picture_of if self._sees and pictures else None,
        )
        return replace(prompt, dropped=(*retrieved.duplicates, *prompt.dropped))

    def _widening(self) -> tuple[Widening, ...]:
        """What a reader that can use more is shown around the hits: whole tables, then the chunks next to the hits."""
        if self._passages <= DEFAULT_PASSAGES:
            return ()
        tokens = self.k * self.collection.embedder.max_tokens
        tables = ((self.collection.table_chunks, 2 * tokens),) if self._passages >= MANY_PASSAGES else ()
        return (*tables, (self.collection.neighbours, tokens))


def _scoped(reader: Reader, collection: Collection, origin: Origin) -> Reader:
    """The reader with a prompt cache of its own for the handle's groups: cache hits must not reveal others' prompts."""
    if collection.groups is None or not (scoped := getattr(reader, "scoped", None)):
        return reader
    result: Reader = scoped(prompt_scope(collection.groups, origin.key))
    return result


def prompt_scope(groups: Set[str], key: str | None = None) -> str:
    """The scope of the reader for users with these groups, and with an API key, see `LocalReader.scoped`."""
    return "\n".join([f"groups of {key}" if key else "groups", *sorted(groups)])


def _usage(usage: Usage) -> dict[str, int]:
    """Token counts for a span."""
    return {
        "input_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
    }


def _checked(k: int | None) -> int | None:
    if k is not None and k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    return k
