"""A reader for GGUF models, with llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ragfm.core.errors import ConfigError, UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.json_schema import OutputSchema
from ragfm.generation.readers import bool_option, int_option, passages_for
from ragfm.generation.readers.continuous_batching import CacheFactory
from ragfm.generation.readers.llama_context import LlamaContext
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.generation.readers.llama_sampler import GrammarSampler
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.models.adapters import SHIPPED
from ragfm.models.gguf_header import check_gguf, kv_cache_bytes
from ragfm.models.hardware import physical_cores
from ragfm.models.model_lookup import find_model
from ragfm.models.model_probe import probe_model
from ragfm.models.thread_count import ThreadCount

_MAX_THREADS = 512
"""llama.cpp's limit. If the system refuses to start a thread, OpenMP aborts the program."""


class LlamaCppReader(LocalReader[LlamaModel]):
    """A GGUF model with its own chat template. Requests from any number of threads are evaluated together.

    Each request has `context_tokens` for itself, limited to the model's training context. Up to `slots` requests run
    at once, and up to `waiting` more wait. Memory is allocated for one request at first, and for as many as run at once
    later. `threads` is the maximum number of threads and defaults to the number of physical cores; fewer are used while
    other programs are busy. Layers run on the GPU if llama.cpp was built for one. `thinking` lets a model reason before
    it answers, if it can. `Sampling.adapter` is a LoRA adapter as a GGUF file.

    With `drafts`, a greedy request that runs alone copies likely tokens from its prompt and evaluates them in one batch
    (PromptLookup), which rounds differently than token by token. Default: only for weights whose output is not promised
    to be bit-identical alone and alongside others.
    """

    def __init__(
        self,
        model: str = "bundled",
        *,
        context_tokens: int = 4096,
        slots: int = 8,
        waiting: int = 64,
        threads: int | None = None,
        thinking: bool | str = False,
        drafts: bool | str | None = None,
    ) -> None:
        path = find_model(model, "reader")
        if not path.is_file():
            raise UnsupportedError(
                f"The llama-cpp reader needs a GGUF file, and '{path}' is a folder.", "Use transformers:NAME."
            )
        check_gguf(path)
        threads = int_option("threads", threads or physical_cores(), 1, _MAX_THREADS)
        self._thread_count = ThreadCount(threads)  # it sees from now on what other programs use
        super().__init__(path, context_tokens, slots, waiting, thinking=thinking)
        self._drafts_wanted = None if drafts is None else bool_option("drafts", drafts)

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """Approximate memory use with one request and with all slots in use. Loads nothing."""
        weights, window = self._path.stat().st_size, kv_cache_bytes(self._path, self._max_context_tokens)
        return weights + window, weights + self.slots * window

    @property
    def passages(self) -> int:
        """How many passages it answers best from."""
        return passages_for(self._path.stat().st_size)

    def _load_model(self) -> LlamaModel:
        return LlamaModel(self._path, thinking=self._thinking)

    def _cache_factory(self, model: LlamaModel, context_tokens: int) -> CacheFactory:
        return partial(LlamaContext, model, window=context_tokens, threads=self._thread_count)

    def _new_sampler(self, model: LlamaModel, sampling: Sampling) -> GrammarSampler:
        return GrammarSampler(model.vocab, sampling)

    def _drafts(self, model: LlamaModel) -> bool:
        """Whether a greedy request may draft tokens."""
        wanted = model.prefix_multiple > 1 if self._drafts_wanted is None else self._drafts_wanted
        return wanted and model.can_truncate

    def _prepare_sampling(self, sampling: Sampling) -> Sampling:
        """Replace a schema by its grammar."""
        if sampling.schema is None:
            return sampling
        if sampling.grammar is not None:
            raise ConfigError("Sampling has both a grammar and a schema.", "Use only one of them.")
        return replace(sampling, schema=None, grammar=OutputSchema.of(sampling.schema).grammar)

    def _check_adapter(self, path: Path) -> None:
        if path.is_relative_to(SHIPPED):
            return
        check_gguf(path)
        probe_model(self._engine.model.path, path)
