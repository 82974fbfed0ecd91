"""What continuous batching and the libraries that evaluate models share: tokens of a batch, adapters, logits."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ragfm.core.cache import file_identity
from ragfm.core.errors import ModelNotFoundError
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
