"""Request and response bodies: OpenAI's forms, with ragfm's additions under `ragfm`."""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ragfm.core.promise import Guarantee
from ragfm.core.types import Answer, AnswerStatus, Box, Calculation, Citation, Contradiction, Dropped, Hit, ImagePart
from ragfm.evaluation.log_insights import Insights
from ragfm.integrations.answer_check import MAX_ANSWER, CheckedSentence

UNKNOWN_MEMBER = "unknown_member"
"""The type of the validation error for a member that an object does not have."""
_SHOWN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)  # a name that a header can contain
_MAX_SHOWN_NAMES = 20

# --- Requests ----------------------------------------------------------------------------------------------------


class OwnRequest(BaseModel):
    """An object of ragfm's own API. A member that it does not have is refused: its sender relies on its effect."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                fields = {"name": name, "known": ", ".join(cls.model_fields)}
                raise PydanticCustomError(UNKNOWN_MEMBER, "There is no such member. Known are {known}", fields)
        return value


Groups: TypeAlias = Annotated[
    list[str] | None,
    Field(max_length=1000, description="Groups of the key to restrict the request to. Default: all, and its uploads."),
]


class _OpenAIRequest(BaseModel):
    """An object of OpenAI's API, whose other members are ignored; the response names them."""

    model_config = ConfigDict(extra="allow")

    @property
    def warning_headers(self) -> dict[str, str]:
        """The header of the response that names the ignored members, if there are any."""
        names = [name for name in self.model_extra or () if _SHOWN_NAME.fullmatch(name)]
        return {"x-ragfm-ignored": ", ".join(names[:_MAX_SHOWN_NAMES])} if names else {}


# --- Chat --------------------------------------------------------------------------------------------------------

_DATA_URI = re.compile(r"data:(?P<media_type>image/(?:png|jpeg|webp));base64,(?P<data>[^,]+)", re.IGNORECASE)
Stop: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class TextPart(BaseModel):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """An image as a `data:` URI (`data:image/png;base64,…`). The server fetches nothing. `detail` is ignored."""

    url: str
    detail: str | None = None


class ImageUrlPart(BaseModel):
    """An image in a user's message, for a reader with vision."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(BaseModel):
    """A message. System and tool messages are ignored: ragfm has its own instructions for the reader."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]] | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""

    @property
    def images(self) -> list[ImagePart]:
        """The message's images. Raises ValueError with the reason why one cannot be used."""
        images = []
        for part in self.content if isinstance(self.content, list) else ():
            if isinstance(part, ImageUrlPart):
                found = _DATA_URI.fullmatch(part.image_url.url)
                if not found:
                    raise ValueError(
                        "An image must be a data: URI of a PNG, JPEG or WebP image in base64; no addresses are fetched"
                    )
                try:
                    images.append(ImagePart(b64decode(found["data"], validate=True), found["media_type"].lower()))
                except ValueError as error:
                    raise ValueError(f"The base64 of an image is not valid: {error}") from error
        return images


class StreamOptions(BaseModel):
    """Options of a stream. `include_usage` puts the usage into a last event without choices, as OpenAI does."""

    include_usage: bool = False


class TextFormat(BaseModel):
    """The format of answers. Only text is supported."""

    type: Literal["text"]


class ChatOptions(OwnRequest):
    """ragfm's own parameters."""

    k: int | None = Field(None, ge=1, le=50, description="Maximum number of passages for the reader.")
    filter: str | None = Field(None, max_length=2000, description="Filter on the documents' metadata.")
    groups: Groups = None


class ChatRequest(_OpenAIRequest):
    """A question and the conversation before it. Other parameters of OpenAI's API are ignored."""

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
    # Parameters that would change the answer and are not supported are refused, not ignored.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[object], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_misplaced(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in ChatOptions.model_fields:
                raise PydanticCustomError(UNKNOWN_MEMBER, "This is a member of `ragfm`", {"name": name})
        return value


class UrlCitation(BaseModel):
    """The cited sentence, as a span of the content, and the address of the document."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A citation in OpenAI's form."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class AnswerDetails(BaseModel):
    """An answer with its evidence.

    `answer` is the text with corrected citation markers, which the pieces of a stream do not have. `contradictions` are
    passages that say otherwise. `status`: `answered`, `unsure`, or `not_found`. `shown` is the text for users. It
    contains the `quote` if there is one: the sentence or table row that supports the answer or, with a small reader,
    most likely has it. An unsure answer of a small reader is not in it. `nearest` are the sentences that come closest
    to an answer if there is none. `calculation` is how a number was calculated that no passage has. `passages` are the
    hits with their numbers in the prompt. `unsupported` are the spans (start, end) of the sentences of `answer` that no
    passage supports. `guarantee` is what is promised about verified citations, `answered_guarantee` about answers that
    are `answered`. `notes` are for users. `rating` identifies the answer for `/v1/ratings`; it is null without an
    answer log.
    """

    answer: str
    status: AnswerStatus
    shown: str
    quote: Citation | None
    confidence: float | None
    abstained: bool
    citations: list[Citation]
    contradictions: list[Contradiction]
    nearest: list[Citation]
    passages: list[Hit]
    dropped: list[Dropped]
    unsupported: list[tuple[int, int]]
    query: str
    seconds: float
    notes: list[str] = []
    calculation: Calculation | None = None
    guarantee: Guarantee | None = None
    answered_guarantee: Guarantee | None = None
    rating: str | None = None

    @classmethod
    def of(cls, answer: Answer, rating: str | None) -> AnswerDetails:
        """The details of an answer."""
        own_names = {"answer": answer.text, "passages": answer.hits, "rating": rating}
        return cls(**own_names, **{name: getattr(answer, name) for name in cls.model_fields.keys() - own_names.keys()})


class PromptDetails(BaseModel):
    """Prompt tokens that came from the prefix cache."""

    cached_tokens: int


class ChatUsage(BaseModel):
    """Token counts of an answer."""

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
    """The only choice."""

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
    """Omits null values, as clients expect in the chunks of an answer."""

    @model_serializer(mode="wrap")
    def _omit_null(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class Delta(_Sparse):
    """The new part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None


class ChunkChoice(BaseModel):
    """The only choice."""

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
    """A collection, or a collection with a certain reader."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ragfm"] = "ragfm"


class ModelList(BaseModel):
    """The models that a key may use."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class SearchRequest(OwnRequest):
    """A search query."""

    query: str = Field(min_length=1, max_length=10_000)
    model: str | None = Field(None, max_length=200, description="The collection. Default: the key's first one.")
    k: int | None = Field(None, ge=1, le=200)
    mode: Literal["hybrid", "dense", "keyword"] = "hybrid"
    filter: str | None = Field(None, max_length=2000)
    groups: Groups = None


class SearchResult(BaseModel):
    """Hits, best first."""

    object: Literal["list"] = "list"
    model: str
    query: str
    data: list[Hit]


class CheckRequest(OwnRequest):
    """An answer of any system, to check against passages; by default against the collection."""

    answer: str = Field(min_length=1, max_length=MAX_ANSWER)
    question: str = Field("", max_length=10_000, description="The question that was answered.")
    passages: list[str | dict[str, Any]] | None = Field(
        None, max_length=1000, description="Texts, or objects with `text` and optionally `uri`, `page` and `start`."
    )
    model: str | None = Field(None, max_length=200, description="The collection. Default: the key's first one.")
    k: int | None = Field(None, ge=1, le=50, description="Passages of the collection for each sentence.")
    groups: Groups = None


class CheckResult(BaseModel):
    """The sentences of the answer, in order, and what the passages say about each."""

    object: Literal["list"] = "list"
    data: list[CheckedSentence]


class EmbeddingRequest(_OpenAIRequest):
    """Texts to embed with the collection's embedder."""

    model: str = Field(max_length=200)
    input: str | Annotated[list[str], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Must be the embedder's dimension, if given.")
    input_type: Literal["passage", "query"] = Field("passage", description="Kind of text: models may differ.")


class EmbeddingItem(BaseModel):
    """A vector: a list of numbers, or float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts of the embedded texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class RatingRequest(OwnRequest):
    """A user's rating of an answer, and a correction."""

    rating: str = Field(max_length=200, description="The `rating` of the answer.")
    thumbs: Literal["up", "down"]
    correction: str | None = Field(None, max_length=10_000)


class Rated(BaseModel):
    """The stored rating."""

    rating: str
    thumbs: Literal["up", "down"]


class InsightList(BaseModel):
    """The insights of a collection. `everybody`: they are about the questions of all keys, not only of this one."""

    object: Literal["insights"] = "insights"
    model: str
    everybody: bool
    data: Insights


class LoggedPassage(BaseModel):
    """A passage that the reader read, with its number in the prompt. If its document has `changed`, it has no text."""

    uri: str
    n: int
    start: int
    end: int
    page: int | None
    text: str
    changed: bool


class LoggedAnswer(BaseModel):
    """A logged question and its answer, which is null if the key may not see, or nobody can, all that the reader read.

    Nor does it have evidence or a correction then. `key` is the name of the key that asked.
    """

    id: int
    at: str
    question: str
    query: str
    status: AnswerStatus | None
    confidence: float | None
    thumbs: Literal["up", "down"] | None
    seconds: dict[str, float]
    key: str | None
    answer: str | None = None
    correction: str | None = None
    citations: list[Citation] = []
    contradictions: list[Contradiction] = []
    passages: list[LoggedPassage]


# --- Documents ---------------------------------------------------------------------------------------------------

State: TypeAlias = Literal["queued", "indexing", "ready", "failed"]


class IndexingProgress(BaseModel):
    """Progress of the key's own uploads: those that are indexed or have failed, all, and chunks in the index."""

    documents: int
    total: int
    chunks: int


class DocumentCard(BaseModel):
    """A document, or an upload that is not indexed yet.

    `yours`: it was uploaded with this key and can be deleted. An archive is one upload and many documents. `name` is a
    short form of the URI.
    """

    object: Literal["document"] = "document"
    uri: str
    name: str
    state: State
    yours: bool
    source: str | None = None
    media_type: str | None = None
    characters: int | None = None
    chunks: int | None = None
    metadata: dict[str, str | int | float | bool] = {}
    error: str | None = Field(None, description="Why it is not indexed.")
    progress: IndexingProgress | None = None


class DocumentText(DocumentCard):
    """A document with its text from `start` on. The text is null before it is indexed."""

    start: int = 0
    text: str | None = None


class DocumentList(BaseModel):
    """Documents in order of URI. `next` is `after` of the next page. `groups` are those that an upload may name."""

    object: Literal["list"] = "list"
    data: list[DocumentCard]
    next: str | None = None
    groups: list[str] = []


class DocumentSection(BaseModel):
    """A section: its heading, after those above it, and its characters, those of its subsections included."""

    headings: tuple[str, ...]
    level: int
    start: int
    end: int
    page: int | None


class Outline(BaseModel):
    """The sections of a document, in order. `next` is `start` of the following ones, null at the end."""

    object: Literal["outline"] = "outline"
    uri: str
    characters: int
    pages: int
    sections: list[DocumentSection]
    next: int | None


class TextPlace(BaseModel):
    """A place of a text: its characters, the `text` around it, the headings above it, and its page."""

    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    page: int | None


class TextPlaces(BaseModel):
    """The places where a text occurs, in order. `next` is `start` of the following ones, null at the end."""

    object: Literal["list"] = "list"
    uri: str
    places: list[TextPlace]
    next: int | None


class PageBoxes(BaseModel):
    """Where a quote stands on a page: a box for each line, none if the place is not certain.

    A box is left, top, right and bottom, as fractions of the page from its top left corner.
    """

    object: Literal["boxes"] = "boxes"
    page: int
    boxes: list[Box]


class Deleted(BaseModel):
    """A deletion. `deleted` is false if the document is still in the index; it will be removed soon."""

    object: Literal["document"] = "document"
    uri: str
    deleted: bool
