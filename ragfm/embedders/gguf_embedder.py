"""The embedder for GGUF files, through llama.cpp."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ragfm.core.errors import EmbeddingError, RagfmError, UnsupportedError
from ragfm.core.fork import reset_in_children
from ragfm.core.own_thread import in_own_thread
from ragfm.core.types import Offsets, Scalar, Vectors
from ragfm.embedders.token_offsets import check_lengths, estimated_offsets
from ragfm.models.gguf_header import check_gguf
from ragfm.models.hardware import physical_cores
from ragfm.models.llama_library import free_on_collection, last_error, llama_cpp, load_model
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.models.thread_count import ThreadCount

MAX_WINDOW = 512
"""Maximum tokens of a text, including special tokens; less if the model was trained on shorter texts."""
BATCH_TOKENS = 2048
"""Maximum tokens of a batch."""
BATCH_TEXTS = 64
"""Maximum texts of a batch."""
_POOLINGS = {
    llama_cpp.LLAMA_POOLING_TYPE_MEAN: "mean",
    llama_cpp.LLAMA_POOLING_TYPE_CLS: "cls",
    llama_cpp.LLAMA_POOLING_TYPE_LAST: "last",
}


class GgufEmbedder:
    """A GGUF model with the pooling of its metadata, or mean pooling if they name none. It uses no prompts.

    `tokenize` counts exactly. The positions are exact to the word if the tokenizer does not merge words. Thread-safe;
    one batch runs at a time.
    """

    def __init__(self, model: str) -> None:
        self._path = find_model(model, "embedder")
        self._name = model
        check_gguf(self._path)
        self._loaded: _Model | None
        self.reset_after_fork()
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Forget the model: in a forked process, another thread may have left a lock held or a text half evaluated."""
        self._load_lock, self._context_lock = threading.Lock(), threading.Lock()
        self._loaded = None

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._model.dim

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of a text, without special tokens."""
        return self._model.window - self._model.special_tokens

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
        """Token offsets of each text: their number is exact, their positions are estimated."""
        return [estimated_offsets(text, lambda part: len(self._model.tokenize(part, special=False))) for text in texts]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        return self._embed(texts, "passage")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        return self._embed(texts, "question")

    def _embed(self, texts: Sequence[str], kind: str) -> Vectors:
        model = self._model
        tokens = [model.tokenize(text, special=True) for text in texts]
        check_lengths(kind, (len(row) - model.special_tokens for row in tokens), self.max_tokens, self._name)
        batches: list[list[int]] = []  # rows of similar length
        free_tokens = 0
        for row in sorted(range(len(tokens)), key=lambda row: len(tokens[row])):
            if not batches or len(tokens[row]) > free_tokens or len(batches[-1]) == BATCH_TEXTS:
                batches.append([])
                free_tokens = BATCH_TOKENS
            batches[-1].append(row)
            free_tokens -= len(tokens[row])
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with self._context_lock:
            for rows in batches:
                vectors[rows] = model.embed([tokens[row] for row in rows])
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @property
    def _model(self) -> _Model:
        with self._load_lock:
            if self._loaded is None:
                self._loaded = in_own_thread(_Model)(self._path)
            return self._loaded


class _Model:
    """A loaded model with one llama.cpp context."""

    def __init__(self, path: Path) -> None:
        self._model = load_model(path)
        free_on_collection(self, llama_cpp.llama_model_free, self._model)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.dim = int(llama_cpp.llama_model_n_embd(self._model))
        self.window = min(MAX_WINDOW, int(llama_cpp.llama_model_n_ctx_train(self._model)))
        self._threads = ThreadCount(physical_cores())
        self._context = self._open_context(llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
        if self._context and llama_cpp.llama_pooling_type(self._context) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            llama_cpp.llama_free(self._context)
            self._context = self._open_context(llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        if not self._context:
            raise RagfmError(f"llama.cpp cannot open '{path}': {last_error()}")
        free_on_collection(self, llama_cpp.llama_free, self._context)  # before the model: the last one runs first
        pooling = llama_cpp.llama_pooling_type(self._context)
        if pooling not in _POOLINGS:
            raise UnsupportedError(
                f"'{path}' is not an embedding model: its pooling type is {pooling}.",
                "Choose a model with mean, CLS or last-token pooling.",
            )
        self.pooling = _POOLINGS[pooling]
        self.special_tokens = len(self.tokenize("", special=True))

    def _open_context(self, pooling: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.embeddings = True
        params.pooling_type = pooling
        params.n_ctx = params.n_batch = params.n_ubatch = BATCH_TOKENS  # equal, so that no text is split
        params.n_seq_max = BATCH_TEXTS
        params.kv_unified = True
        return llama_cpp.llama_init_from_model(self._model, params)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        size = len(data) + 8  # a token has at least one byte, plus special tokens
        tokens = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, size, special, False)
        return list(tokens[:count])

    @in_own_thread
    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Vectors of tokenized texts, of any length. *Shape:* (len(rows), dim)."""
        batch = llama_cpp.llama_batch_init(sum(map(len, rows)), 0, 1)
        try:
            for sequence, row in enumerate(rows):
                for position, token in enumerate(row):
                    n = batch.n_tokens
                    batch.token[n], batch.pos[n], batch.logits[n] = token, position, True
                    batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                    batch.n_tokens += 1
            memory = llama_cpp.llama_get_memory(self._context)
            if memory:
                llama_cpp.llama_memory_clear(memory, True)
            llama_cpp.llama_set_n_threads(self._context, self._threads.count, self._threads.count)
            start = time.perf_counter()
            if code := llama_cpp.llama_decode(self._context, batch):
                raise EmbeddingError(f"llama.cpp failed to embed {len(rows)} texts (code {code}): {last_error()}")
            self._threads.record(batch.n_tokens, time.perf_counter() - start)
        finally:
            llama_cpp.llama_batch_free(batch)
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for sequence in range(len(rows)):
            pointer = llama_cpp.llama_get_embeddings_seq(self._context, sequence)
            vectors[sequence] = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.dim,))
        return vectors
