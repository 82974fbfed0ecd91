"""The verifier: whether a passage answers a question, and where, read by a network of its own after the reader.

A BERT reads the question with a passage, and gives each token a score for being the first of the answer, and one for
being the last; the very first token stands for "not here" (Devlin et al. 2019, Rajpurkar et al. 2018). What the reader
said is then held against that (Hu et al. 2019). The reader is not asked; it takes as long as to embed the passages.

The one that ragfm brings is the bundled embedding model, taught on SQuAD: what it learned are small matrices that are
added to that model's own. It knows English. `benchmarks/train_verifier.py` makes it; see docs/answers.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragfm.core.text import is_english
from ragfm.embedders.bert import Bert, Layer, Linear, read_weights
from ragfm.embedders.bert_numpy import NumpyBackend
from ragfm.embedders.model_folder import BertFolder, read_bert_folder
from ragfm.embedders.networks import BertNetwork
from ragfm.models.model_lookup import find_model

if TYPE_CHECKING:
    from ragfm.core.types import Hit

    Floats = NDArray[np.float32]

__all__ = ["Reading", "Verifier", "shipped_verifier"]

SHIPPED = Path(__file__).parents[1] / "models" / "shipped" / "minilm-verifier"
WEIGHTS = "verifier.safetensors"
WINDOW = 384
"""Tokens of question and passage that are read at once; a longer passage is read in parts."""
_OVERLAP = 64
_ANSWER = 16  # tokens of an answer at most
_QUESTION = 96  # tokens; the rest of a longer one is not read


@dataclass(frozen=True, slots=True)
class Part:
    """What was read at once: the characters that each token is, and how likely the answer begins or ends with it.

    `nowhere` is how likely there is none.

    *Shape:* `spans` (tokens, 2), `first` and `last` (tokens,).
    """

    spans: NDArray[np.int64]
    first: Floats
    last: Floats
    nowhere: float

    def within(self, start: int, end: int) -> float:
        """How likely the answer begins and ends between two characters of the passage."""
        inside = (self.spans[:, 0] >= start) & (self.spans[:, 1] <= end)
        return float(self.first[inside].sum() * self.last[inside].sum())

    @property
    def best(self) -> tuple[float, int, int]:
        """The likeliest answer of at most 16 tokens: how likely it is, and its characters."""
        if not len(self.spans):
            return 0.0, 0, 0
        chances = np.outer(self.first, self.last)
        chances = np.triu(chances) - np.triu(chances, _ANSWER)
        first, last = np.unravel_index(chances.argmax(), chances.shape)
        return float(chances[first, last]), int(self.spans[first, 0]), int(self.spans[last, 1])


@dataclass(frozen=True, slots=True)
class Reading:
    """A passage, read with a question."""

    passage: Hit
    parts: tuple[Part, ...]

    def within(self, start: int, end: int) -> float:
        """How likely the answer stands between two characters of the passage, in [0, 1]."""
        return max((part.within(start, end) for part in self.parts), default=0.0)

    @property
    def best(self) -> tuple[float, int, int]:
        """The likeliest answer: how likely it is, and its characters."""
        return max((part.best for part in self.parts), default=(0.0, 0, 0))

    @property
    def anywhere(self) -> float:
        """How likely the answer occurs in the passage, in [0, 1]."""
        return max((1 - part.nowhere for part in self.parts), default=0.0)


class Verifier:
    """Reads passages with a question, by what `folder` adds to the bundled embedding model. Thread-safe.

    Raises ModelNotFoundError, when it is first used, where that model is not installed.
    """

    def __init__(self, folder: Path = SHIPPED) -> None:
        self._folder = folder

    def read(self, question: str, passages: Sequence[Hit], language: str | None = None) -> list[Reading]:
        """A reading for each passage; its context is read as well, but the answer is never in it.

        No readings if the question or the texts, which are in `language`, are not in English.
        """
        if not is_english(question, language):
            return []
        start, end = map(self._tokenizer.token_to_id, ("[CLS]", "[SEP]"))
        asked = [start, *self._tokenizer.encode(question, add_special_tokens=False).ids[:_QUESTION], end]
        cut = [list(self._cut(passage, WINDOW - len(asked))) for passage in passages]
        vectors = iter(self._network.token_vectors([asked + ids for parts in cut for ids, _ in parts]))
        return [
            Reading(passage, tuple(self._part(next(vectors), spans) for _, spans in parts))
            for passage, parts in zip(passages, cut, strict=True)
        ]

    def _cut(self, passage: Hit, room: int) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
        """The tokens of each part of a passage, with the one that ends it, and where they lie in the passage."""
        above = f"{passage.context}\n" if passage.context else ""
        encoded = self._tokenizer.encode(above + passage.text, add_special_tokens=False)
        spans = np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2) - len(above)
        start, count, end = 0, len(encoded.ids), self._tokenizer.token_to_id("[SEP]")
        while True:
            until = min(count, start + room - 1)
            yield [*encoded.ids[start:until], end], spans[start:until]
            if until == count:
                return
            start = until - _OVERLAP

    def _part(self, vectors: Floats, spans: NDArray[np.int64]) -> Part:
        scores = vectors @ self._head.weight.T + self._head.bias
        before = len(vectors) - len(spans) - 1
        here = np.r_[0, before : len(vectors) - 1]  # "not here", and the passage
        chances = np.exp(scores[here] - scores[here].max(axis=0))
        chances /= chances.sum(axis=0)
        chances[1:][spans[:, 0] < 0] = 0  # what stands above it
        return Part(spans, chances[1:, 0], chances[1:, 1], float(chances[0].mean()))

    @cached_property
    def _tokenizer(self) -> Any:
        return BertNetwork(self._base).tokenizer

    @cached_property
    def _base(self) -> BertFolder:
        folder = read_bert_folder(find_model("bundled", "embedder"))
        assert folder is not None
        return folder

    @cached_property
    def _learned(self) -> Mapping[str, Floats]:
        from safetensors.numpy import load_file

        return {name: tensor.astype(np.float32) for name, tensor in load_file(self._folder / WEIGHTS).items()}

    @cached_property
    def _head(self) -> Linear:
        return Linear(self._learned["head.weight"], self._learned["head.bias"])

    @cached_property
    def _network(self) -> NumpyBackend:
        return NumpyBackend(self._base, with_learned(read_weights(self._base.path), self._learned))


@cache
def shipped_verifier() -> Verifier:
    """The one that ragfm brings; all who use it share its weights."""
    return Verifier()


def with_learned(bert: Bert, learned: Mapping[str, Floats]) -> Bert:
    """The weights with what was learned added: a vector as it is, a matrix as the product of two thin ones."""

    def linear(name: str, by: Linear) -> Linear:
        left, right = (learned.get(f"{name}.{side}") for side in ("left", "right"))
        more = left @ right if left is not None and right is not None else learned.get(f"{name}.weight", 0)
        return Linear(by.weight + more, by.bias + learned.get(f"{name}.bias", 0))

    layers = tuple(
        Layer(**{part.name: linear(f"{number}.{part.name}", getattr(layer, part.name)) for part in fields(Layer)})
        for number, layer in enumerate(bert.layers)
    )
    return replace(bert, layers=layers)
