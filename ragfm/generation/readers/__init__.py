"""Readers: foundation models that answer.

`load_reader` takes a name: `bundled`, a GGUF file, a folder, a model of the Hugging Face hub, or `PLUGIN:NAME`.

llama_cpp       GGUF files, in this process
llama_model     such a model: vocabulary, chat template, adapters
context         its memory, with a slot for each request
sampler         which token it says next, under a grammar or without
transformers    folders and models of the hub, in this process
torch_model     such a model
torch_memory    its memory, with a row for each slot
chance          which token it says next
remote          a server
calls           requests to it that can be called off
local           what readers have in common that evaluate a model in this process
request         what one thread asks and another serves
batching        the next tokens of all requests in one batch
slots           which request gets which slot
engine          what batching asks of a model and its memory
template        how a model writes a conversation
beginnings      what prompts begin with, evaluated, on disk
speed           how fast a reader is here
optimize        the form of a GGUF file that is fastest here
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast

from ragfm.core import registry
from ragfm.core.errors import ConfigError, ContextOverflowError
from ragfm.core.types import Message, Reader, Sampling, Stream

if TYPE_CHECKING:
    from ragfm.core.config import Settings

__all__ = ["configured_reader", "load_reader", "reader_options"]


def load_reader(name: str = "bundled", **options: Any) -> Reader:
    """The reader of a name; `options` go to its constructor, its weights are loaded when they are first needed.

    `bundled` and GGUF files are read with llama.cpp, folders and models of the hub with transformers;
    `transformers:bundled` says it outright. Raises ModelNotFoundError, UnknownPluginError, and ConfigError for an
    option that the reader doesn't have.
    """
    return cast("Reader", registry.make("readers", name, **options))


def configured_reader(name: str, settings: Settings) -> Reader:
    """The reader of a name, with the options that the settings have for it."""
    return load_reader(name, **reader_options(name, settings))


def reader_options(name: str, settings: Settings) -> dict[str, Any]:
    """The options that the settings have for a reader."""
    plugin, _ = registry.plugin_and_model("readers", name)
    return {"context_tokens": settings.ask.context_tokens, **settings.reader_options.get(plugin, {})}


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An option that is a whole number, as a number or, from the environment, as text. Raises ConfigError."""
    with suppress(TypeError, ValueError, OverflowError):
        number = int(value)
        if (isinstance(value, str) or number == value) and least <= number <= (number if most is None else most):
            return number
    upto = "or more" if most is None else f"to {most}"
    raise ConfigError(f"A reader's {name} can't be {value!r}.", f"It is a whole number, {least} {upto}.")


class ScopedReader:
    """A reader as those of one scope have it: what was evaluated for others is not used again, as times would tell."""

    def __init__(self, reader: Any, scope: str) -> None:
        self._reader, self._scope = reader, scope

    @property
    def context_tokens(self) -> int:
        """The reader's."""
        return int(self._reader.context_tokens)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """The reader's."""
        return int(self._reader.count_tokens(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """The reader's, in this scope."""
        return cast("Stream", self._reader.stream(messages, sampling, scope=self._scope))

    def score(self, messages: Sequence[Message], continuations: Sequence[str], **more: Any) -> list[float]:
        """The reader's, in this scope."""
        return list(self._reader.score(messages, continuations, scope=self._scope, **more))


def completion_room(prompt_tokens: int, context_tokens: int, max_tokens: int | None) -> int:
    """How many tokens a completion may have. Raises ContextOverflowError where the prompt leaves none, ConfigError."""
    if max_tokens is not None and max_tokens < 0:
        raise ConfigError(f"An answer can't have {max_tokens} tokens.", "Give max_tokens as 0 or more, or as None.")
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextOverflowError(
            f"The prompt has {prompt_tokens} tokens, and the reader's window of {context_tokens} leaves no room.",
            "Ask with fewer or shorter passages, or load the reader with more context_tokens.",
        )
    return room if max_tokens is None else min(max_tokens, room)


def speak(
    pieces: Iterator[str], limit: int, stop: Sequence[str]
) -> Generator[str, None, tuple[int, Literal["stop", "length"]]]:
    """The text of `pieces`, one per token and maybe empty, up to the first stop string; gives tokens and why it ended.

    `pieces` ends where the model ends its turn. No token beyond `limit` is asked for. What may be the beginning of a
    stop string is held back until it is known.
    """
    stops = [text for text in stop if text]
    tokens, held = 0, ""
    for piece in islice(pieces, limit):
        tokens += 1
        held += piece
        if found := [at for text in stops if (at := held.find(text)) >= 0]:
            if spoken := held[: min(found)]:
                yield spoken
            return tokens, "stop"
        sure = len(held) - max((_begun(held, text) for text in stops), default=0)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held
    return tokens, "length" if tokens >= limit else "stop"


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
