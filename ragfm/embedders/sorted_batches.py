"""Batches of texts of similar length, which need little padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragfm.core.types import Vectors

Batch: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float32]]"
"""Token ids, and a mask that is 1 for tokens and 0 for padding. *Shape:* both (texts, tokens)."""


class BertBackend(ABC):
    """Runs a BERT on batches of tokenized texts, longest first. Thread-safe."""

    batch_tokens: ClassVar[int]
    """Maximum tokens of a batch, padding included; a longer text is a batch of its own."""
    length_multiple: ClassVar[int] = 1
    """Texts are padded to a multiple of it."""
    parallel_batches: int = 1
    """Batches that are run at once; fewer than that would leave cores idle."""

    @abstractmethod
    def run(self, batches: Iterable[Batch]) -> Iterable[NDArray[np.float32]]:
        """The network's output for each batch, in the same order. *Shape:* (texts, dim) or (texts, tokens, dim)."""

    def __call__(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """Unit vectors of one or more texts, from a model that is pooled. *Shape:* (len(ids), dim)."""
        vectors = np.stack(self._rows(ids))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def token_states(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """States of the tokens of each text, from a model that is not pooled. *Shape:* (tokens, dim) for each text."""
        return [states[: len(row)] for states, row in zip(self._rows(ids), ids, strict=True)]

    def _rows(self, ids: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """The output of each text, in the order of the texts."""
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        groups: list[list[int]] = []
        start, share = 0, -(-len(order) // self.parallel_batches)
        while start < len(order):
            width = self._padded_length(ids[order[start]])
            groups.append(order[start : start + min(share, max(1, self.batch_tokens // width))])
            start += len(groups[-1])

        def batches() -> Iterator[Batch]:
            for group in groups:
                tokens = np.zeros((len(group), self._padded_length(ids[group[0]])), dtype=np.int64)
                mask = np.zeros(tokens.shape, dtype=np.float32)
                for n, row in enumerate(group):
                    tokens[n, : len(ids[row])] = ids[row]
                    mask[n, : len(ids[row])] = 1
                yield tokens, mask

        outputs: dict[int, NDArray[np.float32]] = {}
        for group, output in zip(groups, self.run(batches()), strict=True):
            outputs.update(zip(group, output, strict=True))
        return [outputs[row] for row in range(len(ids))]

    def _padded_length(self, row: Sequence[int]) -> int:
        return -(-len(row) // self.length_multiple) * self.length_multiple
