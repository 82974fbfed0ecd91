"""Embedders: texts to unit vectors.

`load_embedder` takes a name: `bundled`, a folder, a model of the Hugging Face hub, or `PLUGIN:NAME`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ragfm.errors import TooLongError, UnsupportedError
from ragfm.models import find_model, weights_sha256
from ragfm.registry import load_plugin, plugins

if TYPE_CHECKING:
    from ragfm.types import Embedder, Offsets, Scalar, Vectors

__all__ = ["SentenceTransformerEmbedder", "load_embedder"]


def load_embedder(name: str = "bundled") -> Embedder:
    """The embedder of a name; its weights are loaded when they are first needed.

    Raises ModelNotFoundError or UnknownPluginError.
    """
    if name in plugins("embedders"):
        return cast("Embedder", load_plugin("embedders", name)())
    plugin, colon, model = name.partition(":")
    if not colon:
        plugin, model = "sentence-transformers", name
    return cast("Embedder", load_plugin("embedders", plugin)(model))


class SentenceTransformerEmbedder:
    """Any sentence-transformers model with a fast tokenizer (Reimers and Gurevych 2019), on the GPU if there is one.

    The model's own prompts are put before queries and passages. `batch_size` texts go through the model at once;
    sentence-transformers sorts a call's texts by length, so larger calls waste less on padding.
    """

    def __init__(self, model: str = "bundled", *, device: str | None = None, batch_size: int = 32) -> None:
        self._path = find_model(model, "embedder")
        self._name = model
        self._device = device
        self._batch_size = batch_size
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._model.get_embedding_dimension())

    @property
    def max_tokens(self) -> int:
        """Tokens of a passage that fit, special tokens and the passage prompt taken off."""
        return self._room("document")

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract: all that decides which vector a text gets."""
        layers = [layer.get_config_dict() for layer in list(self._model)[1:]]
        return {
            "model": self._name,
            "weights": weights_sha256(self._path),
            "dim": self.dim,
            "pooling": json.dumps(layers, sort_keys=True),
            "query_prompt": self._prompt("query"),
            "passage_prompt": self._prompt("document"),
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Where the tokens of each text stand, by the model's own tokenizer."""
        import numpy as np

        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encodings]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "document")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "query")

    def _embed(self, texts: Sequence[str], prompt: str) -> Vectors:
        import numpy as np

        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        longest = max(len(offsets) for offsets in self.tokenize(texts))
        room = self._room(prompt)
        if longest > room:
            what = "question" if prompt == "query" else "passage"
            raise TooLongError(f"A {what} has {longest} tokens, and {self._name} takes {room}.", "Shorten it.")
        with self._lock:
            vectors = self._model.encode(
                list(texts),
                prompt=self._prompt(prompt),
                batch_size=self._batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.asarray(vectors, dtype=np.float32)

    def _prompt(self, name: str) -> str:
        return str(self._model.prompts.get(name) or "")

    def _room(self, prompt: str) -> int:
        special = int(self._model.tokenizer.num_special_tokens_to_add())
        before = len(self.tokenize([self._prompt(prompt)])[0])
        return int(self._model.max_seq_length) - special - before

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # loading takes half a second
        try:
            model = SentenceTransformer(str(self._path), device=self._device, local_files_only=True)
        finally:
            logging.enable_progress_bar()
        if not getattr(model.tokenizer, "is_fast", False):
            raise UnsupportedError(f"The model {self._name} has no fast tokenizer, so its window can't be kept.")
        return model

    @cached_property
    def _tokenizer(self) -> Any:
        # The model's own one truncates and pads, and is not safe to switch while another thread embeds.
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
