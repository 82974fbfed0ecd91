"""A loaded GGUF model: its vocabulary, its chat template, its adapters."""

from __future__ import annotations

import ctypes
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ragfm.core.cache import file_identity
from ragfm.core.errors import DamagedModelError, UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.readers.chat_template import check_template, rendered
from ragfm.generation.readers.engine import BLOCK, Adapter
from ragfm.generation.readers.llama_context import Context
from ragfm.models.llama_library import Jinja2ChatFormatter, after_c, free_with, last_error, llama_cpp, load_model

if TYPE_CHECKING:
    from ragfm.generation.readers.prefix_cache import Beginnings

__all__ = ["BLOCK", "LlamaModel"]

_ALIKE = frozenset(
    getattr(llama_cpp, f"LLAMA_FTYPE_{name}") for name in ("MOSTLY_F16", "MOSTLY_Q4_0", "MOSTLY_Q4_1", "MOSTLY_Q8_0")
)
"""Kinds of weights with which a token of a prompt gets the same values in a block of any size, to the bit. Others may
have several ways to multiply, by the size of the block: there, only whole blocks are used again."""


class LlamaModel:
    """The weights and what belongs to them. Thread-safe, but for `adapter`, which the thread that evaluates calls."""

    parallel = True
    block = BLOCK
    beginnings: Beginnings | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.identity = path, file_identity(path)
        self.handle = load_model(path)
        free_with(self, llama_cpp.llama_model_free, self.handle)
        after_c()
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.trained_tokens: int | None = int(llama_cpp.llama_model_n_ctx_train(self.handle))
        recurrent = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        self.can_go_back = not recurrent
        """Whether the end of what was evaluated can be taken back."""
        self.granule = 1 if llama_cpp.llama_model_ftype(self.handle) in _ALIKE else BLOCK
        self._adapters: dict[Adapter, Any] = {}

    def memory(self, slots: int, window: int, threads: int) -> Context:
        """An empty context. Raises RagfmError where there is no memory for so many slots."""
        return Context(self, slots, window, threads)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation. The template writes the special ones, the first one included: none is added."""
        return self.tokens(self.written(messages), special=True)

    def written(self, messages: Sequence[Message]) -> str:
        """A conversation as the model's own template writes it. Raises UnsupportedError."""
        template = self._template
        return rendered(lambda turns: str(template(messages=turns).prompt), messages, self.path)

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text; with `special`, the names of control tokens in it are these tokens."""
        data = text.encode("utf-8", "replace")  # half of a surrogate pair has no bytes
        size = len(data) + 8  # mostly a token has a byte at least; llama.cpp says where there are more
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, size, False, special)
            if count >= 0:
                return list(tokens[:count])
            size = -count

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character."""
        size = 32
        while True:
            piece = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, piece, size, 0, False)
            if count >= 0:
                return piece.raw[:count]
            size = -count

    def texts(self, tokens: Iterator[float]) -> Iterator[str]:
        """The text of each token: the whole characters that end in it."""
        text = getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield text.decode(self.piece(int(token)))

    def ends(self, token: int) -> bool:
        """Whether the token ends the model's turn."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def adapter(self, adapter: Adapter) -> Any:
        """A LoRA adapter, loaded once and freed with the model. Raises DamagedModelError, ModelNotFoundError."""
        if adapter not in self._adapters:
            loaded = llama_cpp.llama_adapter_lora_init(self.handle, adapter.path.encode())
            if not loaded:
                raise DamagedModelError(f"{adapter.path} is no LoRA adapter for {self.path}: {last_error()}")
            adapter.check_same()
            self._adapters[adapter] = loaded
        return self._adapters[adapter]

    @cached_property
    def _template(self) -> Jinja2ChatFormatter:
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        if not template:
            raise UnsupportedError(f"{self.path} has no chat template.", "Use an instruction-tuned model.")
        bos, eos = (self._special(token) for token in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos))
        try:
            check_template(template.decode())
            return Jinja2ChatFormatter(template.decode(), eos_token=eos, bos_token=bos)
        except (TemplateError, ValueError, RecursionError) as error:
            raise UnsupportedError(f"The chat template of {self.path} can't be read: {error}") from error

    def _special(self, which: Any) -> str:
        token = which(self.vocab)
        return "" if token < 0 else str(llama_cpp.llama_vocab_get_text(self.vocab, token).decode())
