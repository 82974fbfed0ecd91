"""Where the tokens of a text stand, and whether they fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import TooLongError

if TYPE_CHECKING:
    from ragfm.core.types import Offsets

__all__ = ["check_fits", "offsets", "spread"]

_WORD = re.compile(r"\s*\S+")


def spread(text: str, count: Callable[[str], int]) -> Offsets:
    """As many tokens as the whole text has, each word with its own number where these add up to that.

    A word's tokens divide its letters evenly; where the words don't add up, all tokens divide the text.
    """
    total = count(text)
    words = [(match.start(), match.end(), count(match.group())) for match in _WORD.finditer(text)]
    if sum(tokens for *_, tokens in words) != total:
        words = [(0, len(text), total)]
    bounds = [np.linspace(start, end, tokens + 1).round().astype(np.int64) for start, end, tokens in words if tokens]
    pairs = [np.stack([edges[:-1], edges[1:]], axis=1) for edges in bounds]
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)


def offsets(tokenizer: Any, texts: Sequence[str]) -> list[Offsets]:
    """By a tokenizer of the library `tokenizers`; special tokens are left out."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]


def check_fits(what: str, counts: Iterable[int], room: int, model: str) -> None:
    """Raises TooLongError for the first text of more tokens: the model would cut it, and say nothing."""
    for tokens in counts:
        if tokens > room:
            raise TooLongError(f"A {what} has {tokens} tokens, and {model} takes {room}.", "Shorten it.")
