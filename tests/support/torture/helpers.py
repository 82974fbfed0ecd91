"""A fast embedder, collections that use it, and random texts."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionNotFound, TooLongError
from ragfm.testing import HashingEmbedder

if TYPE_CHECKING:
    from ragfm.core.types import Vectors

Report = Callable[[Any], None]
"""Reports a value from a job to the test."""
WORDS = [f"{a}{b}{c}" for a in ("ba", "ko", "mi", "tu", "le") for b in ("ran", "sol", "vek", "dim") for c in "aeiou"]


class CachedHashingEmbedder(HashingEmbedder):
    """A hashing embedder that caches the vector of each word, and is named by its dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__(f"hashing-{dim}", dim=dim)
        self._direction = functools.cache(lambda word: HashingEmbedder(dim=dim).embed_queries([word])[0])

    def _embed(self, texts: Sequence[str]) -> Vectors:
        words = [
            [text[start:end].lower() for start, end in spans]
            for text, spans in zip(texts, self.tokenize(texts), strict=True)
        ]
        if max(map(len, words), default=0) > self.max_tokens:
            raise TooLongError("too long")
        sums = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text_words in enumerate(words):
            for word in text_words or [""]:
                sums[row] += self._direction(word)
        unit: Vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return unit


def open_collection(folder: str | Path, *, dim: int | None = None, **settings: Any) -> Collection:
    """Open a collection with the fast embedder of its dimension."""
    if dim is None:
        with Collection.open(folder, settings=Settings(), embedder=HashingEmbedder()) as known:
            try:
                dim = int(known.status().embedder["dim"])
            except CollectionNotFound:
                dim = 32
    return Collection.open(folder, settings=Settings(**settings), embedder=CachedHashingEmbedder(dim))


def prose(rng: random.Random, title: str, sentences: int) -> str:
    """A random text with a title."""
    lines = [f"{title}, {rng.randrange(10**9)}."]
    lines += [" ".join(rng.choices(WORDS, k=rng.randint(5, 14))).capitalize() + "." for _ in range(sentences)]
    return "\n\n".join(lines) + "\n"
