"""Rerankers: models that compare a query with the text of each passage, which ranks better than one vector per passage.

`load_reranker` takes a name: a cross-encoder as a folder or on the Hugging Face hub, or `PLUGIN:NAME`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from ragfm.core.cache import read_json
from ragfm.core.errors import ModelNotFoundError, UnsupportedError
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


@cache
def has_judge() -> bool:
    """Whether the model of the judge `small` is installed."""
    try:
        find_model("bundled", "embedder")
    except ModelNotFoundError:
        return False
    return True


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
        self._seconds_per_character = 0.0  # of the last batch, including padding; 0 before the first

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """The model's scores, higher is better. *Shape:* (len(texts),); NaN for texts beyond the time budget.

        A batch is started only if the speed of the last one predicts that it ends in time. Loading the model does not
        count.
        """
        import numpy as np

        model, start = self._model, monotonic()
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        if not self._lock.acquire(timeout=-1 if budget_ms is None else max(budget_ms, 0) / 1000):
            return scores  # other calls have used up the time
        try:
            done = 0
            while done < len(texts):
                count = len(texts)
                if budget_ms is not None:
                    count = self._batch_within(query, texts[done:], budget_ms / 1000 - (monotonic() - start))
                if not count:
                    break
                pairs, began = [(query, text) for text in texts[done : done + count]], monotonic()
                # The library sorts the pairs by length before batching.
                scores[done : done + count] = model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
                longest = max(len(query) + len(text) for _, text in pairs)
                self._seconds_per_character = (monotonic() - began) / (longest * len(pairs))
                done += count
        finally:
            self._lock.release()
        return scores

    def _batch_within(self, query: str, texts: Sequence[str], seconds: float) -> int:
        """How many of the first texts can be scored in one batch within the given seconds."""
        if seconds <= 0:
            return 0
        if not self._seconds_per_character:
            return 1  # to measure the speed
        count, longest = 0, 0
        for text in texts[: self._batch_size]:
            longest = max(longest, len(query) + len(text))
            if (count + 1) * longest * self._seconds_per_character > seconds:
                break
            count += 1
        return count

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
