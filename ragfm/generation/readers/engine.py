"""What continuous batching asks of a library that evaluates models: a model, and a memory with a slot for each request.

`llama_model.py` and `context.py` are that for llama.cpp, `torch_model.py` and `torch_memory.py` for transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from ragfm.core.cache import file_identity
from ragfm.core.errors import ModelNotFoundError
from ragfm.models.adapters import WEIGHTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragfm.core.types import Message
    from ragfm.generation.readers.prefix_cache import Beginnings

    Logits: TypeAlias = NDArray[np.float32]
    """How likely each token is next, before the softmax. *Shape:* (vocabulary,)."""

__all__ = ["BLOCK", "Adapter", "Memory", "Model", "Picks", "Row"]

BLOCK = 128
"""Tokens of a prompt that are evaluated at once, so that others wait for no more."""


class Row(NamedTuple):
    """A token at its place in a slot's text; `wanted` says whether the logits that follow it are."""

    token: int
    place: int
    slot: int
    wanted: bool


class Adapter(NamedTuple):
    """An adapter as it was when it was asked for: it shares nothing with another one that takes its place later."""

    path: str
    identity: str

    @classmethod
    def at(cls, path: Path) -> Adapter:
        """What is in a GGUF file, or in a folder of PEFT's, now. Its scale is in there as well. Raises OSError."""
        files = [path / "adapter_config.json", path / WEIGHTS] if path.is_dir() else [path]
        return cls(str(path.resolve()), " ".join(map(file_identity, files)))

    def check_same(self) -> None:
        """Raise ModelNotFoundError where another one has taken its place."""
        with suppress(OSError):
            if Adapter.at(Path(self.path)) == self:
                return
        raise ModelNotFoundError(f"The adapter {self.path} was replaced before it was loaded.", "Ask again.")


class Memory(Protocol):
    """What was evaluated, in slots. Used by one thread."""

    settled: bool
    """Whether what was copied is there: that is done with the next evaluation."""

    def evaluate(self, rows: Sequence[Row]) -> list[Logits]:
        """The logits of the rows in which they are wanted, in order; valid until the next call.

        A slot's rows follow what it holds. Slots come in ascending order.
        """

    def cut(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens of a slot. False where the model can't: then it forgets them all."""

    def copy(self, source: int, target: int) -> None:
        """Let a slot hold what another one does."""

    def use(self, adapter: Adapter | None) -> None:
        """Evaluate with an adapter from now on, or with none. Raises RagfmError."""

    def grown(self, slots: int) -> Memory:
        """One of more slots, which hold what these do. Raises RagfmError where that can't be moved."""


class Model(Protocol):
    """The weights and what belongs to them. Thread-safe."""

    path: Path
    granule: int
    """What is held of a prompt is used again up to a multiple of so many tokens."""
    block: int
    """As `BLOCK`, for this one."""
    trained_tokens: int | None
    """The longest text that it has learned from, where that is known."""
    parallel: bool
    """Whether several requests can be evaluated at once."""
    beginnings: Beginnings | None
    """What prompts begin with, on disk."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, as the model's own template writes it. Raises UnsupportedError."""

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text."""

    def memory(self, slots: int, window: int, threads: int) -> Memory:
        """An empty one. Raises RagfmError where there is no room for it."""

    def ends(self, token: int) -> bool:
        """Whether the token ends the model's turn."""

    def texts(self, tokens: Iterator[float]) -> Iterator[str]:
        """The text of each token: the whole characters that end in it."""


class Picks(Protocol):
    """Picks the tokens of one request."""

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,). Raises RagfmError where there is none."""
