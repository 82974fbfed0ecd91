"""A reader for language models of Hugging Face transformers, on the GPU if there is one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ragfm.core.errors import ModelNotFoundError, UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.readers import passages_for
from ragfm.generation.readers.continuous_batching import CacheFactory
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.generation.readers.sampling import LogitsSampler
from ragfm.generation.readers.torch_kv_cache import BatchedKVCache, SingleKVCache
from ragfm.generation.readers.torch_model import TorchModel
from ragfm.models.adapters import is_peft_folder
from ragfm.models.model_lookup import find_model


class TransformersReader(LocalReader[TorchModel]):
    """A model from a folder, the hub or a GGUF file (dequantised). Requests from any thread are evaluated together.

    Weights are safetensors or GGUF; code from the hub never runs. `device` defaults to the GPUs if there are any
    (bfloat16; the model is split over all of them), else the CPU (float32). `dtype` is torch's name. Each request has
    `context_tokens` for itself, limited to the model's training context, minus `virtual_tokens`, those of an adapter by
    prefix or prompt tuning. Up to `slots` requests run at once, and up to `waiting` more wait. `Sampling.adapter` is a
    PEFT folder.
    """

    def __init__(
        self,
        model: str = "bundled",
        *,
        context_tokens: int = 4096,
        slots: int = 8,
        waiting: int = 64,
        device: str | None = None,
        dtype: str | None = None,
        thinking: bool | str = False,
        virtual_tokens: int = 0,
    ) -> None:
        path = find_model(model, "reader")
        super().__init__(path, context_tokens, slots, waiting, thinking=thinking, virtual_tokens=virtual_tokens)
        self._device, self._dtype = device, dtype

    @property
    def passages(self) -> int:
        """How many passages it answers best from."""
        if self._path.is_file():
            return passages_for(self._path.stat().st_size)
        return passages_for(sum(file.stat().st_size for file in self._path.glob("*.safetensors")) // 4)  # 16 bits each

    def _load_model(self) -> TorchModel:
        return TorchModel(self._path, device=self._device, dtype=self._dtype, thinking=self._thinking)

    def _cache_factory(self, model: TorchModel, context_tokens: int) -> CacheFactory:
        if model.supports_batching:
            return partial(BatchedKVCache, model, window=context_tokens)
        return lambda _: SingleKVCache(model)

    def _new_sampler(self, model: TorchModel, sampling: Sampling) -> LogitsSampler:
        return LogitsSampler(sampling)

    def _prepare_sampling(self, sampling: Sampling) -> Sampling:
        if sampling.grammar is not None or sampling.schema is not None:
            raise UnsupportedError(
                "The transformers reader does not support grammars and schemas.", "Use a GGUF model with llama-cpp."
            )
        return sampling

    def _check_adapter(self, path: Path) -> None:
        if not is_peft_folder(path):
            raise ModelNotFoundError(
                f"'{path}' is not a folder with a PEFT adapter.", "Specify the adapter's folder, not a GGUF file."
            )
