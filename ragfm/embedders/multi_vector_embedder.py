"""Late interaction: image models with one vector per token of a query and per patch of an image."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ragfm.core.errors import UnsupportedError
from ragfm.core.fork import reset_in_children
from ragfm.core.types import Scalar, Vectors
from ragfm.embedders.image_decoding import decode_images
from ragfm.embedders.token_offsets import check_lengths
from ragfm.models.model_lookup import find_model, hide_progress_bar, processor_sha256, report_damage, weights_sha256

_BATCH_IMAGES = 4  # a page has hundreds of patches


class MultiVectorEmbedder:
    """A model of the ColPali family (Faysse et al. 2024, https://arxiv.org/abs/2407.01449), for `image_embedder` only.

    Any model that sentence-transformers loads as `MultiVectorEncoder` with images: ColPali, ColQwen2, ColModernVBERT in
    the format of transformers. A query's score for an image is the mean over its tokens of the highest cosine with
    a patch (MaxSim). Thread-safe.
    """

    def __init__(self, model: str) -> None:
        self._name = model
        self._path = find_model(model, "embedder")
        self._lock = threading.Lock()  # a tokenizer with padding is not thread-safe
        reset_in_children(self)

    def reset_after_fork(self) -> None:
        """Replace the lock: in a forked process, it may be held forever."""
        self._lock = threading.Lock()

    @cached_property
    def dim(self) -> int:
        """Number of dimensions of a token's vector."""
        return int(self._model.get_embedding_dimension())

    @cached_property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a query, without those that the model adds."""
        with self._lock:
            added = self._model.preprocess([""], task="query")["input_ids"].shape[1]
        return int(self._model.max_seq_length) - int(added)

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return {
            "model": self._name,
            "weights": weights_sha256(self._path),
            "processor": processor_sha256(self._path),
            "dim": self.dim,
            "pooling": json.dumps([layer.get_config_dict() for layer in list(self._model)[1:]], sort_keys=True),
            "query_prompt": self._model.prompts.get("query") or "",
            "passage_prompt": self._model.prompts.get("document") or "",
            "max_tokens": self.max_tokens,
        }

    def embed_images(self, images: Sequence[bytes]) -> list[Vectors]:
        """*Shape:* (patches, dim) for each image, unit rows. Raises EmbeddingError for a damaged image."""
        pictures = decode_images(images)
        with self._lock:
            matrices = self._model.encode_document(
                pictures, batch_size=_BATCH_IMAGES, normalize_embeddings=True, show_progress_bar=False
            )
        return [_to_numpy(matrix) for matrix in matrices]

    def embed_queries(self, texts: Sequence[str]) -> list[Vectors]:
        """*Shape:* (tokens, dim) for each text, unit rows. Raises TooLongError for a text over `max_tokens`."""
        with self._lock:
            tokenized = [
                self._model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts
            ]
        check_lengths("question", map(len, tokenized), self.max_tokens, self._name)
        with self._lock:
            matrices = self._model.encode_query(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return [_to_numpy(matrix) for matrix in matrices]

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import MultiVectorEncoder

        with report_damage("sentence-transformers", self._path), hide_progress_bar():
            model = MultiVectorEncoder(str(self._path), local_files_only=True)
        if "image" not in model.modalities:
            raise UnsupportedError(
                f"The model {self._name!r} embeds texts only.", "Use a model of the ColPali family as `image_embedder`."
            )
        return model


def _to_numpy(matrix: Any) -> Vectors:
    vectors: Vectors = matrix.float().cpu().numpy().astype(np.float32)
    return vectors
