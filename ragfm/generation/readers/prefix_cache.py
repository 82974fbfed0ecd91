"""Disk cache for evaluated prompt prefixes: the system message and the examples, never a question or a passage.

A new process reads a prefix from disk instead of evaluating it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from ragfm.core.cache import cache_folder, replace_file
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.readers.engine import Adapter, KVCache
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.models.llama_library import llama_cpp

MIN_TOKENS = 128
"""Shorter prefixes are not stored: evaluating them takes little time."""
MAX_BYTES = 256_000_000
"""Total size of all files. The least recently read ones are deleted first."""
_DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


class LlamaPrefixCache:
    """The prefixes of one model. Used by the evaluation thread, except for `add`."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        # Both may change the values; the number of threads does not.
        self._environment = f"{llama_cpp.__version__} {llama_cpp.llama_print_system_info().decode()}"
        self._prefixes: tuple[list[int], ...] = ()

    def add(self, messages: Sequence[Message]) -> None:
        """Store the prefix that these messages give a prompt, from now on."""
        try:
            first, second = (self._model.prompt_tokens([*messages, Message("user", text)]) for text in ("a", "b"))
        except UnsupportedError:  # the request itself reports this
            return
        pairs = enumerate(zip(first, second, strict=False))
        length = next((index for index, (token, other) in pairs if token != other), 0)
        length -= length % self._model.prefix_multiple
        prefix = first[:length]
        if length >= MIN_TOKENS and prefix not in self._prefixes:
            self._prefixes = (*self._prefixes, prefix)

    def match(self, prompt: list[int]) -> int:
        """Length of the longest stored prefix of a prompt, which has at least two more tokens."""
        lengths = [len(prefix) for prefix in self._prefixes if prompt[: len(prefix)] == prefix]
        return max((length for length in lengths if length <= len(prompt) - 2), default=0)

    def load(self, cache: KVCache, slot: int, tokens: list[int], adapter: Adapter | None) -> int | None:
        """See PrefixCache. Returns 0 if llama.cpp refuses the content. A damaged file is deleted."""
        assert isinstance(cache, LlamaContext)
        with suppress(OSError):
            file = self._file(tokens, adapter)
            data = file.read_bytes()
            if blake2b(data[_DIGEST_BYTES:], digest_size=_DIGEST_BYTES).digest() == data[:_DIGEST_BYTES]:
                os.utime(file)
                return len(tokens) if cache.restore_slot(slot, data[_DIGEST_BYTES:]) else 0
            _log.warning("Deleting the damaged cache file %s. It will be written again.", file)
            file.unlink()
        return None

    def store(self, cache: KVCache, slot: int, tokens: list[int], adapter: Adapter | None) -> None:
        """See PrefixCache. A failure is only logged."""
        assert isinstance(cache, LlamaContext)
        try:
            file = self._file(tokens, adapter)
            state = b"" if file.exists() else cache.save_slot(slot)
            if state:
                replace_file(file, blake2b(state, digest_size=_DIGEST_BYTES).digest() + state)
                entries = [(other, other.stat()) for other in file.parent.iterdir()]
                total = 0
                for other, stat in sorted(entries, key=lambda entry: entry[1].st_mtime, reverse=True):
                    total += stat.st_size
                    if total > MAX_BYTES:
                        other.unlink(missing_ok=True)
        except OSError as error:
            _log.info("Cannot store an evaluated prompt prefix: %s", error)

    def _file(self, tokens: list[int], adapter: Adapter | None) -> Path:
        key = [self._environment, self._model.identity, adapter.identity if adapter else "", tokens]
        return cache_folder() / "beginnings" / blake2b(repr(key).encode(), digest_size=16).hexdigest()
