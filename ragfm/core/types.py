"""Values that the parts pass to each other, and protocols: the extension points.

    Connector ─refs→ sync ─fetch→ Blob ─parse→ Document ─chunk→ Chunk ─embed→ vectors
                                                                   │
                        ┌──────────── Catalog (the log: the only truth) ────────────┐
                        ▼                                                           ▼
              vector view (FAISS …)                                      keyword view (BM25)
                        └────────────→ Retriever ─→ [Hit] ─→ prompt ─→ Reader ─→ Answer

Values are frozen dataclasses. Character offsets count Unicode code points of `Document.text`, `end` is exclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from ragfm.core.errors import RagfmError
from ragfm.core.notebook import Block, Heading, as_html, as_markdown
from ragfm.core.promise import Guarantee
from ragfm.core.table_rows import TableRow, text_blocks
from ragfm.core.text import displayed_name, displayed_quote, escape_markers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As text, so that this module need not import numpy.
Vectors: TypeAlias = "NDArray[np.float32]"
"""Embeddings. *Shape:* (n, dim), rows of length 1."""
Ids: TypeAlias = "NDArray[np.int64]"
"""Chunk ids. *Shape:* (n,) unless noted otherwise."""
Offsets: TypeAlias = "NDArray[np.int64]"
"""Token positions in a text. *Shape:* (n_tokens, 2): start and end, in characters."""
Scalar: TypeAlias = str | int | float | bool
"""A metadata value."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom of a region, as fractions [0, 1] of its page, from the upper left corner."""
MAX_HOPS = 2
"""Maximum number of search rounds for a question."""

# --- Documents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ref:
    """One entry of a source: its path and its revision.

    `path` is relative to the source, with `/`; it is empty if the source is a single document. `revision` is opaque: it
    is compared, never parsed. `skip` is the reason why the connector does not offer the entry (hidden, too large).
    `error` is the reason why the entry could not be read; documents under its path, all of them if it is empty, count
    as still there. `allow` are the groups that may see the entry if the source defines access: empty for no group,
    None if the source does not say.
    """

    path: str
    revision: str = ""
    skip: str | None = None
    error: str | None = None
    allow: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one entry, as fetched. `media_type` is as declared by the source, None if it is not.

    `written` says that the connector has written a text of this type itself, as of a record, so that the path is no
    file name: `1@example.org` is not in the format of `.org` files.
    """

    data: bytes
    media_type: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    written: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """The structure of a span of `Document.text`.

    `value` by `kind`:

    - `page`: page number, from 1; the span is the page
    - `place`: the format's name for the place, such as `Sheet1!A5` or `00:01:20`; each row of a table may have one
    - `heading`: the heading's text; `level` is 1 for the outermost; the span is the heading itself. An empty one, with
      an empty span, ends the sections of its level and of deeper ones
    - `table`: the lines of the caption, if any, then the header row or rows, as in the text; the span is the whole
      table, header included, without the caption
    - `code`: the language, or empty; the span is the whole block
    - `figure`: the caption, or empty; the span is the figure's text: caption, alt text and recognized text, or without
      any of them a Markdown image line

    Of a figure, `image` is the key of its bytes in `Document.images`, and `box` its place on the page, None if the
    format has no pages.
    """

    kind: Literal["page", "place", "heading", "table", "code", "figure"]
    start: int
    end: int
    value: str = ""
    level: int = 0
    image: str = ""
    box: Box | None = None

    def to_list(self) -> list[Any]:
        """The mark as JSON values. A figure has a list of image and box for its level, which older versions ignore."""
        figure = [self.image, self.box and list(self.box)]
        return [self.kind, self.start, self.end, self.value, figure if self.image else self.level]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Mark:
        """The mark in the values of `to_list`."""
        kind, start, end, value, level = values
        if not isinstance(level, list):
            return cls(kind, start, end, value, level)
        image, box = level
        return cls(kind, start, end, value, 0, image, box and tuple(box))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document. `text` is all that readers see of it; `marks` are in order of `start`.

    `images` are the figures' PNG, JPEG or WebP files by the hex BLAKE2b-128 hash of their bytes.
    """

    uri: str
    text: str
    media_type: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    images: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document: `document.text[start:end] == text`, always.

    `context` (name of the document, heading path, caption and header of a table) is embedded, indexed and shown to the
    reader with the text, but is never part of the span. `page` counts from 1, None if the format has no pages. The
    chunks of a figure, one unless its text is long, have its `image` and `box`, see `Mark`.
    """

    text: str
    start: int
    end: int
    context: str = ""
    page: int | None = None
    place: str | None = None
    headings: tuple[str, ...] = ()
    image: str | None = None
    box: Box | None = None

    @property
    def embedded_text(self) -> str:
        """The text that is embedded and indexed: context, line break, text."""
        return embedded_text(self.context, self.text)


def embedded_text(context: str, text: str) -> str:
    """The text of a chunk that is embedded and indexed."""
    return f"{context}\n{text}" if context else text


Fault: TypeAlias = Literal["fabricated", "misattributed", "stitched", "picture", "subject", "unclear"]
"""Why a citation is not verified."""
AnswerStatus: TypeAlias = Literal["answered", "unsure", "not_found"]
_DOUBTS: Mapping[Fault, str] = {
    "fabricated": "not supported by this or any other passage",
    "misattributed": "not supported by this passage, but by another one",
    "stitched": "not supported: its parts come from different places",
    "picture": "read from the picture, which is not checked",
    "subject": "supported, but {missing} is not mentioned with it",
    "unclear": "seems to be supported, but not surely; check it",
}
_MAX_QUOTE = 300  # characters of a contradiction

# --- Answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk found for a query, or a passage made of several; hits are in rank order.

    `score` is the cosine in [-1, 1], higher is better, None in keyword mode. `scores` has the keys `dense`, `keyword`
    and `fused`, and `rerank` if a reranker ran. `n` is the passage's number in the prompt, None if it is not in it.
    `name` is the display name of the document. `lines` are the first and last line in the file, from 1, None if the
    format has no lines. `image` is the hash of a figure's image for `Collection.image`, `box` its place on the page.
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
    name: str = ""
    lines: tuple[int, int] | None = None
    image: str | None = None
    box: Box | None = None

    @property
    def location(self) -> str:
        """The document's name with lines as `name:12-40` or with the page, its place and headings."""
        place = f", {self.place}" if self.place else ""
        headings = f"  {' > '.join(self.headings)}" if self.headings else ""
        return f"{_location(self)}{place}{headings}"

    def _repr_html_(self) -> str:
        return as_html([Heading(self.location), *text_blocks(self.text, self.context)])

    def _repr_markdown_(self) -> str:
        return as_markdown([Heading(self.location), *text_blocks(self.text, self.context)])


class HitList(list[Hit]):
    """The hits of a search, best first, which notebooks show as passages."""

    def _blocks(self) -> Iterator[Block]:
        for rank, hit in enumerate(self, 1):
            score = "" if hit.score is None else f" {hit.score:.3f}"
            yield Heading(f"{rank}.{score}  {hit.location}")
            yield from text_blocks(hit.text, hit.context)
        if not self:
            yield "No passage matches."

    def _repr_html_(self) -> str:
        return as_html(self._blocks())

    def _repr_markdown_(self) -> str:
        return as_markdown(self._blocks())


def _location(where: Hit | Citation) -> str:
    name = displayed_name(where.name or where.uri)
    if where.lines:
        first, last = where.lines
        name = f"{name}:{first}-{last}" if last > first else f"{name}:{first}"
    elif where.page:
        name = f"{name}, page {where.page}"
    date = getattr(where, "date", "")
    return f"{name}, {date}" if date else name


def image_key(data: bytes) -> str:
    """The key of an image: the BLAKE2b-128 hash of its bytes, in hex."""
    return blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image in a message: its bytes, and their media type (`image/png`, `image/jpeg` or `image/webp`)."""

    data: bytes = field(repr=False)
    media_type: str

    @property
    def digest(self) -> str:
        """The hex digest by which a collection names the image: BLAKE2b of its bytes, 128 bits."""
        return image_key(self.data)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: a text, or text and images in their order.

    Only readers with `vision` accept images, and only in messages of the user.
    """

    role: Literal["system", "user", "assistant"]
    content: str | tuple[str | ImagePart, ...]

    @property
    def parts(self) -> tuple[str | ImagePart, ...]:
        """The content as parts."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The image parts."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True, slots=True)
class Citation:
    """Evidence for a sentence of an answer: passage `n`, and the words `quote` at `start:end` of the document `uri`.

    `answer.text[answer_start:answer_end]` is the sentence, its markers included. `name` is the document's display name,
    `lines` are the quote's first and last line in the file, `image` and `box` those of a figure, as in `Hit`. `date` is
    that of the document as ISO 8601 if the answer has contradictions; empty if the document has none.

    `verified`: the judge is sure that the quote supports the sentence, nothing that is compared exactly refutes it,
    and the quote is about the question; of a calculated number, that its row answers the question. `fault` says why
    not: no passage supports the sentence (`fabricated`), another passage does (`misattributed`), only pieces in
    several places do (`stitched`), no text does, but the reader saw the passage's picture, which is not checked
    (`picture`), or the quote supports the sentence, but may be about another subject (`subject`), or the judge is not
    sure or cannot read the language (`unclear`). `missing` are the periods, numbers and identifiers of the question
    that are not found with the quote. `row` is the table row that the quote is, None if it is not one. `probability`
    is how likely the judge finds that the quote supports the sentence and answers the question, in [0, 1], None if no
    judge read them.
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
    missing: tuple[str, ...] = ()
    name: str = ""
    lines: tuple[int, int] | None = None
    image: str | None = None
    box: Box | None = None
    row: TableRow | None = None
    date: str = ""
    probability: float | None = None

    @property
    def supports(self) -> bool:
        """Whether the quote supports the sentence, even if it may not answer the question."""
        return self.verified or self.fault in ("subject", "unclear")

    @property
    def location(self) -> str:
        """The document's name, with lines as `name:12-40` or with the page."""
        return _location(self)

    @property
    def displayed(self) -> str:
        """The quote in one line, in quotation marks and without headings above it; of a table row, `TableRow.text`."""
        return displayed_quote(self.quote, self.row)

    @property
    def doubt(self) -> str:
        """The fault in words; empty without one."""
        return _DOUBTS[self.fault].format(missing=" and ".join(self.missing)) if self.fault else ""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A passage that says otherwise than an answer's sentence.

    Passage `n` has the words `quote` at `start:end` of the document `uri`; `answer.text[answer_start:answer_end]` is
    the sentence. `name` is the document's display name, `row` the table row that the quote is, `date` the document's
    date as ISO 8601, empty if it has none.
    """

    n: int
    uri: str
    page: int | None
    start: int
    end: int
    quote: str
    answer_start: int
    answer_end: int
    name: str = ""
    row: TableRow | None = None
    date: str = ""

    @property
    def displayed(self) -> str:
        """The quote as `Citation.displayed`."""
        return displayed_quote(self.quote, self.row)

    @property
    def sentence(self) -> str:
        """The line that tells a user of it: `But [2] says otherwise: “…” (leave.md, 2025-03-01)`."""
        quote = escape_markers(self.displayed)
        ending = f": {quote}" if len(quote) <= _MAX_QUOTE else ""
        source = ", ".join(filter(None, (displayed_name(self.name), self.date)))
        source = f" ({escape_markers(' '.join(source.split()))})" if source else ""
        return f"But [{self.n}] says otherwise{f'{ending}{source}' or '.'}"


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One search for a question: its query, its round (from 1), and how many hits it had."""

    query: str
    round: int
    hits: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A hit that is not in the prompt, and the reason."""

    chunk_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation: prompt, the part of it that came from the prefix cache, and completion.

    The reader also evaluated `drafted_tokens` that it copied from the prompt, and `accepted_tokens` of them were right.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CalculationOperand:
    """A number that a calculation used, as the document writes it, and what it is: "Revenue — 2022"."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Calculation:
    """How a number was calculated. The operands are in the order of the answer's citations."""

    operation: str
    result: str
    working: str
    operands: tuple[CalculationOperand, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question. `text` has citation markers `[n]`; `seconds` is wall-clock time, including retrieval.

    `status`: the reader's answer is likely right (`answered`), may not be (`unsure`), or the documents have none
    (`not_found`), and `text` says "I don't know." `shown` is what a user should read: the text, and where the reader is
    small or the answer unsure, `quote`: the sentence or table row that supports the answer or, with a small reader,
    most likely has it. An unsure answer of a small reader is replaced by its quote. If there is no answer, `nearest`
    are the sentences that come nearest to one, from up to three passages.

    `confidence` is the probability that the answer is right, in [0, 1], None if it is not known, as without a judge;
    `signals` are what it is computed from. If the answer was withheld, both describe the withheld answer.
    `unsupported` are the sentences of `text` that no passage supports, as (start, end). `query` is the search query:
    the question, or the stand-alone form of a follow-up. `log_id` is the id in the answer log. `finish_reason` is
    `length` if the answer was cut off. `reasoning` is the reader's reasoning before the answer. `said` is the reader's
    own output if it was corrected. `contradictions` are passages that say otherwise. `searches` are the searches
    for the question, none if its passages were given. `notes` say what a user should know of how it was made.
    `calculation` is how a number was calculated that no passage has. `guarantee` is what is promised about the verified
    citations, None without a promise and for a calculated number; `answered_guarantee` is what is promised about
    answers that are `answered`.
    """

    question: str
    text: str
    status: AnswerStatus
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
    nearest: tuple[Citation, ...] = ()
    quote: Citation | None = None
    shown: str = ""
    searches: tuple[SearchStep, ...] = ()
    notes: tuple[str, ...] = ()
    calculation: Calculation | None = None
    guarantee: Guarantee | None = None
    answered_guarantee: Guarantee | None = None

    def __post_init__(self) -> None:
        if not self.shown:
            object.__setattr__(self, "shown", self.text)

    @property
    def abstained(self) -> bool:
        """Whether the answer is that the documents have none."""
        return self.status == "not_found"

    @property
    def shows_text(self) -> bool:
        """Whether `shown` has the text; if not, the quote replaces it."""
        return self.shown.startswith(self.text)

    @property
    def quoted_row(self) -> TableRow | None:
        """The table row that `shown` quotes, None if it quotes none."""
        quote = self.quote
        return quote.row if quote and quote.row and escape_markers(quote.displayed) in self.shown else None

    @property
    def evidence(self) -> tuple[Citation, ...]:
        """The citations of what is shown: those of the text, unless the quote replaces it, and the quote."""
        citations = self.citations if self.shows_text else ()
        quote = self.quote
        if quote and all((quote.uri, quote.start, quote.end) != (one.uri, one.start, one.end) for one in citations):
            return (*citations, quote)
        return citations

    def _blocks(self) -> Iterator[Block]:
        yield self.shown
        if self.quoted_row:
            yield [self.quoted_row]
        yield from (one.sentence for one in self.contradictions)
        for one in self.evidence:
            yield f"[{one.n}] {one.location}: {one.displayed}{f' ({one.doubt})' if one.doubt else ''}"
        if self.nearest:
            yield "The nearest passages say:"
            yield from (f"{one.location}: {one.displayed}" for one in self.nearest)
        yield from self.notes

    def _repr_html_(self) -> str:
        return as_html(self._blocks())

    def _repr_markdown_(self) -> str:
        return as_markdown(self._blocks())


# --- Readers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reader samples tokens. Temperature 0 is greedy: the same prompt gives the same text.

    `max_tokens` limits the completion; None means the rest of the window. `grammar` is GBNF; `schema` a JSON schema of
    an object, instead of a grammar. `adapter` is the path of a LoRA adapter. `logprobs` requests the log-probabilities
    of the tokens. A reader that does not support an option raises UnsupportedError; it never ignores it.
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


CLOSED = "The stream was closed while it was being read."


class Stream(Iterator[str]):
    """Pieces of text as they are generated; afterwards `usage` and `finish_reason` (`stop` or `length`) are set.

    `close()` stops the generation and frees its slot, as do exhausting the stream and leaving a `with` block. Any
    thread may close it: a thread that waits for a piece then gets a RagfmError, at once if the reader passed a
    `cancel`, else with the next piece. `logprobs`, if requested, are natural logarithms of the token probabilities,
    before temperature and grammar.
    """

    def __init__(
        self,
        pieces: Generator[str, None, tuple[Usage, Literal["stop", "length"]]],
        *,
        cancel: Callable[[], None] = lambda: None,
        logprobs: Sequence[float] = (),
    ) -> None:
        self._pieces = pieces
        self._cancel = cancel
        self._closed = False
        self._logprobs = logprobs
        self.usage = Usage()
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The log-probability of each token of the completion; empty before the end."""
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
        if self._closed:  # by another thread, which cannot close a running generator
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
    """Knows *where* documents are, never *what format* they have. Created as `Connector(location, **options)`.

    A class with `fetch_anywhere = True` can fetch what another process, maybe on another machine, has listed. With
    `parallel_fetches = 4`, up to four threads call `fetch` at once.
    """

    @property
    def root(self) -> str | Path:
        """The path or URL prefix that the source covers; sources with nested roots overlap.

        A method `covers(path)`, if there is one, says whether the source may have documents at a path below its root:
        where it has none, another source may.
        """

    def refs(self) -> Iterator[Ref]:
        """List everything in the source, cheaply; an exception means that the listing is incomplete."""

    def fetch(self, ref: Ref) -> Blob:
        """Read one entry. Raises OSError or ConnectorError, or SkipDocument if it has nothing to index."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into unit vectors, with the model's own prompts. Created as `Embedder(model)`; loads on first use.

    It may have a method `warm_up()`, which the server
    calls to load the backends that are fastest for many calls.
    """

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a passage, special tokens and the model's own prompt excluded."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract: everything that vectors depend on, as JSON values.

        `model`, `dim` and `max_tokens` are required. `weights` is the sha256 of the weights, which default search
        weights and calibrations refer to. Embedders with equal fingerprints, apart from `model`, give equal vectors.
        """

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Token positions of each text, without special tokens and prompts; nothing is truncated."""

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Embed passages. *Shape:* (len(texts), dim). Raises TooLongError for a text over `max_tokens`."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries. *Shape:* (len(texts), dim). Raises TooLongError."""


@runtime_checkable
class VectorIndex(Protocol):
    """An immutable vector index. Ids are any distinct int64 ≥ 0; the score is the cosine, higher is better.

    `recall` is the promised share of the true top 10 among the 40 results of a search with k = 40. An exact index
    promises 1.0 and returns exact cosines. Scores of approximate indexes may be off by 0.01: callers ask for more than
    `k` results, score them by their vectors and keep the best `k`.
    """

    recall: ClassVar[float]

    @classmethod
    def build(cls, ids: Ids, vectors: Vectors) -> VectorIndex:
        """Build an index of `vectors`, whose rows have unit length."""

    def search(self, queries: Vectors, k: int, *, allowed: Ids | None = None) -> tuple[Vectors, Ids]:
        """Scores and ids of the best `k`, best first. *Shape:* both (n_queries, k).

        With `allowed`, only these ids are returned; unknown ids are ignored. Even an approximate index always returns
        `k` results if there are as many; missing ones have id -1 and score -inf. A read-only `allowed` array may be
        cached by the index, so it must not change.
        """

    def save(self, folder: Path) -> None:
        """Write the index as files into an empty folder."""

    @classmethod
    def load(cls, folder: Path) -> VectorIndex:
        """Read the files of `save`. The caller has verified their checksums."""

    def __len__(self) -> int: ...


@runtime_checkable
class Reranker(Protocol):
    """Scores passages by reading each with the query. Created as `Reranker(model)`; loads on first use.

    An optional attribute `weight` in [0, 1] is the share of its scores in the order of hits, see
    `search.rerank_weight`.
    """

    def rerank(self, query: str, texts: Sequence[str]) -> Vectors:
        """Scores of the texts, higher is better. *Shape:* (len(texts),)."""


@runtime_checkable
class Reader(Protocol):
    """A foundation model that answers. Loads on first use. Thread-safe.

    Created as `Reader(model, context_tokens=…)`, with the options of the settings as further keyword arguments.

    Optional attributes:

    - `counts_exactly`: False if token counts are upper estimates
    - `vision`: True if messages of the user may have images; without it, they raise UnsupportedError
    - `slots`: number of requests that it serves at once
    - `passages`: number of passages that it answers best from; default: 3
    - `scoped(name)`: the same reader with a prompt cache that is not shared with other scopes
    - `memory_bytes`: bytes used with one request, and with all slots in use
    - `data_goes`: where questions and passages are sent
    """

    @property
    def context_tokens(self) -> int:
        """Size of the window: maximum number of tokens of prompt and completion."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact number of tokens of a prompt, after the model's chat template."""

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Generate the next assistant message. Raises ContextOverflowError if the prompt leaves no room."""
