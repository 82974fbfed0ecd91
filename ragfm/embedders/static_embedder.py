"""Static embeddings through model2vec: a text's vector is the mean of its tokens' vectors; there is no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ragfm.core.errors import MissingExtraError
from ragfm.core.types import Offsets, Scalar, Vectors
from ragfm.embedders.token_offsets import check_lengths, token_offsets
from ragfm.models.model_lookup import find_model, report_damage, weights_sha256

MAX_TOKENS = 512
"""The model has no limit, but the mean over a longer text is not distinctive."""


class StaticEmbedder:
    """A model2vec model (Tulkens and van Dongen 2024) from a folder, the Hugging Face cache or the hub."""

    def __init__(self, model: str) -> None:
        self._path = find_model(model, "embedder")
        self._name = model
        self.max_tokens = MAX_TOKENS

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._model.dim)

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return {
            "model": self._name,
            "weights": weights_sha256(self._path),
            "dim": self.dim,
            "pooling": "mean",
            "query_prompt": "",
            "passage_prompt": "",
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Token offsets of each text, by the model's own tokenizer."""
        return token_offsets(self._model.tokenizer, texts)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        return self._embed(texts, "passage")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        return self._embed(texts, "question")

    def _embed(self, texts: Sequence[str], kind: str) -> Vectors:
        check_lengths(kind, map(len, self.tokenize(texts)), self.max_tokens, self._name)
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = np.asarray(self._model.encode(list(texts), max_length=None, use_multiprocessing=False), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # A text of unknown tokens has a zero vector; it gets the diagonal, which favors no dimension.
        return np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), np.float32(self.dim**-0.5))

    @cached_property
    def _model(self) -> Any:
        try:
            from model2vec import StaticModel
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "Static embedding models require model2vec, which is not installed.",
                "Run `pip install -e '.[static]'` in ragfm's source folder.",
            ) from error
        with report_damage("model2vec", self._path):
            return StaticModel.from_pretrained(str(self._path), max_length=None)  # changing it later is not thread-safe
