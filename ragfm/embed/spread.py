"""Where the tokens of a text stand, for tokenizers that only count them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ragfm.errors import TooLongError

if TYPE_CHECKING:
    from ragfm.types import Offsets

__all__ = ["spread", "too_long"]

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


def too_long(what: str, tokens: int, room: int, model: str) -> TooLongError:
    """The error for a text that the model would cut, and say nothing."""
    return TooLongError(f"A {what} has {tokens} tokens, and {model} takes {room}.", "Shorten it.")
