"""The neural network behind an embedder, and the backends that run it."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from ragfm.core.cache import read_json
from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Vectors
from ragfm.embedders.bert import Bert
from ragfm.embedders.model_folder import BertFolder
from ragfm.embedders.sorted_batches import BertBackend
from ragfm.models.hardware import limit_torch_threads
from ragfm.models.model_lookup import hide_progress_bar, report_damage

STATIC_WINDOW = 512
"""Maximum tokens of a static model, which has no limit: the mean over a longer text is not distinctive."""


Backend: TypeAlias = Callable[[Sequence[str], str, Sequence[Sequence[int]]], "Vectors"]
"""A function that runs a network and returns unit vectors, *shape* (texts, dim).

It is given texts, their prompt, and their token ids. The ids include special tokens and the prompt, the texts do not.
"""


class BertNetwork:
    """A BERT model run by `ragfm.embedders.bert`, without libraries that take seconds to import.

    `weights` replace those of the folder.
    """

    exact_backend = "numpy-fp32"

    def __init__(self, folder: BertFolder, weights: Bert | None = None) -> None:
        self._folder = folder
        self._given = weights
        self.window = folder.window
        self.dim = folder.dim
        self.pooling = folder.pooling
        self.prompts = folder.prompts
        has_openvino = importlib.util.find_spec("openvino") is not None
        self.fast_exact_backend = "openvino-fp32" if has_openvino else self.exact_backend
        self.fast_backend = "openvino" if has_openvino else self.exact_backend

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, without truncation and padding."""
        from tokenizers import Tokenizer, normalizers

        tokenizer = _without_limits(Tokenizer.from_file(str(self._folder.path / "tokenizer.json")))
        if self._folder.lowercase:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
        return tokenizer

    def load(self, name: str) -> Backend:
        """Load a backend by name."""
        run = self.load_bert(name)
        return lambda _texts, _prompt, ids: run(ids)

    def load_bert(self, name: str) -> BertBackend:
        """Load a backend that runs on token ids, by name."""
        if name == self.exact_backend:
            from ragfm.embedders.bert_numpy import NumpyBackend

            return NumpyBackend(self._folder, self._weights)
        from ragfm.embedders.bert_openvino import OpenVinoBackend

        return OpenVinoBackend(self._folder, self._weights, for_passages=name == "openvino")

    @cached_property
    def _weights(self) -> Bert:
        from ragfm.embedders.bert import read_weights

        return self._given or read_weights(self._folder.path, self._folder.dense)


class LibraryNetwork:
    """Any model that sentence-transformers can load, run by that library in fp32, on the GPU if there is one."""

    exact_backend = fast_exact_backend = fast_backend = "fp32"

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    @cached_property
    def window(self) -> int:
        """Maximum number of tokens; sentence-transformers truncates longer texts."""
        length = self._model.max_seq_length
        return STATIC_WINDOW if length == math.inf else int(length)

    @cached_property
    def dim(self) -> int:
        """Number of dimensions."""
        return int(self._model.get_embedding_dimension())

    @cached_property
    def pooling(self) -> str:
        """Configuration of all layers after the first, as JSON."""
        return json.dumps([layer.get_config_dict() for layer in list(self._model)[1:]], sort_keys=True)

    @cached_property
    def prompts(self) -> Mapping[str, str]:
        """The model's own prompts, by name."""
        return {name: text or "" for name, text in self._model.prompts.items()}

    @cached_property
    def tokenizer(self) -> Any:
        """A copy of the model's tokenizer, without truncation and padding.

        Changing the model's own tokenizer is not safe while another thread embeds.
        """
        from tokenizers import Tokenizer

        tokenizer = self._model.tokenizer
        return _without_limits(Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str()))

    def load(self, name: str = "fp32") -> Backend:
        """Load the model."""
        model = self._model

        def run(texts: Sequence[str], prompt: str, _: Sequence[Sequence[int]]) -> Vectors:
            tensor = model.encode(
                list(texts),
                prompt=prompt,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            vectors: Vectors = tensor.float().cpu().numpy()
            # A static model's vector of unknown tokens is zero; the diagonal favours no dimension.
            vectors[~vectors.any(axis=1)] = vectors.shape[1] ** -0.5
            return vectors

        return run

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        kinds = read_json(self._path / "config.json").get("architectures")
        if any(str(kind).endswith("ForRetrieval") for kind in kinds or ()):
            raise UnsupportedError(
                f"The model {self._name!r} has a vector for each token, not one for a text.", "Choose another model."
            )
        limit_torch_threads()
        with report_damage("sentence-transformers", self._path), hide_progress_bar():
            model = SentenceTransformer(str(self._path), local_files_only=True)
        first = model[0]
        if type(first).__name__ == "StaticEmbedding":
            first.tokenizer.no_truncation()
        elif not getattr(model.tokenizer, "is_fast", False):
            raise UnsupportedError(
                f"The model {self._name!r} has no fast tokenizer, so the length of texts cannot be checked.",
                "Choose a model with a `tokenizer.json`.",
            )
        return model


Network: TypeAlias = BertNetwork | LibraryNetwork
"""The properties of a model that the embedding contract needs, its tokenizer, and its backends.

`window` is the maximum number of tokens, including special tokens and the prompt. `exact_backend` is the quickest to
load, in fp32; `fast_exact_backend` runs faster, and other threads wait less for it; `fast_backend` is for many
passages. `load` raises if a backend turns out to be unavailable.
"""


def _without_limits(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
