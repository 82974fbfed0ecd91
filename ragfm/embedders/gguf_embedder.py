"""Embedding models as GGUF files, through llama.cpp."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import EmbeddingError, RagfmError, UnsupportedError
from ragfm.embedders.token_offsets import check_fits, spread
from ragfm.models.gguf_header import check_gguf
from ragfm.models.hardware import physical_cores
from ragfm.models.llama_library import free_model, last_error, llama_cpp, load_model, raise_pending_interrupt
from ragfm.models.model_lookup import find_model, weights_sha256

if TYPE_CHECKING:
    from ragfm.core.types import Offsets, Scalar, Vectors

__all__ = ["GgufEmbedder"]

WINDOW = 512
"""Tokens of a text at most, special ones included; less where the model was trained for less."""
BATCH = 2048
"""Tokens that are evaluated at once."""
TOGETHER = 64
"""Texts that are evaluated at once."""
_POOLINGS = {
    llama_cpp.LLAMA_POOLING_TYPE_MEAN: "mean",
    llama_cpp.LLAMA_POOLING_TYPE_CLS: "cls",
    llama_cpp.LLAMA_POOLING_TYPE_LAST: "last",
}


class GgufEmbedder:
    """A GGUF model, pooled as its metadata say; a model that says nothing gets the mean. It has no prompts.

    `tokenize` counts exactly; where a token stands is exact to the word for tokenizers that keep to words.
    """

    def __init__(self, model: str) -> None:
        self._path = find_model(model, "embedder")
        self._name = model
        check_gguf(self._path)
        self._loading, self._lock = threading.Lock(), threading.Lock()
        self._loaded: _Model | None = None

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._model.dim

    @property
    def max_tokens(self) -> int:
        """Tokens that fit, special tokens taken off."""
        return self._model.window - self._model.special

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return {
            "model": self._name,
            "weights": weights_sha256(self._path),
            "dim": self.dim,
            "pooling": self._model.pooling,
            "query_prompt": "",
            "passage_prompt": "",
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """As many places as there are tokens."""
        return [spread(text, lambda part: len(self._model.tokenize(part, special=False))) for text in texts]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "passage")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "question")

    def _embed(self, texts: Sequence[str], what: str) -> Vectors:
        tokens = [self._model.tokenize(text, special=True) for text in texts]
        check_fits(what, (len(row) - self._model.special for row in tokens), self.max_tokens, self._name)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with self._lock:  # one context
            for rows in _batches(tokens):
                vectors[rows] = self._model.embed([tokens[row] for row in rows])
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @property
    def _model(self) -> _Model:
        with self._loading:
            if self._loaded is None:
                self._loaded = _Model(self._path)
            return self._loaded


class _Model:
    def __init__(self, path: Path) -> None:
        self._model = load_model(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.dim = int(llama_cpp.llama_model_n_embd(self._model))
        self.window = min(WINDOW, int(llama_cpp.llama_model_n_ctx_train(self._model)))
        self._context = self._open(llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
        if self._context and llama_cpp.llama_pooling_type(self._context) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            llama_cpp.llama_free(self._context)
            self._context = self._open(llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise RagfmError(f"llama.cpp can't open {path}: {last_error()}")
        weakref.finalize(self, free_model, self._model, self._context)
        raise_pending_interrupt()
        kind = llama_cpp.llama_pooling_type(self._context)
        if kind not in _POOLINGS:
            raise UnsupportedError(f"{path} is no embedding model: its pooling is of kind {kind}.")
        self.pooling = _POOLINGS[kind]
        self.special = len(self.tokenize("", special=True))

    def _open(self, pooling: int) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.embeddings, settings.pooling_type = True, pooling
        settings.n_ctx = settings.n_batch = settings.n_ubatch = BATCH  # a text must not be torn
        settings.n_seq_max, settings.kv_unified = TOGETHER, True
        settings.n_threads = settings.n_threads_batch = physical_cores()
        return llama_cpp.llama_init_from_model(self._model, settings)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        size = len(data) + 8  # a token has one byte at least
        tokens = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, size, special, False)
        return list(tokens[:count])

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """*Shape:* (len(rows), dim), of any length."""
        batch = llama_cpp.llama_batch_init(sum(map(len, rows)), 0, 1)
        try:
            for sequence, row in enumerate(rows):
                for place, token in enumerate(row):
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at], batch.logits[at] = token, place, True
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                    batch.n_tokens += 1
            memory = llama_cpp.llama_get_memory(self._context)
            if memory:
                llama_cpp.llama_memory_clear(memory, True)
            if code := llama_cpp.llama_decode(self._context, batch):
                raise EmbeddingError(f"llama.cpp failed to embed {len(rows)} texts (code {code}): {last_error()}")
        finally:
            llama_cpp.llama_batch_free(batch)
        raise_pending_interrupt()
        vectors = (llama_cpp.llama_get_embeddings_seq(self._context, sequence) for sequence in range(len(rows)))
        return np.stack([np.ctypeslib.as_array(ctypes.cast(v, ctypes.POINTER(ctypes.c_float)), (self.dim,)).copy()
                         for v in vectors])  # fmt: skip


def _batches(tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows of like length, as many as fit."""
    rows: list[int] = []
    room = BATCH
    for row in sorted(range(len(tokens)), key=lambda row: len(tokens[row])):
        if rows and (len(tokens[row]) > room or len(rows) == TOGETHER):
            yield rows
            rows, room = [], BATCH
        rows.append(row)
        room -= len(tokens[row])
    if rows:
        yield rows
