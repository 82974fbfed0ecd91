"""Interfaces between continuous batching and the libraries that evaluate models.

llama.cpp implements them in `llama_model.py`, `llama_context.py` and `llama_sampler.py`; transformers in
`torch_model.py`, `torch_kv_cache.py` and `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from ragfm.core.cache import file_identity
from ragfm.core.errors import ModelNotFoundError
from ragfm.core.types import Message
from ragfm.models.adapters import PEFT_CONFIG, WEIGHTS, virtual_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Logits: TypeAlias = "NDArray[np.float32]"
"""Scores of the next token before the softmax. *Shape:* (vocabulary,)."""

PREFILL_BLOCK = 128
"""Tokens of a prompt that are evaluated at once. Other requests wait for one block."""


class BatchToken(NamedTuple):
    """A token to evaluate at a position of a slot; `wants_logits` requests the logits that follow it."""

    token: int
    position: int
    slot: int
    wants_logits: bool


class Adapter(NamedTuple):
    """A version of an adapter: a file that replaces it later is a different adapter."""

    path: str
    identity: str
    virtual_tokens: int = 0
    """Number of tokens of the window that the adapter puts before each prompt."""

    @classmethod
    def from_path(cls, path: Path) -> Adapter:
        """The current content of a GGUF file or a PEFT folder, scale included. Raises OSError or DamagedModelError."""
        files = [path / PEFT_CONFIG, path / WEIGHTS] if path.is_dir() else [path]
        return _adapter(str(path.resolve()), " ".join(map(file_identity, files)))

    def check_unchanged(self) -> None:
        """Raise ModelNotFoundError if the files were replaced since."""
        with suppress(OSError):
            if Adapter.from_path(Path(self.path)) == self:
                return
        raise ModelNotFoundError(f"The adapter '{self.path}' was replaced before it was loaded.", "Ask again.")


@lru_cache(16)
def _adapter(path: str, identity: str) -> Adapter:
    """The adapter in its present version, whose configuration is read once."""
    return Adapter(path, identity, virtual_tokens(path))


class KVCache(Protocol):
    """Keys and values of evaluated tokens, in slots. Used by one thread."""

    has_pending_copies: bool
    """Whether copies were requested that take effect only with the next evaluation."""

    def evaluate(self, batch: Sequence[BatchToken]) -> list[Logits]:
        """The requested logits, in order; valid until the next call.

        The tokens of a slot continue its content. Slots come in ascending order.
        """

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` tokens of a slot. If the model cannot do this, empty the slot and return False."""

    def copy(self, source: int, target: int) -> None:
        """Copy the content of a slot to another slot."""

    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use an adapter, or none, for the following evaluations. Raises RagfmError."""

    def resized(self, slots: int) -> KVCache:
        """A cache with more slots and the same content. Raises RagfmError if the content cannot be moved."""


CacheFactory: TypeAlias = Callable[[int], KVCache]
"""Makes an empty cache with a number of slots. Raises RagfmError if memory is short."""


class Model(Protocol):
    """The weights, tokenizer and chat template of a model. Thread-safe."""

    path: Path
    prefix_multiple: int
    """A cached prefix is reused up to a multiple of this number of tokens."""
    prefill_block: int
    """Tokens of a prompt that are evaluated at once."""
    trained_tokens: int | None
    """Context length that the model was trained for, if known."""
    supports_batching: bool
    """Whether several requests can be evaluated at once."""

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation in the model's chat template. Raises UnsupportedError."""

    def is_end_token(self, token: int) -> bool:
        """Whether the token ends the model's turn."""

    def detokenize(self, tokens: Iterator[float]) -> Iterator[str]:
        """For each token, the characters that it completes."""


class TokenSampler(Protocol):
    """Picks the tokens of one request."""

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,). Raises RagfmError if there is none."""
