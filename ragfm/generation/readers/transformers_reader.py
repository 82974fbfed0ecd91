"""A reader for causal language models of Hugging Face transformers, on the GPU if there is one."""

from __future__ import annotations

from pathlib import Path

from ragfm.core.errors import ModelNotFoundError, UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.generation.readers.sampling import Chance
from ragfm.generation.readers.torch_model import Bits, TorchModel
from ragfm.models.adapters import WEIGHTS
from ragfm.models.model_lookup import find_model

__all__ = ["TransformersReader"]


class TransformersReader(LocalReader[TorchModel]):
    """A model from a folder, the hub or a GGUF file (dequantised). Requests of any thread are evaluated together.

    Weights are safetensors or GGUF; code from the hub never runs. `device` defaults to the GPUs where there are some
    (bfloat16; of several, the model is spread over all), else the CPU (float32); `dtype` and `attention` are
    transformers' names. `bits` (4 or 8) quantises by bitsandbytes. Each request has `context_tokens` for itself; they
    are cut to what the model was trained for. Up to `slots` run at once, up to `waiting` more wait. `Sampling.adapter`
    is a folder of PEFT's.
    """

    def __init__(
        self, model: str = "bundled", *, context_tokens: int = 4096, slots: int = 8, waiting: int = 64,
        device: str | None = None, dtype: str | None = None, bits: Bits | None = None, attention: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(find_model(model, "reader"), context_tokens, slots, waiting)
        self._device, self._dtype, self._bits, self._attention = device, dtype, bits, attention

    def _load(self) -> TorchModel:
        return TorchModel(
            self._path, device=self._device, dtype=self._dtype, bits=self._bits, attention=self._attention
        )

    def _picker(self, model: TorchModel, sampling: Sampling) -> Chance:
        return Chance(sampling)

    def _checked(self, sampling: Sampling) -> Sampling:
        if sampling.grammar is not None or sampling.schema is not None:
            raise UnsupportedError("The transformers reader has no grammars.", "Use a GGUF model with llama-cpp.")
        return sampling

    def _check_adapter(self, path: Path) -> None:
        if not all((path / name).is_file() for name in ("adapter_config.json", WEIGHTS)):
            raise ModelNotFoundError(f"There is no adapter of PEFT's in {path}.", "Give the folder, not a GGUF file.")
