"""Rerankers: models that compare a query with the text of each passage, which ranks better than one vector per passage.

`load_reranker` takes a name: a cross-encoder as a folder or on the Hugging Face hub, or `PLUGIN:NAME`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ragfm.core.cache import read_json
from ragfm.core.errors import UnsupportedError
from ragfm.core.registry import make
from ragfm.models.hardware import limit_torch_threads
from ragfm.models.model_lookup import find_model, hide_progress_bar, report_damage

if TYPE_CHECKING:
    from ragfm.core.types import Reranker, Vectors

__all__ = ["CrossEncoderReranker", "load_reranker"]


def load_reranker(name: str) -> Reranker:
    """Create a reranker by name; its weights are loaded on first use.

    Raises ModelNotFoundError, UnknownPluginError, or ConfigError if the plugin needs a model name or accepts none.
    """
    return cast("Reranker", make("rerankers", name))


class CrossEncoderReranker:
    """A sentence-transformers CrossEncoder with one label (Nogueira and Cho 2019), which reads query and text together.

    On the GPU if there is one. Texts that exceed the model's window with the query are truncated. Up to `batch_size`
    texts of similar length form a batch.
    """

    def __init__(self, model: str, *, device: str | None = None, batch_size: int = 16) -> None:
        self._path = find_model(model, "reranker")
        self._name = model
        self._device = device
        self._batch_size = batch_size
        self._lock = threading.Lock()

    def rerank(self, query: str, texts: Sequence[str]) -> Vectors:
        """The model's scores, higher is better. *Shape:* (len(texts),)."""
        import numpy as np

        model = self._model
        if not texts:
            return np.zeros(0, dtype=np.float32)
        with self._lock:  # the library sorts the pairs by length before batching
            scores = model.predict(
                [(query, text) for text in texts], batch_size=self._batch_size, show_progress_bar=False
            )
        return np.asarray(scores, dtype=np.float32)

    @cached_property
    def _model(self) -> Any:
        # The library makes a CrossEncoder of any other model, with random weights.
        if (self._path / "modules.json").is_file():
            kind = read_json(self._path / "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
            if kind != "CrossEncoder":
                raise UnsupportedError(
                    f"The model {self._name!r} is a {kind}, not a CrossEncoder.",
                    "Use a model that was trained to rerank.",
                )
        limit_torch_threads()
        with report_damage("sentence-transformers", self._path), hide_progress_bar():
            from sentence_transformers import CrossEncoder

            model = CrossEncoder(str(self._path), device=self._device, local_files_only=True)
            if model.num_labels != 1:
                raise UnsupportedError(
                    f"The model {self._name!r} has {model.num_labels} labels, so it does not return a single score.",
                    "Use a cross-encoder that was trained to rank.",
                )
            return model
