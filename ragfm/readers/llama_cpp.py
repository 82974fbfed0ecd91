"""A reader for GGUF models, through llama.cpp."""

from __future__ import annotations

import ctypes
import threading
import weakref
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError

from ragfm.errors import ConfigError, DamagedModelError, RagfmError, UnsupportedError
from ragfm.llama import (
    Jinja2ChatFormatter,
    after_c,
    check_gguf,
    free,
    last_error,
    llama_cpp,
    load_model,
    physical_cores,
)
from ragfm.models import find_model
from ragfm.readers import completion_room, speak
from ragfm.types import Message, Sampling, Stream, Usage

__all__ = ["LlamaCppReader"]

BLOCK = 128
"""Tokens of a prompt that are evaluated at once, and the unit in which evaluated ones are kept for the next prompt.

The same token evaluated in a batch of another size gets slightly other values (0.3 in a logit was seen), enough to turn
a greedy choice. Whole blocks at fixed places make the text independent of what was asked before.
"""


class LlamaCppReader:
    """A GGUF model with its own chat template, one request at a time: others wait for its stream to end or be closed.

    `context_tokens` is cut to what the model was trained for. `threads` defaults to the physical cores. Layers go to
    the GPU where llama.cpp was built for one. `Sampling.adapter` is a LoRA adapter as a GGUF file.
    """

    def __init__(self, model: str = "bundled", *, context_tokens: int = 4096, threads: int | None = None) -> None:
        path = find_model(model, "reader")
        if not path.is_file():
            raise UnsupportedError(f"llama-cpp reads GGUF files, and {path} is a folder.", "Use transformers:NAME.")
        check_gguf(path)
        self._path = path
        self._asked_tokens = context_tokens
        self._threads = threads or physical_cores()
        self._loading = threading.Lock()
        # Taken when a stream begins, released when it ends, maybe by the garbage collector in another thread.
        self._turn = threading.Lock()
        self._loaded: _Model | None = None

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and completion may have together."""
        return self._model.context_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt, after the model's own chat template."""
        return len(self._model.tokenize(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Generate the next assistant message.

        Raises ContextOverflowError, ConfigError for a grammar that can't be read, UnsupportedError for messages that
        the template refuses, ModelNotFoundError or DamagedModelError for an adapter.
        """
        model = self._model
        prompt = model.tokenize(messages)
        limit = completion_room(len(prompt), model.context_tokens, sampling.max_tokens)
        if sampling.adapter:
            check_gguf(Path(sampling.adapter).expanduser())
        return Stream(self._generate(model, prompt, limit, sampling, _Sampler(model.vocab, sampling)))

    def _generate(
        self, model: _Model, prompt: list[int], limit: int, sampling: Sampling, sampler: _Sampler
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        with self._turn:
            cached = model.prefill(prompt, sampling.adapter)
            tokens, reason = yield from speak(model.pieces(sampler), limit, sampling.stop)
        return Usage(len(prompt), cached, tokens), reason

    @property
    def _model(self) -> _Model:
        with self._loading:
            if self._loaded is None:
                self._loaded = _Model(self._path, self._asked_tokens, self._threads)
            return self._loaded


class _Model:
    """A loaded model and its one context; all but `tokenize` by one thread at a time."""

    def __init__(self, path: Path, context_tokens: int, threads: int) -> None:
        self._path = path
        self._model = load_model(path)
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.context_tokens = min(context_tokens, int(llama_cpp.llama_model_n_ctx_train(self._model)))
        self._context = llama_cpp.llama_init_from_model(self._model, self._settings(threads))
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise RagfmError(f"llama.cpp can't open {path}: {last_error()}", "Try with fewer context_tokens.")
        weakref.finalize(self, free, self._model, self._context)
        after_c()
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._adapters: dict[str, Any] = {}
        self._adapter: str | None = None
        self._resident: list[int] = []
        """The prompt in memory."""

    def _settings(self, threads: int) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self.context_tokens
        settings.n_batch = settings.n_ubatch = BLOCK
        settings.n_threads = settings.n_threads_batch = threads
        return settings

    @cached_property
    def _template(self) -> Jinja2ChatFormatter:
        template = llama_cpp.llama_model_chat_template(self._model, None)
        if not template:
            raise UnsupportedError(f"{self._path} has no chat template.", "Use an instruction-tuned model.")
        bos, eos = (self._special(token) for token in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos))
        return Jinja2ChatFormatter(template.decode(), eos_token=eos, bos_token=bos)

    def _special(self, which: Any) -> str:
        token = which(self.vocab)
        return "" if token < 0 else str(llama_cpp.llama_vocab_get_text(self.vocab, token).decode())

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """The prompt. The template writes the special tokens, the first one included, so none is added."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            prompt = self._template(messages=turns).prompt.encode()
        except (TemplateError, ValueError) as error:
            raise UnsupportedError(f"The chat template of {self._path} refuses these messages: {error}") from error
        size = len(prompt) + 8  # a token has one byte at least
        tokens = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self.vocab, prompt, len(prompt), tokens, size, False, True)
        return list(tokens[:count])

    def prefill(self, prompt: list[int], adapter: str | None) -> int:
        """Evaluate a prompt; gives how many of its tokens were in memory already."""
        self._use_adapter(adapter)
        pairs = enumerate(zip(self._resident, prompt, strict=False))
        common = next((place for place, (old, new) in pairs if old != new), len(self._resident))
        keep = min(common, len(prompt) - 1) // BLOCK * BLOCK  # the last token is always evaluated, for its logits
        self._resident = self._resident[:keep]
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, keep, -1):  # recurrent models can't go back
            llama_cpp.llama_memory_clear(self._memory, True)
            self._resident, keep = [], 0
        for start in range(keep, len(prompt), BLOCK):
            block = prompt[start : start + BLOCK]
            self._evaluate(block)
            self._resident += block
        return keep

    def pieces(self, sampler: _Sampler) -> Iterator[str]:
        """The text of each token that follows, until the model ends its turn."""
        text = getincrementaldecoder("utf-8")("replace")
        while not llama_cpp.llama_vocab_is_eog(self.vocab, token := sampler.sample(self._context)):
            yield text.decode(self._bytes(token))
            self._evaluate([token])

    def _evaluate(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # must outlive the batch, which only points to it
        if code := llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            self._resident = []
            raise RagfmError(f"llama.cpp failed to evaluate {len(tokens)} tokens (code {code}): {last_error()}")
        after_c()

    def _bytes(self, token: int) -> bytes:
        size = 32
        while True:
            piece = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, piece, size, 0, False)
            if count >= 0:
                return piece.raw[:count]
            size = -count

    def _use_adapter(self, path: str | None) -> None:
        if path == self._adapter:
            return
        if path and path not in self._adapters:
            adapter = llama_cpp.llama_adapter_lora_init(self._model, str(Path(path).expanduser()).encode())
            if not adapter:
                raise DamagedModelError(f"{path} is no LoRA adapter for {self._path}: {last_error()}")
            self._adapters[path] = adapter  # freed with the model
        used = [self._adapters[path]] if path else []
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(*used)
        scales = (ctypes.c_float * 1)(1.0)
        self._resident = []
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, len(used), scales):
            raise RagfmError(f"llama.cpp can't switch to the adapter {path}: {last_error()}")
        self._adapter = path


class _Sampler:
    """How the next token is picked: grammar, then the best one or temperature, top_p, min_p and chance."""

    def __init__(self, vocab: Any, sampling: Sampling) -> None:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        weakref.finalize(self, llama_cpp.llama_sampler_free, chain)
        self._chain = chain
        if sampling.grammar is not None:
            grammar = llama_cpp.llama_sampler_init_grammar(vocab, sampling.grammar.encode(), b"root")
            if not grammar:
                raise ConfigError(f"The grammar can't be read: {last_error()}", "It is GBNF, and its rule is `root`.")
            llama_cpp.llama_sampler_chain_add(chain, grammar)
        if sampling.temperature <= 0:
            steps = [llama_cpp.llama_sampler_init_greedy()]
        else:
            steps = [
                llama_cpp.llama_sampler_init_temp(sampling.temperature),
                llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
                llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
                llama_cpp.llama_sampler_init_dist(sampling.seed & 0x7FFFFFFF),  # 0xFFFFFFFF would mean a random one
            ]
        for step in steps:
            llama_cpp.llama_sampler_chain_add(chain, step)

    def sample(self, context: Any) -> int:
        return int(llama_cpp.llama_sampler_sample(self._chain, context, -1))
