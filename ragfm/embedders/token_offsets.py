"""Token offsets in a text, and the check of the maximum length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ragfm.core.errors import TooLongError
from ragfm.core.types import Offsets

_WORD = re.compile(r"\s*\S+")


def estimated_offsets(text: str, count: Callable[[str], int]) -> Offsets:
    """Token offsets from a function that only counts tokens. Their number is exact, their positions are estimated.

    If the counts of the words add up to the count of the text, each word is divided evenly into its tokens.
    Otherwise the whole text is divided evenly. *Shape:* (tokens, 2).
    """
    total = count(text)
    words = [(match.start(), match.end(), count(match.group())) for match in _WORD.finditer(text)]
    if sum(tokens for *_, tokens in words) != total:
        words = [(0, len(text), total)]
    bounds = [np.linspace(start, end, tokens + 1).round().astype(np.int64) for start, end, tokens in words if tokens]
    pairs = [np.stack([edges[:-1], edges[1:]], axis=1) for edges in bounds]
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)


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
