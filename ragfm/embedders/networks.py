"""The networks behind an embedder, and the forms that each can take on this machine."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ragfm.core.errors import UnsupportedError
from ragfm.models.hardware import cpu_info, has_gpu
from ragfm.models.model_lookup import hide_progress_bar

if TYPE_CHECKING:
    from ragfm.core.types import Vectors
    from ragfm.embedders.bert import Bert
    from ragfm.embedders.model_folder import BertFolder

__all__ = ["BertNetwork", "Form", "LibraryNetwork", "Network", "Tokenised"]


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Texts and their token ids; these include special tokens and the prompt, the texts don't."""

    texts: Sequence[str]
    prompt: str
    ids: Sequence[Sequence[int]]


Form: TypeAlias = Callable[[Tokenised], "Vectors"]
"""A way to run a network: unit vectors, *shape* (texts, dim)."""


class BertNetwork:
    """A BERT (see `bert.py`), without the libraries that take seconds to import."""

    def __init__(self, folder: BertFolder) -> None:
        self._folder = folder
        self.window, self.dim, self.pooling, self.prompts = folder.window, folder.dim, folder.pooling, folder.prompts

    @cached_property
    def tokenizer(self) -> Any:
        """It neither truncates nor pads."""
        from tokenizers import Tokenizer, normalizers

        tokenizer = _whole(Tokenizer.from_file(str(self._folder.path / "tokenizer.json")))
        if self._folder.lowercase:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
        return tokenizer

    def forms(self) -> list[str]:
        """Numpy is exact and imported already."""
        found = ["numpy-fp32", "torch-fp32"]
        if "bf16" in cpu_info()[1]:
            found.append("torch-bf16")
        if importlib.util.find_spec("openvino"):
            found.append("openvino")
        if has_gpu():
            found.append("gpu-fp16")
        return found

    def load(self, form: str) -> Form:
        """The form of a name."""
        run = self._load(form)
        return lambda tokenised: run(tokenised.ids)

    def _load(self, form: str) -> Callable[[Sequence[Sequence[int]]], Vectors]:
        library, _, precision = form.partition("-")
        if library == "numpy":
            from ragfm.embedders.bert_numpy import NumpyForm

            return NumpyForm(self._folder, self._weights)
        if library == "openvino":
            from ragfm.embedders.bert_openvino import OpenVinoForm

            return OpenVinoForm(self._folder, self._weights)
        import torch

        from ragfm.embedders.bert_torch import TorchForm

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return TorchForm(self._folder, self._weights, dtype, "cuda" if library == "gpu" else "cpu")

    @cached_property
    def _weights(self) -> Bert:
        from ragfm.embedders.bert import read_weights

        return read_weights(self._folder.path)


class LibraryNetwork:
    """Whatever sentence-transformers can load, through it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    @cached_property
    def window(self) -> int:
        """What sentence-transformers would cut a text to."""
        return int(self._model.max_seq_length)

    @cached_property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._model.get_embedding_dimension())

    @cached_property
    def pooling(self) -> str:
        """All layers after the first."""
        return json.dumps([layer.get_config_dict() for layer in list(self._model)[1:]], sort_keys=True)

    @cached_property
    def prompts(self) -> Mapping[str, str]:
        """The model's own, by name."""
        return {name: text or "" for name, text in self._model.prompts.items()}

    @cached_property
    def tokenizer(self) -> Any:
        """A copy: the model's own one truncates and pads, and is not safe to switch while another thread embeds."""
        from tokenizers import Tokenizer

        return _whole(Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str()))

    def forms(self) -> list[str]:
        """The library takes the GPU where there is one; fp32 stays as the model's author meant it."""
        return ["fp32", "bf16"] if "bf16" in cpu_info()[1] and not has_gpu() else ["fp32"]

    def load(self, form: str) -> Form:
        """bf16 by autocast."""
        import torch

        model = self._model

        def run(tokenised: Tokenised) -> Vectors:
            with torch.autocast("cpu", torch.bfloat16, enabled=form == "bf16"):
                vectors: Vectors = model.encode(
                    list(tokenised.texts),
                    prompt=tokenised.prompt,
                    normalize_embeddings=True,
                    convert_to_numpy=False,
                    convert_to_tensor=True,
                    show_progress_bar=False,
                ).float().cpu().numpy()  # fmt: skip
            return vectors

        return run

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        with hide_progress_bar():
            model = SentenceTransformer(str(self._path), local_files_only=True)
        if not getattr(model.tokenizer, "is_fast", False):
            raise UnsupportedError(f"The model {self._name} has no fast tokenizer, so its window can't be kept.")
        return model


Network: TypeAlias = BertNetwork | LibraryNetwork
"""What the embedding contract needs to know of a model, its tokenizer, and its forms.

`window` is in tokens, special ones and prompt included. `forms` names those that this machine may have, the exact one
first; `load` raises where one turns out not to be there.
"""


def _whole(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
