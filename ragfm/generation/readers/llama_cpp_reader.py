"""A reader for GGUF models, through llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ragfm.core.errors import ConfigError, UnsupportedError
from ragfm.core.types import Message, Sampling
from ragfm.generation.json_schema import OutputSchema
from ragfm.generation.readers import whole
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.llama_sampler import Sampler
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.generation.readers.prefix_cache import Beginnings
from ragfm.generation.readers.weight_format import optimized
from ragfm.models.adapters import SHIPPED
from ragfm.models.gguf_header import check_gguf, kv_bytes
from ragfm.models.hardware import physical_cores
from ragfm.models.model_lookup import find_model
from ragfm.models.model_probe import try_loading

__all__ = ["LlamaCppReader"]

_MOST_THREADS = 512
"""That llama.cpp takes; where the system refuses one, OpenMP ends the program."""


class LlamaCppReader(LocalReader[LlamaModel]):
    """A GGUF model with its own chat template. Requests of any number of threads are evaluated together.

    Each request has `context_tokens` for itself, whatever else runs; they are cut to what the model was trained for.
    Up to `slots` requests run at once, up to `waiting` more wait for one of them to end. There is memory for one at
    first, and for as many as have run at once later. `threads` defaults to the physical cores. Layers go to the GPU
    where llama.cpp was built for one. `Sampling.adapter` is a LoRA adapter as a GGUF file.
    """

    def __init__(
        self, model: str = "bundled", *, context_tokens: int = 4096, slots: int = 8, waiting: int = 64,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        path = find_model(model, "reader")
        if not path.is_file():
            raise UnsupportedError(f"llama-cpp reads GGUF files, and {path} is a folder.", "Use transformers:NAME.")
        check_gguf(path)
        self._begun: list[Sequence[Message]] = []
        used = whole("threads", threads or physical_cores(), 1, _MOST_THREADS)
        super().__init__(path, context_tokens, slots, waiting, used)

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """About how much memory it takes with one request, and with as many as it has slots; nothing is loaded."""
        path = optimized(self._path) or self._path
        weights, window = path.stat().st_size, kv_bytes(path, self._asked_tokens)
        return weights + window, weights + self.slots * window

    def keep(self, messages: Sequence[Message]) -> None:
        """Keep what prompts begin with on disk, evaluated, for the next process: give only what is in no document."""
        with self._loading:
            self._begun.append(messages)
            if self._loaded:
                self._loaded.model.beginnings.add(messages)

    def _load(self) -> LlamaModel:
        model = LlamaModel(optimized(self._path) or self._path)
        model.beginnings = Beginnings(model, self._threads)
        for messages in self._begun:
            model.beginnings.add(messages)
        return model

    def _picker(self, model: LlamaModel, sampling: Sampling) -> Sampler:
        return Sampler(model.vocab, sampling)

    def _checked(self, sampling: Sampling) -> Sampling:
        """With the grammar of a schema."""
        if sampling.schema is None:
            return sampling
        if sampling.grammar is not None:
            raise ConfigError("A grammar and a schema were given.", "Give one of them.")
        return replace(sampling, schema=None, grammar=OutputSchema.of(sampling.schema).grammar)

    def _check_adapter(self, path: Path) -> None:
        if path.is_relative_to(SHIPPED):
            return
        check_gguf(path)
        try_loading(self._engine.model.path, path)
