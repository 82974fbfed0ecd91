"""Readers: foundation models that answer.

`load_reader` takes a name: `bundled`, a GGUF file, a folder, a model on the Hugging Face hub, or `PLUGIN:NAME`.

llama_cpp_reader      reader for GGUF files, with llama.cpp
llama_model           a loaded GGUF model: tokenizer, chat template, LoRA adapters
llama_context         llama.cpp's KV cache and evaluation
llama_sampler         token sampling under a GBNF grammar
transformers_reader   reader for folders and models on the hub, with transformers
torch_model           a loaded transformers model: tokenizer, chat template, PEFT adapters
torch_kv_cache        KV cache for batches of requests to a transformers model
openai_reader         reader for servers with OpenAI's protocol
abstaining_reader     reader `none`, without a model: the judge quotes the documents
server_pool           servers that offer the same model
remote_call           cancellable requests to servers
local_reader          base class of the readers that evaluate a model in this process
engine                tokens of a batch and adapters, which batching and the models share
continuous_batching   the thread that evaluates all requests in one batch
generation_request    a request and its results, shared by two threads
prompt_lookup         drafts of the next tokens, copied from the prompt
slots                 slots of the KV cache, and which one a request gets
sampling              temperature, top_p and min_p
chat_template         chat templates
template_service      renders chat templates in a confined process
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, cast

from ragfm.core import registry
from ragfm.core.config import Settings
from ragfm.core.errors import ConfigError, ContextOverflowError, UnsupportedError
from ragfm.core.types import Message, Reader, Sampling, Stream
from ragfm.models.adapters import virtual_tokens

NO_READER = "none"
_log = logging.getLogger(__name__)


def load_reader(name: str = "bundled", **options: Any) -> Reader:
    """Make a reader. `options` are arguments of its constructor. Its weights are loaded on first use.

    `bundled` and GGUF files use llama.cpp; folders and models on the hub use transformers. `PLUGIN:NAME`, such as
    `transformers:bundled`, names the plugin. Raises ModelNotFoundError, UnknownPluginError, and ConfigError for an
    option that the reader does not have.
    """
    return cast("Reader", registry.make("readers", name, **options))


def available_reader(name: str) -> str:
    """The name of a reader, or `none`, with a warning, for the bundled one where llama.cpp is not installed."""
    if registry.plugin_and_model("readers", name) != ("llama-cpp", "bundled") or find_spec("llama_cpp"):
        return name
    _log.warning(
        "The bundled reader needs llama.cpp, which is not installed, so answers are quotes from the documents. "
        "For answers in prose, run `pip install -e '.[llama-cpp]'`, which compiles it in about five minutes."
    )
    return NO_READER


def configured_reader(name: str, settings: Settings, adapter: str | None = None) -> Reader:
    """Make a reader with its options from the settings; its window leaves room for virtual tokens of the adapter."""
    options = reader_options(name, settings)
    plugin, _ = registry.plugin_and_model("readers", name)
    if plugin == "transformers" and (tokens := virtual_tokens(adapter)):
        options["virtual_tokens"] = tokens
    return load_reader(name, **options)


def reader_options(name: str, settings: Settings) -> dict[str, Any]:
    """The options for a reader in the settings. Raises ConfigError for options of an unknown reader.

    A name may have `_` for a hyphen, which variables of the environment cannot have.
    """
    plugin, _ = registry.plugin_and_model("readers", name)
    known = {other: one for one in registry.plugins("readers") for other in (one.replace("-", "_"), one)}
    options: dict[str, Any] = {"context_tokens": settings.ask.context_tokens}
    for given, values in settings.reader_options.items():
        if given not in known:
            raise ConfigError(
                f"There is no reader {given!r}, so its reader_options have no effect.",
                f"Use one of {', '.join(registry.plugins('readers'))}.",
            )
        if known[given] == plugin:
            options |= values
    return options


def int_option(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """An integer option, given as a number or, from the environment, as text. Raises ConfigError."""
    with suppress(TypeError, ValueError, OverflowError):
        number = int(value)
        is_integer = isinstance(value, str) or number == value
        if is_integer and number >= minimum and (maximum is None or number <= maximum):
            return number
    allowed = f"{minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
    raise ConfigError(
        f"Invalid reader option {name}: {value!r} is not an integer {allowed}.", f"Set {name} to an integer {allowed}."
    )


DEFAULT_PASSAGES = 3
"""Passages that a reader is shown, unless it says that it can use more (its attribute `passages`)."""
_PASSAGES_BY_SIZE = ((200_000_000, DEFAULT_PASSAGES), (2_000_000_000, 5))  # bytes at 4 bits a weight
MANY_PASSAGES = 8


def passages_for(weight_bytes: int) -> int:
    """How many passages a model answers best from, by the size of its weights at 4 bits each; see docs/retrieval.md."""
    return next((passages for size, passages in _PASSAGES_BY_SIZE if weight_bytes <= size), MANY_PASSAGES)


def bool_option(name: str, value: Any) -> bool:
    """A Boolean option, given as such or, from the environment, as text. Raises ConfigError."""
    if isinstance(value, bool) or value in ("true", "false"):
        return value in (True, "true")
    raise ConfigError(f"Invalid reader option {name}: {value!r} is not true or false.", f"Set {name} to true or false.")


def check_images(messages: Sequence[Message], *, vision: bool, reader: str) -> None:
    """Raise UnsupportedError for images that a reader cannot see, and for images of other roles than the user."""
    for message in messages:
        if message.images and not vision:
            raise UnsupportedError(
                f"The messages have an image, and {reader} cannot see images.",
                "Use a server with a model that can (docs/pictures.md#vision-readers), or text only.",
            )
        if message.images and message.role != "user":
            raise UnsupportedError(
                f"A message of the {message.role} has an image.", "Put images in the user's messages."
            )


class ScopedReader:
    """A reader for one scope. It reuses no evaluated prompts of other scopes: latencies would reveal them."""

    def __init__(self, reader: Any, scope: str) -> None:
        self._reader, self._scope = reader, scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """See Reader."""
        return cast("Stream", self._reader.stream(messages, sampling, scope=self._scope))


def completion_limit(prompt_tokens: int, context_tokens: int, max_tokens: int | None) -> int:
    """Maximum number of tokens of a completion. Raises ContextOverflowError if the prompt leaves no room.

    Raises ConfigError for a negative `max_tokens`.
    """
    if max_tokens is not None and max_tokens < 0:
        raise ConfigError(f"Invalid max_tokens: {max_tokens} is negative.", "Use 0 or more, or None.")
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextOverflowError(
            f"The prompt has {prompt_tokens} tokens, and the reader's window of {context_tokens} leaves no room for an "
            "answer.",
            "Ask with fewer or shorter passages, or load the reader with more context_tokens.",
        )
    return room if max_tokens is None else min(max_tokens, room)


def stream_until_stop(
    pieces: Iterator[str], max_tokens: int, stop: Sequence[str]
) -> Generator[str, None, tuple[int, Literal["stop", "length"]]]:
    """Yield the text of `pieces` up to the first stop string; return the number of tokens and the finish reason.

    `pieces` has one string per token, which may be empty, and ends with the model's turn. It is not advanced beyond
    `max_tokens`. Text that may be the start of a stop string is held back until the next pieces decide.
    """
    stops = [text for text in stop if text]
    tokens, buffer = 0, ""
    for piece in islice(pieces, max_tokens):
        tokens += 1
        buffer += piece
        found = [index for text in stops if (index := buffer.find(text)) >= 0]
        if found:
            if text := buffer[: min(found)]:
                yield text
            return tokens, "stop"
        sizes = ((text, size) for text in stops for size in range(1, min(len(text), len(buffer) + 1)))
        complete = len(buffer) - max((size for text, size in sizes if buffer.endswith(text[:size])), default=0)
        if complete:
            yield buffer[:complete]
            buffer = buffer[complete:]
    if buffer:
        yield buffer
    return tokens, "length" if tokens >= max_tokens else "stop"
