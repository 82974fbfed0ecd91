"""The values that the parts hand to each other, and the seams (protocols) between them.

    Connector ─refs→ sync ─fetch→ Blob ─parse→ Document ─split→ Chunk ─embed→ vectors
                                                                   │
                        ┌──────────── Catalog (the log: the only truth) ────────────┐
                        ▼                                                           ▼
              vector view (FAISS …)                                      keyword view (BM25)
                        └────────────→ Retriever ─→ [Hit] ─→ prompt ─→ Reader ─→ Answer

Values are frozen dataclasses. Character offsets count Unicode code points of `Document.text`, `end` is exclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from ragfm.core.errors import RagfmError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]
    """Embeddings. *Shape:* (n, dim), rows of length 1."""
    Ids: TypeAlias = NDArray[np.int64]
    """Chunk ids. *Shape:* (n,) unless said otherwise."""
    Offsets: TypeAlias = NDArray[np.int64]
    """Where each token of a text stands. *Shape:* (n_tokens, 2): start and end, in characters."""

Scalar: TypeAlias = str | int | float | bool
"""What a metadata value may be."""

# --- Documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ref:
    """One entry of a source: where it is and which revision it has.

    `path` is relative to the source, with `/`; it is empty where the source is a single document. `revision` is
    opaque: it is compared, never parsed. `skip` says why the connector will not hand the entry over (hidden, too
    large); `error` says why it could not be looked at, and what lies under such a path counts as still there: all that
    the source holds, where it is empty.
    `allow` are the groups that may see it where the source itself says so: none of them where it is empty, and None
    where the source says nothing.
    """

    path: str
    revision: str = ""
    skip: str | None = None
    error: str | None = None
    allow: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one entry, as fetched. `media_type` is what the source says of them, None where it says nothing."""

    data: bytes
    media_type: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a parser knows about a stretch of `Document.text`.

    kind       `value`
    page       the page's number, from 1; the span is all that stands on that page
    place      the format's own name of the place, as `Sheet1!A5` or `00:01:20`; a table's rows may have one each
    heading    the heading's words; `level` is 1 for the outermost; the span is the heading's own line or lines
    table      the header row or rows, as they stand in the text; the span is the whole table, header included
    code       the language, or empty; the span is the whole block
    """

    kind: Literal["page", "place", "heading", "table", "code"]
    start: int
    end: int
    value: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document. `text` is exactly what a reader may see; `marks` are in order of `start`."""

    uri: str
    text: str
    media_type: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document: `document.text[start:end] == text`, always.

    `context` (heading path, header of a torn table) is embedded, indexed and shown to the reader with the text,
    but is never part of the span. `page` counts from 1, None where the format has none.
    """

    text: str
    start: int
    end: int
    context: str = ""
    page: int | None = None
    place: str | None = None
    headings: tuple[str, ...] = ()

    @property
    def embedded_text(self) -> str:
        """What is embedded and indexed: context, line break, text."""
        return embedded_text(self.context, self.text)


def embedded_text(context: str, text: str) -> str:
    """What of a chunk is embedded and indexed."""
    return f"{context}\n{text}" if context else text


Fault: TypeAlias = Literal["fabricated", "misattributed", "stitched", "irrelevant", "uncertain"]
"""Why a citation is not verified."""

# --- Answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found for a query; hits come in rank order.

    `score` is the cosine in [-1, 1], higher is better, None in keyword mode. `scores` has the keys `dense`,
    `keyword` and `fused`, and `rerank` where a reranker gave them their order. `n` is the passage's number in the
    prompt, None if it was not shown to a reader.
    """

    uri: str
    text: str
    start: int
    end: int
    chunk_id: int
    score: float | None
    scores: Mapping[str, float | None]
    page: int | None = None
    place: str | None = None
    headings: tuple[str, ...] = ()
    context: str = ""
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `content` is text; image parts may join it later."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Citation:
    """Evidence for a sentence of an answer: passage `n`, and the words `quote` at `start:end` of the document `uri`.

    `answer.text[answer_start:answer_end]` is the sentence, its markers included.

    `verified`: the quote stands there verbatim *and* supports the sentence of the answer that it hangs on. `fault` says
    why it isn't: what the sentence says stands nowhere in the passages (`fabricated`), in another one
    (`misattributed`), only in pieces in several places (`stitched`), or there, but is hardly what was asked for
    (`irrelevant`) or perhaps not (`uncertain`).
    """

    n: int
    uri: str
    page: int | None
    start: int
    end: int
    quote: str
    verified: bool
    fault: Fault | None = None
    answer_start: int = 0
    answer_end: int = 0

    @property
    def supports(self) -> bool:
        """Whether the quote says what the sentence does, be it certain or not that this is what was asked for."""
        return self.verified or self.fault == "uncertain"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A passage that gives another number or name than the one that an answer's sentence has.

    Passage `n` has the words `quote` at `start:end` of the document `uri`; `answer.text[answer_start:answer_end]` is
    the sentence.
    """

    n: int
    uri: str
    page: int | None
    start: int
    end: int
    quote: str
    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A hit that was not shown to the reader, and why."""

    chunk_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation: of the prompt, of those the ones not evaluated again, and of the completion.

    `cost` is what they cost, where the reader has a price.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question got. `text` has citation markers `[n]`; `seconds` is wall-clock time, retrieval included.

    `confidence` is how likely it is right, in [0, 1], where there is a calibration for the reader and any of the
    signals that it weighs, and `signals` what that comes from; where the answer was withheld for too little of it, both
    are of what was withheld. `unsupported` are the sentences of `text`, as (start, end), that no passage supports.
    `query` is what was searched for: the question, or the form of a follow-up that stands alone. `log_id` is
    the answer's number in the answer log, where there is one. `finish_reason` is `length` where it was cut off.
    `reasoning` is what the reader thought before it answered, where it was asked to, or does so by itself. `said` are
    the reader's own words where the verifier corrected them.
    """

    question: str
    text: str
    abstained: bool
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    dropped: tuple[Dropped, ...]
    usage: Usage
    seconds: float
    unsupported: tuple[tuple[int, int], ...] = ()
    query: str = ""
    log_id: int | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    reasoning: str = ""
    confidence: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    said: str | None = None
    contradictions: tuple[Contradiction, ...] = ()


# --- Seams -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reader picks tokens. Temperature 0 is greedy: the same prompt gives the same text.

    `max_tokens` bounds the completion; None means what is left of the window. `grammar` is GBNF; `schema`, in its
    place, a JSON schema of an object. `adapter` is a LoRA adapter's path. With `logprobs` the stream has those of its
    tokens. A reader that can't do what is asked raises `UnsupportedError`, it never ignores it.
    """

    max_tokens: int | None = 512
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    schema: Mapping[str, Any] | None = None
    adapter: str | None = None
    logprobs: bool = False


CLOSED = "The stream was closed while it was read."


class Stream(Iterator[str]):
    """Text pieces as they are generated; afterwards `usage` and `finish_reason` (`stop` or `length`) are set.

    `close()` stops the generation and frees what it holds; leaving a `with` block or exhausting it does so too. Any
    thread may close it: who waits for a piece then gets a RagfmError, at once where the reader gave a `cancel`, else
    with the next piece. Where they were asked for, `logprobs` then has the natural logarithm of each token's
    probability, before temperature and grammar.
    """

    def __init__(
        self, pieces: Generator[str, None, tuple[Usage, Literal["stop", "length"]]], *,
        cancel: Callable[[], None] = lambda: None, logprobs: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self._pieces = pieces
        self._cancel = cancel
        self._closed = False
        self._logprobs = logprobs
        self.usage = Usage()
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def logprobs(self) -> tuple[float, ...]:
        """One for each token of the completion; empty before the end."""
        return tuple(self._logprobs[: self.usage.completion_tokens])

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        try:
            piece = next(self._pieces)
        except StopIteration as stop:
            if stop.value is not None:
                self.usage, self.finish_reason = stop.value
            raise StopIteration from None
        if self._closed:  # by another thread, which could not end the generator while it ran in this one
            self._pieces.close()
            raise RagfmError(CLOSED)
        return piece

    def close(self) -> None:
        """Stop generating. Closing twice does nothing."""
        self._closed = True
        self._cancel()
        with suppress(ValueError):  # it runs in another thread
            self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@runtime_checkable
class Connector(Protocol):
    """Knows *where* documents are, never *what format* they have. Made as `Connector(location, **options)`."""

    @property
    def root(self) -> str | Path:
        """What it covers, as a path or the beginning of an address; sources whose roots are nested overlap."""

    def refs(self) -> Iterator[Ref]:
        """All that the source holds, cheaply; an exception means that the listing is not complete."""

    def fetch(self, ref: Ref) -> Blob:
        """The bytes of one entry. Raises OSError or ConnectorError where it can't be read.

        Raises SkipDocument where a look at it shows that there is nothing to index.
        """


@runtime_checkable
class Embedder(Protocol):
    """Texts to unit vectors, with the model's own prompts applied. Made as `Embedder(model)`; it loads on first use."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a passage that fit, special tokens and the model's own prompt already taken off."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract: all that vectors depend on, as JSON.

        `model`, `dim` and `max_tokens` must be there. `weights`, their sha256, is what the shipped search weights and
        a calibration go by. Two embedders whose fingerprints are equal, `model` aside, give the same vectors.
        """

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Where the model's tokens stand in each text; special tokens and prompts are left out, nothing is cut."""

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim). Raises TooLongError for a text over `max_tokens`, it never cuts."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The same for queries."""


@runtime_checkable
class VectorIndex(Protocol):
    """An immutable index over vectors. Ids are any distinct int64 ≥ 0; score = cosine, higher is better.

    `recall` is what an index promises to find: of the true best 10, the share that is among the 40 that it returns
    when it is asked for 40. An exact index promises 1.0, and its scores are the cosines. The scores of the others may
    be off by 0.01: who asks them wants more than `k` hits, scores these by their vectors and keeps the best `k`.
    """

    recall: ClassVar[float]

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> VectorIndex:
        """An index of `vectors`, whose rows are of unit length."""

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first. *Shape:* both (n_queries, k).

        Only `allowed` ids are returned where it is given; ids in it that the index lacks do nothing. As many as
        there are, up to `k`, are always found, by an approximate index too; the rest has id -1 and score -inf. A
        read-only `allowed` array may be remembered, so that it costs nothing the second time: it must not change.
        """

    def save(self, folder: Path) -> None:
        """Write the index as files into an empty folder."""

    @classmethod
    def load(cls, folder: Path) -> VectorIndex:
        """Read what `save` wrote. The caller has checked the files' checksums."""

    def __len__(self) -> int: ...


@runtime_checkable
class KeywordIndex(Protocol):
    """An immutable index over texts. Ids are any distinct int64 ≥ 0; score = BM25, > 0, higher is better.

    Texts of one index share a language, by whose rules words are stemmed and stop words left out. The scores depend on
    how many texts have a word: who may see a few texts only can learn from them that others have it, but not which.
    """

    @property
    def language(self) -> str | None:
        """ISO 639-1, or `simple` for words as they stand; None while none was given and there was no text."""

    @classmethod
    def build(cls, ids: Ids, texts: Iterable[str], *, language: str | None = None) -> KeywordIndex:
        """An index of `texts`, which are gone through once, in the order of `ids`. None means to detect the language.

        Raises ValueError for ids or a language that it can't take, and for another number of texts.
        """

    def updated(self, ids: Ids, texts: Iterable[str], *, removed: Ids | None = None) -> KeywordIndex:
        """An index that has these texts too and lacks the ids `removed`, in time for the new texts alone.

        Scores are those of one index built of all. What is removed may count in the statistics until the index is
        saved, but is never found. Raises ValueError as `build` does, and for an id that the index has.
        """

    def search(self, queries: Sequence[str], k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first; of equal scores the lower id comes first.

        *Shape:* both (n_queries, k). A text matches where it shares a word with the query. Only `allowed` ids are
        returned where it is given; ids in it that the index lacks do nothing. Where fewer than `k` match, the rest has
        id -1 and score -inf.
        """

    def save(self, folder: Path) -> None:
        """Write the index as files into an empty folder."""

    @classmethod
    def load(cls, folder: Path) -> KeywordIndex:
        """Read what `save` wrote; ValueError where it can't be used. The caller has checked the files' checksums."""

    def __len__(self) -> int: ...


@runtime_checkable
class Reranker(Protocol):
    """Scores passages by reading each together with the query. Made as `Reranker(model)`; it loads on first use."""

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """Scores of the texts, which come best first; higher is better. *Shape:* (len(texts),).

        With a budget the first texts are scored first, and what can't be done in so many milliseconds is NaN.
        """


@runtime_checkable
class Reader(Protocol):
    """A foundation model that answers. Made as `Reader(model)`; it loads on first use. Thread-safe.

    It may also have `score(messages, continuations)`: the log-likelihood of each as the next assistant message. One
    that can't know its tokens has `counts_exactly = False`, and counts rather too many than too few. One that gives
    several answers at once says how many: `slots`.

    These are used, too, where it has them. `keep(messages)` evaluates what all prompts begin with ahead; it is in no
    document. `scoped(name)` is the same reader for those who may see the same: it shares no memory of prompts with
    others. `memory_bytes` are the bytes that it takes with one request and with all slots in use. `data_goes` says
    where questions and passages go. One that takes `Sampling.adapter` takes `score(..., adapter=)`.
    """

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and completion may have together."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, exactly, after the model's own chat template."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Generate the next assistant message. Raises ContextOverflowError where the prompt leaves no room."""
