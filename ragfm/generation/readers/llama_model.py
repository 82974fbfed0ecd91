"""A loaded GGUF model: weights, tokenizer, chat template and LoRA adapters."""

from __future__ import annotations

import ctypes
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ragfm.core.cache import file_identity
from ragfm.core.errors import DamagedModelError, UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.reader_output import REASONING_TAGS
from ragfm.generation.readers.chat_template import ChatTemplate
from ragfm.generation.readers.engine import PREFILL_BLOCK, Adapter
from ragfm.models.llama_library import free_on_collection, last_error, llama_cpp, load_model

_BLOCK_INDEPENDENT = frozenset(
    getattr(llama_cpp, f"LLAMA_FTYPE_{name}") for name in ("MOSTLY_F16", "MOSTLY_Q4_0", "MOSTLY_Q4_1", "MOSTLY_Q8_0")
)
"""Weight types with which a prompt token gets bit-identical values in a block of any size. Other types may be
multiplied differently depending on the block size, so only whole blocks are reused."""


class LlamaModel:
    """Weights, tokenizer and chat template. Thread-safe, except for `adapter_handle` (evaluation thread only)."""

    supports_batching = True
    prefill_block = PREFILL_BLOCK

    def __init__(self, path: Path, *, thinking: bool = False) -> None:
        self.path, self.identity, self._thinking = path, file_identity(path), thinking
        self.handle = load_model(path)
        free_on_collection(self, llama_cpp.llama_model_free, self.handle)
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.trained_tokens: int | None = int(llama_cpp.llama_model_n_ctx_train(self.handle))
        recurrent = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        self.can_truncate = not recurrent
        """Whether the last evaluated tokens can be removed from the KV cache."""
        block_independent = llama_cpp.llama_model_ftype(self.handle) in _BLOCK_INDEPENDENT
        self.prefix_multiple = 1 if block_independent else PREFILL_BLOCK
        self._adapters: dict[Adapter, Any] = {}

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation. The template writes all special tokens, including the first one."""
        return self.tokenize(self.render(messages), special=True)

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation in the model's chat template. Raises UnsupportedError."""
        return self._template.render(messages)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text. With `special`, names of control tokens in it become these tokens."""
        data = text.encode("utf-8", "replace")  # an unpaired surrogate cannot be encoded
        size = len(data) + 8  # usually enough; otherwise llama.cpp returns the required size as a negative number
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, size, False, special)
            if count >= 0:
                return list(tokens[:count])
            size = -count

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character; none of a control token, except reasoning tags."""
        size, is_tag = 32, token in self._tag_tokens
        while True:
            piece = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, piece, size, 0, is_tag)
            if count >= 0:
                return piece.raw[:count]
            size = -count

    def detokenize(self, tokens: Iterator[float]) -> Iterator[str]:
        """For each token, the characters that it completes."""
        decoder = getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(self.token_bytes(int(token)))

    def is_end_token(self, token: int) -> bool:
        """Whether the token ends the model's turn."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def adapter_handle(self, adapter: Adapter) -> Any:
        """A LoRA adapter, loaded once and freed with the model. Raises DamagedModelError or ModelNotFoundError."""
        if adapter not in self._adapters:
            loaded = llama_cpp.llama_adapter_lora_init(self.handle, adapter.path.encode())
            if not loaded:
                raise DamagedModelError(
                    f"'{adapter.path}' is not a LoRA adapter for '{self.path}': {last_error()}.",
                    "Use an adapter that was trained for this model.",
                )
            adapter.check_unchanged()
            self._adapters[adapter] = loaded
        return self._adapters[adapter]

    @cached_property
    def _tag_tokens(self) -> frozenset[int]:
        """The reasoning tags that are a token; some models have them as control tokens."""
        tags = [self.tokenize(tag, special=True) for tags in REASONING_TAGS.items() for tag in tags]
        return frozenset(tokens[0] for tokens in tags if len(tokens) == 1)

    @cached_property
    def _template(self) -> ChatTemplate:
        template = llama_cpp.llama_model_chat_template(self.handle, None)
        if not template:
            raise UnsupportedError(f"The model '{self.path}' has no chat template.", "Use an instruction-tuned model.")
        bos, eos = (
            "" if token < 0 else str(llama_cpp.llama_vocab_get_text(self.vocab, token).decode())
            for token in (llama_cpp.llama_vocab_bos(self.vocab), llama_cpp.llama_vocab_eos(self.vocab))
        )
        tokens = {"bos_token": bos, "eos_token": eos}
        return ChatTemplate(template.decode("utf-8", "replace"), tokens, self.path, thinking=self._thinking)
