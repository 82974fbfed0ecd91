"""Rerankers: models that compare a query with the text of each passage, which ranks better than one vector per passage.

`load_reranker` takes a name: a folder, a model on the Hugging Face hub, or `PLUGIN:NAME`. The classes run the three
kinds of models of sentence-transformers that score pairs.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from ragfm.core.errors import ModelNotFoundError, UnsupportedError
from ragfm.core.registry import make
from ragfm.models.hardware import limit_torch_threads
from ragfm.models.model_lookup import find_model, hide_progress_bar, report_damage

if TYPE_CHECKING:
    from ragfm.core.types import Reranker, Vectors

__all__ = ["CrossEncoderReranker", "MultiVectorReranker", "SparseReranker", "load_reranker"]

_PLUGINS = {
    "CrossEncoder": "cross-encoder",
    "MultiVectorEncoder": "multi-vector",
    "ColBERT": "multi-vector",
    "SparseEncoder": "sparse-encoder",
}
"""The plugin for each kind of model."""
Score: TypeAlias = Callable[[Sequence[str]], Any]
"""Scores of texts for one query. *Shape:* (len(texts),)."""


def load_reranker(name: str) -> Reranker:
    """Create a reranker by name; its weights are loaded on first use.

    Raises ModelNotFoundError, UnknownPluginError, or ConfigError if the plugin needs a model name or accepts none.
    """
    return cast("Reranker", make("rerankers", name))


@cache
def has_verifier() -> bool:
    """Whether the model of the bundled verifier is installed."""
    try:
        find_model("bundled", "embedder")
    except ModelNotFoundError:
        return False
    return True


class _ModelReranker(ABC):
    """A model of sentence-transformers, on the GPU if there is one, and the time budget.

    Up to `batch_size` texts of similar length form a batch. Texts that exceed the model's window are truncated.
    """

    kinds: ClassVar[Sequence[str]]
    """The kinds of models that can be loaded, as `config_sentence_transformers.json` names them."""
    architectures: ClassVar[tuple[str, ...]] = ("",)
    """How the architecture in `config.json` may end if the folder is one of transformers alone."""

    def __init__(self, model: str, *, device: str | None = None, batch_size: int = 16) -> None:
        self._path = find_model(model, "reranker")
        self._name = model
        self._device = device
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._seconds_per_character = 0.0  # of the last batch, including padding; 0 before the first

    @abstractmethod
    def _load(self) -> Any:
        """Load the model."""

    @abstractmethod
    def _scorer(self, query: str) -> Score:
        """The scores for a query; the library sorts texts by length before batching."""

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """The model's scores, higher is better. *Shape:* (len(texts),); NaN for texts beyond the time budget.

        A batch is started only if the speed of the last one predicts that it ends in time. Loading the model does not
        count.
        """
        import numpy as np

        _, start = self._model, monotonic()
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        if not self._lock.acquire(timeout=-1 if budget_ms is None else max(budget_ms, 0) / 1000):
            return scores  # other calls have used up the time
        try:
            done, score = 0, None
            while done < len(texts):
                count = len(texts)
                if budget_ms is not None:
                    count = self._batch_within(query, texts[done:], budget_ms / 1000 - (monotonic() - start))
                if not count:
                    break
                batch, began = texts[done : done + count], monotonic()
                score = score or self._scorer(query)
                predicted = score(batch)
                longest = max(len(query) + len(text) for text in batch)
                self._seconds_per_character = (monotonic() - began) / (longest * len(batch))
                scores[done : done + count] = predicted
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
        # The library turns a model of another kind into one of this kind, with random weights.
        about = self._path / "config_sentence_transformers.json"
        if (self._path / "modules.json").is_file():
            listed = json.loads(about.read_bytes()) if about.is_file() else {}
            kind = str(listed.get("model_type", "SentenceTransformer"))
            if kind not in self.kinds:
                plugin = _PLUGINS.get(kind)
                raise UnsupportedError(
                    f"The model {self._name!r} is a {kind}, not a {self.kinds[0]}.",
                    f"Use {plugin}:{self._name}." if plugin else "Use a model that was trained to rerank.",
                )
        else:
            config = self._path / "config.json"
            found = json.loads(config.read_bytes()).get("architectures") if config.is_file() else None
            architecture = found[0] if found else "model of unknown architecture"
            if not architecture.endswith(self.architectures):
                raise UnsupportedError(
                    f"The model {self._name!r} is a {architecture}, not a {self.kinds[0]}.",
                    "Use a model that was trained to rerank.",
                )
        limit_torch_threads()
        with report_damage("sentence-transformers", self._path), hide_progress_bar():
            return self._load()


class CrossEncoderReranker(_ModelReranker):
    """A sentence-transformers CrossEncoder with one label (Nogueira and Cho 2019), which reads query and text together.

    On the GPU if there is one. Texts that exceed the model's window with the query are truncated.
    """

    kinds = ("CrossEncoder",)

    def _load(self) -> Any:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(self._path), device=self._device, local_files_only=True)
        if model.num_labels != 1:
            raise UnsupportedError(
                f"The model {self._name!r} has {model.num_labels} labels, so it does not return a single score.",
                "Use a cross-encoder that was trained to rank.",
            )
        return model

    def _scorer(self, query: str) -> Score:
        return lambda texts: self._model.predict(
            [(query, text) for text in texts], batch_size=self._batch_size, show_progress_bar=False
        )


class _EncoderReranker(_ModelReranker):
    """A model that encodes query and texts apart; its own similarity compares them.

    Alone it often ranks worse than search: docs/decisions/056-rerankers.md.
    """

    weight = 0.5

    def _scorer(self, query: str) -> Score:
        import torch

        options = {"batch_size": self._batch_size, "show_progress_bar": False}
        with torch.inference_mode():
            asked = self._model.encode_query([query], **options)

        def score(texts: Sequence[str]) -> Any:
            with torch.inference_mode():
                return self._model.similarity(asked, self._model.encode_document(list(texts), **options))[0].cpu()

        return score


class MultiVectorReranker(_EncoderReranker):
    """A sentence-transformers MultiVectorEncoder: late interaction (Khattab and Zaharia 2020), one vector per token.

    The score is the model's: for ColBERT the sum over the query's tokens of the highest cosine with a token of the text
    (MaxSim).
    """

    kinds = ("MultiVectorEncoder", "ColBERT")
    architectures = ("HF_ColBERT", "ForRetrieval")

    def _load(self) -> Any:
        from sentence_transformers import MultiVectorEncoder

        return MultiVectorEncoder(str(self._path), device=self._device, local_files_only=True)


class SparseReranker(_EncoderReranker):
    """A sentence-transformers SparseEncoder: SPLADE (Formal et al. 2021), inference-free ones included.

    The score is the model's: for SPLADE the sum over the vocabulary of weight in the query times weight in the text.
    """

    kinds = ("SparseEncoder",)
    architectures = ("ForMaskedLM",)

    def _load(self) -> Any:
        from sentence_transformers import SparseEncoder

        return SparseEncoder(str(self._path), device=self._device, local_files_only=True)
