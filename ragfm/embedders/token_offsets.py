"""Token offsets in a text, and the check of the maximum length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ragfm.core.errors import TooLongError
from ragfm.core.types import Offsets


def token_offsets(tokenizer: Any, texts: Sequence[str]) -> list[Offsets]:
    """Token offsets from a tokenizer of the `tokenizers` library, without special tokens."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]


def check_lengths(kind: str, counts: Iterable[int], max_tokens: int, model: str) -> None:
    """Raise TooLongError for the first count above `max_tokens`: the model would truncate such a text silently."""
    for count in counts:
        if count > max_tokens:
            raise TooLongError(
                f"A {kind} cannot be embedded: it has {count} tokens, and {model!r} accepts {max_tokens}.",
                "Shorten it.",
            )
