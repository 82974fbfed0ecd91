"""What prompts begin with, evaluated, on disk: the system message and examples, never a question or a document's text.

A process that starts anew reads that back instead of evaluating it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.cache import cache_folder, replace_file
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.readers.llama_context import Context
from ragfm.models.llama_library import llama_cpp

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Adapter, Memory
    from ragfm.generation.readers.llama_model import LlamaModel

__all__ = ["LEAST", "MOST_BYTES", "Beginnings"]

LEAST = 128
"""Tokens; fewer are evaluated in no time."""
MOST_BYTES = 256_000_000
"""Of all files together. What was not read for longest goes first."""
_DIGEST = 32

_log = logging.getLogger(__name__)


class Beginnings:
    """Those of one model, as it is evaluated here. Used by the thread that evaluates, but for `add`."""

    def __init__(self, model: LlamaModel, threads: int) -> None:
        self._model = model
        self._here = f"{llama_cpp.__version__} {llama_cpp.llama_print_system_info().decode()} {threads}"
        self._known: tuple[list[int], ...] = ()

    def add(self, messages: Sequence[Message]) -> None:
        """What prompts begin with from now on; for others nothing changes."""
        try:
            one, other = (self._model.prompt([*messages, Message("user", text)]) for text in ("a", "b"))
        except UnsupportedError:  # whoever asks is told
            return
        same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        same = same // self._model.granule * self._model.granule
        if same >= LEAST and one[:same] not in self._known:
            self._known = (*self._known, one[:same])

    def of(self, prompt: list[int]) -> int:
        """How many tokens of a prompt are the longest of them; two at least follow."""
        found = (len(known) for known in self._known if prompt[: len(known)] == known and len(known) <= len(prompt) - 2)
        return max(found, default=0)

    def read(self, memory: Memory, slot: int, tokens: list[int], adapter: Adapter | None) -> int | None:
        """Let a slot hold the tokens: how many it holds then, or None where they are not on disk and it is as it was.

        What is not as it was written is removed.
        """
        assert isinstance(memory, Context)
        with suppress(OSError):
            file = self._file(tokens, adapter)
            data = file.read_bytes()
            if blake2b(data[_DIGEST:], digest_size=_DIGEST).digest() == data[:_DIGEST]:
                os.utime(file)
                return len(tokens) if memory.restore(slot, data[_DIGEST:]) else 0
            _log.warning("%s is damaged: it is removed, and made anew.", file)
            file.unlink()
        return None

    def write(self, memory: Memory, slot: int, tokens: list[int], adapter: Adapter | None) -> None:
        """Keep what a slot holds, which is these tokens. Where that can't be done, it is evaluated again."""
        assert isinstance(memory, Context)
        try:
            file = self._file(tokens, adapter)
            state = b"" if file.exists() else memory.state(slot)
            if state:
                replace_file(file, blake2b(state, digest_size=_DIGEST).digest() + state)
                _make_room(file.parent)
        except OSError as error:
            _log.info("What prompts begin with can't be kept: %s", error)

    def _file(self, tokens: list[int], adapter: Adapter | None) -> Path:
        about = [self._here, self._model.identity, adapter.identity if adapter else "", tokens]
        return cache_folder() / "beginnings" / blake2b(repr(about).encode(), digest_size=16).hexdigest()


def _make_room(folder: Path) -> None:
    found = sorted(((file, file.stat()) for file in folder.iterdir()), key=lambda one: one[1].st_mtime, reverse=True)
    total = 0
    for file, about in found:
        total += about.st_size
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
