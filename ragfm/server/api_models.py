"""Requests and responses as they go over the wire: OpenAI's forms, and what ragfm adds under `ragfm`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from ragfm.core.types import Answer, Citation, Dropped, Hit

# --- Chat --------------------------------------------------------------------------------------------------------

Stop: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class TextPart(BaseModel):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn. Those of the system and of tools are left out: the reader is told how to answer by ragfm."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """Whether a stream's last event comes on its own, without a choice, as OpenAI's does."""

    include_usage: bool = False


class TextFormat(BaseModel):
    """Answers are text."""

    type: Literal["text"]


class ChatOptions(BaseModel):
    """What ragfm takes beside OpenAI's parameters."""

    k: int | None = Field(None, ge=1, le=50, description="How many passages the reader is given, at most.")
    filter: str | None = Field(None, max_length=2000, description="Only documents whose metadata meets it.")


class ChatRequest(BaseModel):
    """A question, and the turns before it. Of OpenAI's parameters those that aren't named here are ignored."""

    model: str = Field(max_length=200, description="A collection, or `collection:reader`.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**32)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    ragfm: ChatOptions | None = None
    # What changes an answer and can't be done is refused, not ignored.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[object], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None


class UrlCitation(BaseModel):
    """Where in the content a citation stands, and what it leads to."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A citation in OpenAI's form."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class AnswerDetails(BaseModel):
    """All that is known of an answer.

    `answer` is its text with the citation markers put right, which the pieces of a stream have not; `passages` are the
    hits, with their number in the prompt. `unsupported` are the sentences of `answer`, as (start, end), that no passage
    supports. `rating` is what `/v1/ratings` calls the answer, where a log is kept.
    """

    answer: str
    abstained: bool
    citations: list[Citation]
    passages: list[Hit]
    dropped: list[Dropped]
    unsupported: list[tuple[int, int]]
    query: str
    seconds: float
    rating: str | None = None

    @classmethod
    def of(cls, answer: Answer, collection: str) -> AnswerDetails:
        """Those of an answer from a collection."""
        return cls(
            answer=answer.text,
            abstained=answer.abstained,
            citations=list(answer.citations),
            passages=list(answer.hits),
            dropped=list(answer.dropped),
            unsupported=list(answer.unsupported),
            query=answer.query,
            seconds=answer.seconds,
            rating=None if answer.log_id is None else f"{collection}/{answer.log_id}",
        )


class PromptDetails(BaseModel):
    """Tokens of the prompt that were not evaluated again."""

    cached_tokens: int


class ChatUsage(BaseModel):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]


class ChatChoice(BaseModel):
    """The one choice that there is."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    ragfm: AnswerDetails


class _Sparse(BaseModel):
    """What is none is left out, as clients expect of parts of an answer."""

    @model_serializer(mode="wrap")
    def _filled(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class Delta(_Sparse):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None


class ChunkChoice(BaseModel):
    """The one choice that there is."""

    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(_Sparse):
    """An event of a streamed answer. The last one has `usage` and `ragfm`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    ragfm: AnswerDetails | None = None


# --- Models, search, embeddings ----------------------------------------------------------------------------------


class ModelCard(BaseModel):
    """A collection, or a collection with a reader."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ragfm"] = "ragfm"


class ModelList(BaseModel):
    """The models that a key may ask."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class SearchRequest(BaseModel):
    """A search."""

    query: str = Field(min_length=1, max_length=10_000)
    model: str | None = Field(None, max_length=200, description="The collection; the key's first one if not given.")
    k: int | None = Field(None, ge=1, le=200)
    mode: Literal["hybrid", "dense", "keyword"] = "hybrid"
    filter: str | None = Field(None, max_length=2000)


class SearchResult(BaseModel):
    """Hits, best first."""

    object: Literal["list"] = "list"
    model: str
    query: str
    data: list[Hit]


class EmbeddingRequest(BaseModel):
    """Texts to embed as the collection's embedder does."""

    model: str = Field(max_length=200)
    input: str | Annotated[list[str], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="The embedder's own, if given.")
    input_type: Literal["passage", "query"] = Field("passage", description="What the texts are; models may differ.")


class EmbeddingItem(BaseModel):
    """A vector: numbers, or float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens embedded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors of the texts, in their order."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class RatingRequest(BaseModel):
    """What a user thought of an answer, and what would have been right."""

    rating: str = Field(max_length=200, description="The `rating` that came with the answer.")
    thumbs: Literal["up", "down"]
    correction: str | None = Field(None, max_length=10_000)


class Rated(BaseModel):
    """It is kept."""

    rating: str
    thumbs: Literal["up", "down"]


# --- Documents ---------------------------------------------------------------------------------------------------

State: TypeAlias = Literal["queued", "indexing", "ready", "failed"]


class Progress(BaseModel):
    """How far the job is that indexes it: documents done with, of how many; chunks embedded."""

    documents: int
    total: int
    chunks: int


class DocumentCard(BaseModel):
    """A document, or an upload that is to become one.

    `yours`: it was uploaded with this key, and can be deleted. An archive is one upload and many documents.
    """

    object: Literal["document"] = "document"
    uri: str
    state: State
    yours: bool
    source: str | None = None
    media_type: str | None = None
    characters: int | None = None
    chunks: int | None = None
    metadata: dict[str, str | int | float | bool] = {}
    error: str | None = Field(None, description="Why it can't be indexed, or was not yet.")
    progress: Progress | None = None


class DocumentText(DocumentCard):
    """A document with its text from `start` on; null where it is not indexed yet."""

    start: int = 0
    text: str | None = None


class DocumentList(BaseModel):
    """Documents in order of uri; `next` is the `after` of those that follow. `groups` are those an upload may name."""

    object: Literal["list"] = "list"
    data: list[DocumentCard]
    next: str | None = None
    groups: list[str] = []


class Deleted(BaseModel):
    """`deleted`: no search finds it any more. Else it soon will be so."""

    object: Literal["document"] = "document"
    uri: str
    deleted: bool
