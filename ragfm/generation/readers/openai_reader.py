"""A reader for models on a server with OpenAI's protocol (`POST /chat/completions`), using OpenAI's SDK."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from hashlib import blake2b
from math import ceil, inf
from typing import Any, Literal
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionChunk

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
from ragfm.generation.readers import (
    MANY_PASSAGES,
    ScopedReader,
    bool_option,
    check_images,
    completion_limit,
    int_option,
    stream_until_stop,
)
from ragfm.generation.readers.remote_call import ClientThread, RemoteCall
from ragfm.generation.readers.server_pool import CUT_HINT, OTHER, Server, ServerPool
from ragfm.models.adapters import served_name
from ragfm.parsing.image_preparation import IMAGE_SIDE, MAX_IMAGE_SIDE, prepare_image

OPENAI_URL = "https://api.openai.com/v1"
SECONDS = 120.0
"""Maximum silence of the server, before its first token and between two of them."""
CONNECT_SECONDS, POOL_CONNECT_SECONDS = 5.0, 1.0
"""Time limit for a connection to the only server, and to one of several."""
SLOTS = 8
"""Requests that `ragfm serve` sends to a server at once."""
RETRIES = 4
_MAX_STOP_STRINGS = 4
"""Stop strings that OpenAI accepts. The reader itself applies all of them."""
_MESSAGE_TOKENS, _SYSTEM_TOKENS = 8, 32
"""Tokens around a message, and of the system message that some templates add."""
_PRIVATE_HEADERS = ("Authorization", "OpenAI-Organization", "OpenAI-Project")
_TOKEN_ESTIMATE = re.compile(r"[A-Za-z]{1,5}|\s{2,}|\n|\S")
_TILE, _PATCH = 512, 28  # pixels
_MAX_PIECES = 1_000_000
_TOKEN_CHARACTERS = 8
"""Most characters of a token on average."""
_MAX_WITHOUT_TEXT = 100_000
"""Chunks without text in a response: those of the reasoning."""
MAX_EVENT_BYTES = 4 * 2**20
"""Maximum size of an event of a stream, and of other responses."""
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")
"""Ends of an event."""
_MAX_COUNTS = 4096
"""Token counts that are kept."""
_RESERVED = frozenset({"model", "messages", "stream"})
_TEMPLATE = "chat_template_kwargs"
_RETRY_HINT = "Check the server and its address, and ask again."


class OpenAIReader:
    """A model on a server that speaks OpenAI's protocol.

    The server is `base_url`, else OPENAI_BASE_URL, else OpenAI's own; several addresses, separated by commas, are
    servers that offer the same model, see `ServerPool`. The API key is OPENAI_API_KEY. It is sent only to the servers
    in OPENAI_BASE_URL and to OpenAI's. Temporary failures are retried up to `retries` times, with growing random
    pauses, or after the delay that the server requests. `seconds` is the maximum silence of the server. Parameters in
    `omit` are not sent (`temperature`, for models with a fixed one; `stream_options`, for servers that do not know
    them). `extra_body` has parameters that are sent in addition, or instead of the reader's own.

    With `vision`, messages may have images, which are sent as `data:` URIs, scaled to `image_side` pixels.

    vLLM and llama-server count the tokens of a prompt. For other servers, and with images, `count_tokens` is an
    estimate, more often too high than too low.
    """

    def __init__(
        self,
        model: str,
        *,
        context_tokens: int = 4096,
        base_url: str | None = None,
        seconds: float = SECONDS,
        retries: int = RETRIES,
        omit: Sequence[str] = (),
        extra_body: Mapping[str, Any] | str = {},
        vision: bool | str = False,
        image_side: int = IMAGE_SIDE,
    ) -> None:
        if model == "bundled":  # for a plugin without a name
            raise ConfigError("The reader 'openai' needs the name of a model.", "Use openai:NAME.")
        self.context_tokens = int_option("context_tokens", context_tokens, 1)
        self._model = model
        self._urls = server_urls(base_url)
        self.slots = SLOTS * len(self._urls)
        self._omit = frozenset(map(str.strip, omit.split(",") if isinstance(omit, str) else omit))
        self._extra_body = _extra_body(extra_body)
        self.vision = bool_option("vision", vision)
        self._image_side = int_option("image_side", image_side, 1, MAX_IMAGE_SIDE)
        silence = 0.0
        with suppress(TypeError, ValueError):
            silence = float(seconds)  # text if it comes from the environment
        if not 0 < silence < inf:
            raise ConfigError(
                f"Invalid reader option seconds: {seconds!r} is not a positive number.",
                "Set seconds to the maximum silence of the server.",
            )
        connect = CONNECT_SECONDS if len(self._urls) == 1 else POOL_CONNECT_SECONDS
        self._timeout = openai.Timeout(silence, connect=connect)
        self._retries = int_option("retries", retries, 0)
        self._client_threads: dict[int, ClientThread] = {}
        """By process: a forked one opens its own connections."""
        self._counts: dict[bytes, int] = {}
        """Token counts by the hash of their prompt."""

    def __repr__(self) -> str:
        return f"OpenAIReader({self._model!r}, base_url={','.join(self._urls)!r})"

    @property
    def passages(self) -> int:
        """How many passages it answers best from: served models are large."""
        return MANY_PASSAGES

    @property
    def data_goes(self) -> str:
        """Where questions and passages are sent."""
        return f"to {' and '.join(map(_host, self._urls))}"

    @property
    def servers(self) -> dict[str, bool]:
        """The servers by host, and whether each answered when it was last asked."""
        return {server.host: server.probe is None for server in self._connect().pool.servers}

    def check_servers(self) -> None:
        """Ask each server whether it answers, in at most a few seconds."""
        thread = self._connect()
        thread.run(thread.pool.check())

    @property
    def counts_exactly(self) -> bool:
        """Whether a server has counted tokens of this process; until then, counts may be estimates."""
        return bool(self._counts)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Number of tokens in the prompt, by the server's tokenizer if it has an endpoint for it, else estimated.

        Prompts with images are estimated. Raises UnsupportedError for images that cannot be used.
        """
        check_images(messages, vision=self.vision, reader=self._name())
        images = [prepare_image(image, self._image_side) for message in messages for image in message.images]
        if images:
            return estimate_tokens(messages) + sum(image_tokens(image.width, image.height) for image in images)
        request = self._request(messages, Sampling(), 1)
        prompt = {name: request[name] for name in ("model", "messages")}
        if _TEMPLATE in self._extra_body:
            prompt[_TEMPLATE] = self._extra_body[_TEMPLATE]
        key = blake2b(json.dumps(prompt).encode()).digest()
        tokens = self._counts.get(key)
        if tokens is None:
            thread = self._connect()
            tokens = thread.run(thread.pool.count_tokens(prompt))
            if tokens is None:
                return estimate_tokens(messages)
            if len(self._counts) >= _MAX_COUNTS:
                self._counts.clear()
            self._counts[key] = tokens
        return tokens

    def scoped(self, scope: str) -> ScopedReader:
        """The same reader; vLLM reuses evaluated prompts only among requests of the same scope."""
        return ScopedReader(self, scope)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling(), *, scope: str = "") -> Stream:
        """Generate the next assistant message. The request is sent when the first piece is read.

        `sampling.adapter` is the name of a LoRA adapter on vLLM or llama-server; of a path, its last part is the name.

        Raises ContextOverflowError, UnsupportedError for a grammar or an image that cannot be used, and ConfigError for
        an invalid schema. A schema is sent to the server, which may or may not enforce it. Reading a piece raises
        ConfigError for a rejected key, ModelNotFoundError, UnsupportedError for an adapter on other servers,
        ReaderBusyError if the server is overloaded, and EndpointError if it cannot be reached, fails, or breaks off.
        """
        if sampling.grammar is not None:
            raise UnsupportedError("The openai reader does not support grammars.", "Use a schema, or a GGUF model.")
        max_tokens = completion_limit(self.count_tokens(messages), self.context_tokens, sampling.max_tokens)
        salt = ""
        if scope and "cache_salt" not in self._omit:
            # With the key, so that nobody else on the server can guess it.
            key = os.environ.get("OPENAI_API_KEY", "").encode()[:64]
            salt = blake2b(scope.encode(), key=key, digest_size=32).hexdigest()
        adapter = served_name(str(sampling.adapter)) if sampling.adapter else None
        response, call = _Response(), RemoteCall()
        pieces = self._pieces(call, self._request(messages, sampling, max_tokens), salt, adapter, response)
        text = self._text(messages, response.up_to(max_tokens, pieces), sampling.stop, response)
        return Stream(text, cancel=call.cancel, logprobs=response.logprobs)

    def _text(
        self, messages: Sequence[Message], pieces: Iterator[str], stop: Sequence[str], response: _Response
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        tokens, reason = yield from stream_until_stop(pieces, _MAX_PIECES, stop)
        usage = response.usage or Usage(self.count_tokens(messages), 0, tokens)
        return usage, "length" if reason == "stop" and response.truncated else "stop"

    def _pieces(
        self, call: RemoteCall, request: Mapping[str, Any], salt: str, adapter: str | None, response: _Response
    ) -> Iterator[str]:
        """The text as the server sends it. Closes the connection if the iteration is abandoned."""
        try:
            thread = self._connect()
            stream = thread.pool.stream(request, salt, adapter, response.hosts.append)
            yield from response.texts(call.chunks(thread, stream))
        except openai.OpenAIError as error:
            raise self._translate(error, response) from None  # the cause may contain a part of the key
        except (ValueError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self._name(response)} sent an invalid response: {error}.", _RETRY_HINT) from error
        finally:
            call.cancel()
        if not response.finished:
            raise EndpointError(
                f"{self._name(response)} stopped in the middle of its answer, after {response.characters} characters.",
                f"{_RETRY_HINT} {CUT_HINT}",
            )

    def _request(self, messages: Sequence[Message], sampling: Sampling, max_tokens: int) -> dict[str, Any]:
        """The request's body, with no more parameters than needed: some servers reject unknown ones."""
        is_openai = _is_openai(self._urls[0])
        parameters: dict[str, Any] = {
            "max_completion_tokens" if is_openai else "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "stream_options": {"include_usage": True},
        }
        if sampling.temperature > 0:
            parameters["seed"] = sampling.seed
            if sampling.top_p < 1:
                parameters["top_p"] = sampling.top_p
            if sampling.min_p > 0 and "min_p" not in self._omit:
                parameters["extra_body"] = {"min_p": sampling.min_p}
        if stop := [text for text in sampling.stop if text][:_MAX_STOP_STRINGS]:
            parameters["stop"] = stop
        if sampling.logprobs:
            parameters["logprobs"] = True
        if sampling.schema is not None:
            schema = {"name": "answer", "schema": dict(OutputSchema.of(sampling.schema).bounded), "strict": True}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        parameters = {name: value for name, value in parameters.items() if name not in self._omit}
        if self._extra_body:
            parameters["extra_body"] = parameters.get("extra_body", {}) | self._extra_body
        turns: list[dict[str, Any]] = []
        for message in messages:
            content: list[dict[str, Any]] = []
            for part in message.parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                else:
                    image = prepare_image(part, self._image_side)
                    url = f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
                    content.append({"type": "image_url", "image_url": {"url": url}})
            turns.append({"role": message.role, "content": content if message.images else message.text})
        return {"model": self._model, "messages": turns, "stream": True, **parameters}

    def _connect(self) -> ClientThread:
        thread = self._client_threads.get(os.getpid())
        if thread is None:
            servers = []
            # A ragfm.toml that came with documents may name a server that the environment does not.
            trusted = {urlsplit(url)[:2] for url in (*server_urls(None), OPENAI_URL)}
            for url in self._urls:
                key = (os.environ.get("OPENAI_API_KEY") or None) if urlsplit(url)[:2] in trusted else None
                client = openai.AsyncOpenAI(
                    api_key=key or "none",
                    admin_api_key="",
                    base_url=url,
                    # A redirect could send passages elsewhere.
                    http_client=openai.DefaultAsyncHttpxClient(
                        follow_redirects=False, event_hooks={"response": [_bound_size]}
                    ),
                    timeout=self._timeout,
                    max_retries=self._retries,
                )
                # Without a key for this server, also keep the headers of the user's account from it.
                headers = {} if key else dict.fromkeys(_PRIVATE_HEADERS, openai.Omit())
                servers.append(Server(url, _host(url), client, headers, OTHER if _is_openai(url) else None))
            # Two threads may get here at once.
            thread = self._client_threads.setdefault(os.getpid(), ClientThread(ServerPool(servers)))
        return thread

    def _name(self, response: _Response | None = None) -> str:
        hosts = list(map(_host, self._urls)) if response is None else response.hosts
        if response and response.characters:
            hosts = hosts[-1:]
        return f"The model '{self._model}' on {' and '.join(hosts)}"

    def _translate(self, error: openai.OpenAIError, response: _Response) -> RagfmError:
        name, after = self._name(response), ""
        if response.characters:
            after = f" after {response.characters} characters"
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(f"{name} sent nothing for too long{after}.", _RETRY_HINT)
        if isinstance(error, openai.APIConnectionError):
            reason = _remove_key(str(error.__cause__ or error)).rstrip(".")
            return EndpointError(f"{name} cannot be reached, or closed the connection{after}: {reason}.", _RETRY_HINT)
        reply = _remove_key(str(getattr(error, "message", error)))
        if not isinstance(error, openai.APIStatusError):
            return EndpointError(f"{name} failed{after}: {reply}.", _RETRY_HINT)

        message = f"{name} replied with status {error.status_code}: {reply}"
        # These two are shown to users of ragfm's server, who must not learn where the model is.
        shown, where = f"The model '{self._model}' replied with status {error.status_code}: {reply}", response.hosts[-1]
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            if error.request.headers.get("Authorization"):
                return ConfigError(message, "Check OPENAI_API_KEY.")
            return ConfigError(
                message,
                "OPENAI_API_KEY is not set, or OPENAI_BASE_URL does not name this server: the key is sent only there.",
            )
        if isinstance(error, openai.NotFoundError) or error.code == "model_not_found":
            return ModelNotFoundError(message, "Check the model's name, and the server's address.")
        if isinstance(error, openai.RateLimitError):
            return ReaderBusyError(message, "Try again later, or send fewer requests at once.")
        if error.code == "context_length_exceeded":
            return ContextOverflowError(shown, f"Set ask.context_tokens to the context length of {where}.")
        if error.status_code in (400, 422):
            return UnsupportedError(
                shown, f"If the server {where} rejects a parameter, set the option `omit`, see docs/readers.md."
            )
        return EndpointError(message, _RETRY_HINT)


class _Response:
    """The state of a response, apart from its text."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.logprobs: list[float] = []
        self.finished = self.truncated = False
        self.characters = self.pieces = 0
        self.hosts: list[str] = []
        """The servers that got the request, the last of which responded."""

    def texts(self, chunks: Iterator[ChatCompletionChunk]) -> Iterator[str]:
        """The text of the chunks, one piece per chunk that has some."""
        for count, chunk in enumerate(chunks):
            if count > self.pieces + _MAX_WITHOUT_TEXT:
                raise EndpointError(f"The server sent {_MAX_WITHOUT_TEXT:,} chunks without text.", _RETRY_HINT)
            used = chunk.usage
            if used and used.prompt_tokens is not None and used.completion_tokens is not None:
                cached = used.prompt_tokens_details.cached_tokens if used.prompt_tokens_details else 0
                self.usage = Usage(used.prompt_tokens, cached or 0, used.completion_tokens)
            for choice in (chunk.choices or ())[:1]:  # servers leave out what is empty
                if choice.logprobs and choice.logprobs.content:
                    self.logprobs += [token.logprob for token in choice.logprobs.content]
                content: Any = choice.delta.content if choice.delta else None
                if isinstance(content, list):  # Mistral's parts: reasoning and text
                    content = "".join(part["text"] for part in content if part.get("type") == "text")
                if text := content:
                    self.characters += len(text)
                    self.pieces += 1
                    yield text
                if choice.finish_reason == "content_filter":
                    raise EndpointError("The server's content filter blocked the answer.", "Change the question.")
                self.finished = self.finished or choice.finish_reason is not None
                self.truncated = self.truncated or choice.finish_reason == "length"

    def up_to(self, max_tokens: int, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces of up to `max_tokens` tokens, also if the server ignores the limit.

        A piece is at least a token, except where servers send single characters.
        """
        for count, piece in enumerate(pieces):
            if count >= max_tokens and (self.characters >= 2 * count or count >= _TOKEN_CHARACTERS * max_tokens):
                self.truncated = True
                return
            yield piece


async def _bound_size(response: Any) -> None:
    """Make the reading of a response fail if an event, or a whole response that is not a stream, is too large."""
    read = response.aiter_bytes
    has_events = response.is_success and "json" not in response.headers.get("content-type", "")

    async def bounded(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        size, end = 0, b""
        async with aclosing(read(chunk_size)) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                end = end[-3:] + chunk
                if has_events and (ends := [end.rfind(mark) + len(mark) for mark in _BLANK_LINES if mark in end]):
                    size = len(end) - max(ends)
                if size > MAX_EVENT_BYTES:
                    raise ValueError(f"more than {MAX_EVENT_BYTES:,} bytes without an end")
                yield chunk

    response.aiter_bytes = bounded


def _extra_body(value: Mapping[str, Any] | str) -> dict[str, Any]:
    """The option `extra_body`, a table or, from the environment, JSON. Raises ConfigError."""
    hint = """Set it to a table, such as extra_body = { reasoning_effort = "low" }."""
    try:
        body = json.loads(value if isinstance(value, str) else json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Invalid reader option extra_body: {error}.", hint) from error
    if not isinstance(body, dict):
        raise ConfigError(f"Invalid reader option extra_body: {value!r} is not a table.", hint)
    if reserved := sorted(_RESERVED & body.keys()):
        raise ConfigError(f"Invalid reader option extra_body: ragfm itself sets {reserved[0]!r}.", "Leave it out.")
    return body


def server_urls(base_url: str | None) -> list[str]:
    """The servers' addresses: `base_url`, else OPENAI_BASE_URL, else OpenAI's. Raises ConfigError for invalid ones."""
    addresses = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    urls = [address.strip().rstrip("/") for address in addresses.split(",") if address.strip()]
    for parts in map(urlsplit, urls):
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # Without the value: an address may contain a password.
            raise ConfigError(
                "Invalid server address: it does not begin with http:// or https://.",
                "Set base_url or OPENAI_BASE_URL to an address, or to several, separated by commas.",
            )
    return list(dict.fromkeys(urls))


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Estimated tokens of a prompt: one per five letters, digit or sign, and half a token per further UTF-8 byte."""
    texts = [message.text for message in messages]
    pieces = sum(len(_TOKEN_ESTIMATE.findall(text)) for text in texts)
    further_bytes = sum(len(text.encode("utf-8", "replace")) - len(text) for text in texts)
    return pieces + further_bytes // 2 + _MESSAGE_TOKENS * len(texts) + _SYSTEM_TOKENS


def image_tokens(width: int, height: int) -> int:
    """Estimated tokens of an image: those of OpenAI's models or of Qwen2-VL, whichever are more.

    OpenAI: 85, and 170 for each tile of 512 * 512 pixels (https://platform.openai.com/docs/guides/images-vision).
    Qwen2-VL: one for each 28 * 28 pixels, and two around them (https://arxiv.org/abs/2409.12191).
    """
    tiles = ceil(width / _TILE) * ceil(height / _TILE)
    return max(85 + 170 * tiles, ceil(width / _PATCH) * ceil(height / _PATCH) + 2)


def _is_openai(url: str) -> bool:
    return urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname


def _host(url: str) -> str:
    """Host and port, without the password that an address may contain."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _remove_key(text: str) -> str:
    """The first 300 characters of a server's message, which may repeat a part of the key."""
    key = os.environ.get("OPENAI_API_KEY", "")
    return re.sub(r"sk-\S+", "…", text[:300].replace(key, "…") if key else text[:300])
