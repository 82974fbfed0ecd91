"""A reader for models on a server that speaks OpenAI's protocol (`POST /chat/completions`), through OpenAI's SDK."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import openai

from ragfm.core.errors import (
    ConfigError,
    ContextOverflowError,
    EndpointError,
    ModelNotFoundError,
    RagfmError,
    ReaderBusyError,
    UnsupportedError,
)
from ragfm.core.types import Message, Sampling, Stream, Usage
from ragfm.generation.json_schema import OutputSchema
from ragfm.generation.readers import completion_room, speak, whole
from ragfm.generation.readers.remote_call import Call, Line

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

__all__ = ["OpenAIReader", "endpoint_of", "estimated_tokens"]

OPENAI = "https://api.openai.com/v1"
SECONDS = 120.0
"""How long the server may be silent, before its first word and between two of them."""
CONNECT_SECONDS = 5.0
RETRIES = 4
_STOPS = 4
"""Stop strings that OpenAI takes; all are looked for here as well."""
_FRAME, _SYSTEM = 8, 32
"""Tokens of a message's frame, and of the system message that some templates bring where there is none."""
_OWN_HEADERS = ("Authorization", "OpenAI-Organization", "OpenAI-Project")
_PIECE = re.compile(r"[A-Za-z]{1,5}|\s{2,}|\n|\S")
_MILLION = 1_000_000


class OpenAIReader:
    """A model by its name on a server: OpenAI's, or any that speaks its protocol.

    The server is `base_url`, else OPENAI_BASE_URL, else OpenAI's own. The key is OPENAI_API_KEY, which is sent only to
    the server that the environment names, or OpenAI's. What fails for the moment is tried `retries` times more, with
    growing pauses and chance in them, or when the server says. `prices` have, by model, what a million tokens cost:
    `prompt`, `completion`, and `cached` where it differs. Parameters in `omit` are not sent (`temperature`, for models
    that have their own; `stream_options`, for servers that don't know them).

    The server's tokenizer is not known here: `count_tokens` is an estimate, rather too high than too low.
    """

    counts_exactly = False
    slots = 8
    """So many users are let in at once by `ragfm serve`."""

    def __init__(
        self, model: str, *, context_tokens: int = 4096, base_url: str | None = None, seconds: float = SECONDS,
        retries: int = RETRIES, prices: Mapping[str, Mapping[str, float]] | None = None, omit: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.context_tokens = whole("context_tokens", context_tokens, 1)
        self._model = model
        self._base = endpoint_of(base_url)
        self._omit = frozenset([omit] if isinstance(omit, str) else omit)
        self._price = _price(model, prices or {})
        self._timeout = openai.Timeout(_seconds(seconds), connect=CONNECT_SECONDS)
        self._retries = whole("retries", retries, 0)
        self._open: Line | None = None

    def __repr__(self) -> str:
        return f"OpenAIReader({self._model!r}, base_url={self._base!r})"

    @property
    def data_goes(self) -> str:
        """Where questions and passages are sent."""
        return f"to {_host(self._base)}"

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """About how many tokens the prompt has."""
        return estimated_tokens(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Generate the next assistant message; the server is asked when its first piece is taken.

        Raises ContextOverflowError, UnsupportedError for a grammar or an adapter, ConfigError for a schema that is
        none. A schema is sent along: whether the model is held to it is up to the server. Taking a piece raises
        ConfigError for a key that is refused, ModelNotFoundError, ReaderBusyError where the server has too much to do,
        and EndpointError where it can't be reached, fails, or ends before the answer does.
        """
        if sampling.grammar is not None:
            raise UnsupportedError("A server can't be given a grammar.", "Give a schema, or use a GGUF model.")
        if sampling.adapter:
            raise UnsupportedError(
                "A server can't be given an adapter.", "Name the model that it serves with the adapter."
            )
        limit = completion_room(self.count_tokens(messages), self.context_tokens, sampling.max_tokens)
        said, call = _Said(), Call()
        pieces = self._pieces(call, self._request(messages, sampling, limit), said)
        text = self._generate(messages, pieces, sampling.stop, said)
        return Stream(text, cancel=call.cancel, logprobs=said.logprobs)

    def _generate(
        self, messages: Sequence[Message], pieces: Iterator[str], stop: Sequence[str], said: _Said
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        tokens, reason = yield from speak(pieces, _MILLION, stop)
        usage = said.usage or Usage(self.count_tokens(messages), 0, tokens)
        return self._priced(usage), "length" if reason == "stop" and said.cut else "stop"

    def _pieces(self, call: Call, request: Mapping[str, Any], said: _Said) -> Iterator[str]:
        """The text as the server sends it. Its connection is closed where nobody takes any more."""
        try:
            yield from said.texts(call.chunks(self._line, {**request, **self._credentials}))
        except openai.OpenAIError as error:
            raise self._failure(error, said.characters) from None  # what the server said may have a part of the key
        except (ValueError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._where} gave an answer that can't be read: {error}.", _AGAIN) from error
        finally:
            call.cancel()
        if not said.ended:
            raise EndpointError(f"{self._where} ended after {said.characters} characters, amid its answer.", _AGAIN)

    def _request(self, messages: Sequence[Message], sampling: Sampling, limit: int) -> dict[str, Any]:
        """What is asked, with no more parameters than needed: some servers refuse those that they don't know."""
        own = urlsplit(self._base).hostname == urlsplit(OPENAI).hostname
        asked: dict[str, Any] = {
            "max_completion_tokens" if own else "max_tokens": limit,
            "temperature": sampling.temperature,
            "stream_options": {"include_usage": True},
        }
        if sampling.temperature > 0:
            asked["seed"] = sampling.seed
            asked |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
            asked |= (
                {"extra_body": {"min_p": sampling.min_p}} if sampling.min_p > 0 and "min_p" not in self._omit else {}
            )
        if stop := [text for text in sampling.stop if text][:_STOPS]:
            asked["stop"] = stop
        asked |= {"logprobs": True} if sampling.logprobs else {}
        if sampling.schema is not None:
            form = {"name": "answer", "schema": dict(OutputSchema.of(sampling.schema).bounded), "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        asked = {name: value for name, value in asked.items() if name not in self._omit}
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return {"model": self._model, "messages": turns, "stream": True, **asked}

    @property
    def _credentials(self) -> dict[str, Any]:
        """Headers that keep the user's key and organisation from a server that the environment doesn't name."""
        if _key_for(self._base):
            return {}
        return {"extra_headers": dict.fromkeys(_OWN_HEADERS, openai.Omit())}

    @property
    def _line(self) -> Line:
        line = self._open
        if line is None or line.process != os.getpid():  # made twice, the first one goes with its calls
            client = openai.AsyncOpenAI(
                api_key=_key_for(self._base) or "none",
                admin_api_key="",
                base_url=self._base,
                http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),  # passages could go elsewhere
                timeout=self._timeout,
                max_retries=self._retries,
            )
            self._open = line = Line(client)
        return line

    def _priced(self, usage: Usage) -> Usage:
        if self._price is None:
            return usage
        prompt, cached, completion = self._price
        fresh = usage.prompt_tokens - usage.cached_tokens
        cost = (fresh * prompt + usage.cached_tokens * cached + usage.completion_tokens * completion) / _MILLION
        return Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, cost)

    @property
    def _where(self) -> str:
        return f"The model {self._model} on {_host(self._base)}"

    def _failure(self, error: openai.OpenAIError, characters: int) -> RagfmError:
        """The error in this project's words."""
        after = f" after {characters} characters" if characters else ""
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(f"{self._where} was silent for too long{after}.", _AGAIN)
        if isinstance(error, openai.APIConnectionError):
            return EndpointError(f"{self._where} can't be reached, or broke off{after}: {_why(error)}.", _AGAIN)
        said = _without_key(str(getattr(error, "message", error)))
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(f"{self._where} failed{after}: {said}.", _AGAIN)
        told = f"{self._where} says (status {error.status_code}): {said}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return ConfigError(told, _KEY if _key_for(self._base) else _NO_KEY)
        if isinstance(error, openai.NotFoundError) or error.code == "model_not_found":
            return ModelNotFoundError(told, "Check the model's name, and the server's address.")
        if isinstance(error, openai.RateLimitError):
            return ReaderBusyError(told, "Ask again later, or less at once.")
        if error.code == "context_length_exceeded":
            return ContextOverflowError(told, "Set ask.context_tokens to what the model takes.")
        if error.status_code in (400, 422):
            return UnsupportedError(told, "A parameter that it doesn't take can be left out, see docs/readers.md.")
        return EndpointError(told, _AGAIN)


_AGAIN = "Check the server and its address, and ask again."
_KEY = "Check OPENAI_API_KEY."
_NO_KEY = "OPENAI_API_KEY is not set, or OPENAI_BASE_URL does not name this server: only there the key is sent."


class _Said:
    """What a server has said so far, beside the text."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.logprobs: list[float] = []
        self.ended = self.cut = False
        self.characters = 0

    def texts(self, answer: Iterator[ChatCompletionChunk]) -> Iterator[str]:
        for chunk in answer:
            if used := chunk.usage:
                cached = used.prompt_tokens_details.cached_tokens if used.prompt_tokens_details else 0
                self.usage = Usage(used.prompt_tokens, cached or 0, used.completion_tokens)
            for choice in chunk.choices[:1]:
                if choice.logprobs and choice.logprobs.content:
                    self.logprobs += [token.logprob for token in choice.logprobs.content]
                if text := choice.delta.content:
                    self.characters += len(text)
                    yield text
                if choice.finish_reason == "content_filter":
                    raise EndpointError("The server withheld the answer: its filter of contents.", "Ask otherwise.")
                self.ended = self.ended or choice.finish_reason is not None
                self.cut = self.cut or choice.finish_reason == "length"


def endpoint_of(base_url: str | None) -> str:
    """The server's address. Raises ConfigError for one that is none."""
    base = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("The server's address does not begin with http:// or https://.", "Set OPENAI_BASE_URL.")
    return base


def _seconds(value: Any) -> float:
    with suppress(TypeError, ValueError):
        if 0 < (seconds := float(value)) < inf:  # a text where it comes from the environment
            return seconds
    raise ConfigError(f"A reader's seconds can't be {value!r}.", "It is how long a server may be silent.")


def _host(base: str) -> str:
    """With the port, and without a password that an address may have."""
    return urlsplit(base).netloc.rpartition("@")[2]


def estimated_tokens(messages: Sequence[Message]) -> int:
    """Pieces of up to five letters, single digits and signs, and for others a token for each byte behind the first."""
    texts = [message.content for message in messages]
    pieces = sum(len(_PIECE.findall(text)) for text in texts)
    others = sum(len(text.encode("utf-8", "replace")) - len(text) for text in texts)
    return pieces + others // 2 + _FRAME * len(texts) + _SYSTEM


def _key_for(base: str) -> str | None:
    """The key, for the server that the environment names: a file that came with documents may name another one."""
    named, asked = urlsplit(endpoint_of(None)), urlsplit(base)
    known = {(named.scheme, named.netloc), ("https", urlsplit(OPENAI).netloc)}
    return os.environ.get("OPENAI_API_KEY") or None if (asked.scheme, asked.netloc) in known else None


def _without_key(text: str) -> str:
    """A server's own words, which may repeat a part of the key."""
    key = os.environ.get("OPENAI_API_KEY", "")
    return re.sub(r"sk-\S+", "…", text[:300].replace(key, "…") if key else text[:300])


def _why(error: BaseException) -> str:
    return _without_key(str(error.__cause__ or error)).rstrip(".")


def _price(model: str, prices: Mapping[str, Mapping[str, float]]) -> tuple[float, float, float] | None:
    """What a million tokens cost: of the prompt, of what of it was cached, of the completion."""
    if model not in prices:
        return None
    try:
        price = {name: float(value) for name, value in prices[model].items()}
        return price["prompt"], price.get("cached", price["prompt"]), price["completion"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "It has `prompt` and `completion`, and may have `cached`: what a million tokens cost."
        raise ConfigError(f"The price of {model} can't be read: {error}.", hint) from error
