"""The embedder for sentence-transformers models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from ragfm.core.fork import reset_in_children
from ragfm.core.types import Offsets, Scalar, Vectors
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import Backend, BertNetwork, LibraryNetwork, Network
from ragfm.embedders.token_offsets import check_lengths, token_offsets
from ragfm.models.hardware import has_gpu
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.samples import handbook_text

MIN_TOKENS_TO_LOAD = 2_000
"""Passage tokens per process below which the exact backend is used: any other takes a second to load."""
MIN_QUERIES_TO_LOAD = 16
"""Queries per process at which OpenVINO is loaded for them: it takes as long as it saves on 60, but more may come."""
MIN_COSINE = 0.999
"""Every text's vector by a faster backend must have at least this cosine to its fp32 vector."""

_log = logging.getLogger(__name__)


class SentenceTransformerEmbedder:
    """Any sentence-transformers model with a fast tokenizer (Reimers and Gurevych 2019).

    Static models (Tulkens and van Dongen 2024) are included. The model's own prompts are prepended to queries and
    passages. Queries are always embedded in fp32, many passages faster if their vectors have a cosine of at least 0.999
    to fp32; see docs/decisions/005-embedding.md. Long-lived processes call `warm_up`; others load OpenVINO at the 16th
    query, if it is installed. All methods are thread-safe.
    """

    def __init__(self, model: str = "bundled") -> None:
        path = find_model(model, "embedder")
        folder = read_bert_folder(path)
        self._set_up(model, path, LibraryNetwork(path, model) if folder is None else BertNetwork(folder))

    def _set_up(self, name: str, path: Path, network: Network) -> None:
        self._name = name
        self._path = path
        self._network = network
        self._lock = threading.Lock()
        self._for_passages: Backend | None = None
        self._for_queries: Backend | None = None
        self._passage_tokens = 0
        self._queries = 0
        self._is_warm = False
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Replace the lock: in a forked process, it may be held forever."""
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return self._network.dim

    @property
    def max_tokens(self) -> int:
        """Maximum tokens of a passage, without special tokens and the passage prompt."""
        return self._max_tokens("document")

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract: everything that determines a text's vector, up to the precision of the backend."""
        return {
            "model": self._name,
            "weights": weights_sha256(self._path),
            "dim": self.dim,
            "pooling": self._network.pooling,
            "query_prompt": self._prompt("query"),
            "passage_prompt": self._prompt("document"),
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Token offsets of each text, by the model's own tokenizer."""
        return token_offsets(self._network.tokenizer, texts)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        tokenized = self._tokenize(texts, "document")
        with self._lock:
            self._passage_tokens += sum(map(len, tokenized[2]))
            if self._for_passages is None and self._passage_tokens >= MIN_TOKENS_TO_LOAD:
                self._for_passages = self._load_or_exact(self._load_for_passages)
            backend = self._for_passages or self._exact
        return self._run(backend, *tokenized)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over the model's window."""
        tokenized = self._tokenize(texts, "query")
        if self._for_queries is None:
            self._queries += len(texts)  # without the lock, which is held while passages wait for a backend
            is_many = self._queries >= MIN_QUERIES_TO_LOAD and self._network.fast_exact_backend.startswith("openvino")
            if is_many or self._is_warm:
                load_fast_exact = partial(self._network.load, self._network.fast_exact_backend)
                with self._lock:
                    self._for_queries = self._for_queries or self._load_or_exact(load_fast_exact)
        return self._run(self._for_queries or self._exact, *tokenized)

    def warm_up(self) -> None:
        """Load the backend that embeds many passages fastest, and with the next query that for queries.

        Both take seconds. The threads of a backend inherit the priority of the thread that loads it. Without this call,
        queries and the first thousands of passage tokens use the backend that is quickest to load.
        """
        with self._lock:
            self._for_passages = self._for_passages or self._load_or_exact(self._load_for_passages)
        self._is_warm = True

    def _run(self, backend: Backend, texts: Sequence[str], prompt: str, ids: Sequence[Sequence[int]]) -> Vectors:
        import numpy as np

        return backend(texts, prompt, ids) if texts else np.zeros((0, self.dim), dtype=np.float32)

    def _load_for_passages(self) -> Backend:
        """sentence-transformers on a GPU, else the network's fast backend, if that is precise enough for the model."""
        network = self._network
        if has_gpu() and self._path.is_dir():
            network = LibraryNetwork(self._path, self._name)
        if network.fast_backend == self._network.exact_backend:
            return self._exact
        backend = network.load(network.fast_backend)
        text = handbook_text()
        sample = self._tokenize([text[start : start + 200] for start in range(0, 2400, 200)], "document")
        lowest = (backend(*sample) * self._exact(*sample)).sum(1).min()
        if lowest >= MIN_COSINE:
            return backend
        _log.info("The backend %s for %s has a cosine of %.4f to fp32.", network.fast_backend, self._name, lowest)
        return self._network.load(self._network.fast_exact_backend)

    def _load_or_exact(self, load: Callable[[], Backend]) -> Backend:
        """The backend that `load` returns, or if it fails the exact one, which always works."""
        try:
            return load()
        except Exception:  # libraries raise errors of any type when the hardware does not support them
            _log.info("A faster backend for %s could not be loaded; using fp32.", self._name, exc_info=True)
            return self._exact

    def _tokenize(self, texts: Sequence[str], prompt: str) -> tuple[Sequence[str], str, Sequence[Sequence[int]]]:
        """The arguments of a backend. Raises TooLongError for a text that the model would truncate silently."""
        prefix = self._prompt(prompt)
        encodings = self._network.tokenizer.encode_batch([prefix + text for text in texts])
        if prefix:
            # The last token of the prompt may extend into the text; then it counts as a token of the text.
            counts = [sum(end > len(prefix) for _, end in encoding.offsets) for encoding in encodings]
        else:
            counts = [len(encoding.ids) - self._special_tokens for encoding in encodings]
        kind = "question" if prompt == "query" else "passage"
        check_lengths(kind, counts, self._max_tokens(prompt), self._name)
        return texts, prefix, [encoding.ids for encoding in encodings]

    def _prompt(self, name: str) -> str:
        return self._network.prompts.get(name, "")

    def _max_tokens(self, prompt: str) -> int:
        return self._network.window - self._special_tokens - len(self.tokenize([self._prompt(prompt)])[0])

    @cached_property
    def _special_tokens(self) -> int:
        return int(self._network.tokenizer.num_special_tokens_to_add(False))

    @cached_property
    def _exact(self) -> Backend:
        return self._network.load(self._network.exact_backend)
