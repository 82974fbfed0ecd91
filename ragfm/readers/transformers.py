"""A reader for causal language models of Hugging Face transformers, on the GPU if there is one."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragfm.errors import DamagedModelError, UnsupportedError
from ragfm.models import find_model, no_progress_bar
from ragfm.readers import completion_room, speak
from ragfm.types import Message, Sampling, Stream, Usage

__all__ = ["TransformersReader"]


class TransformersReader:
    """A model from a folder, the hub or a GGUF file (dequantised), one request at a time.

    Weights are safetensors or GGUF; code from the hub never runs. `device` defaults to the GPU (bfloat16) where there
    is one, else the CPU (float32). `context_tokens` is cut to what the model was trained for.
    """

    def __init__(self, model: str = "bundled", *, context_tokens: int = 4096, device: str | None = None) -> None:
        self._path = find_model(model, "reader")
        self._asked_tokens = context_tokens
        self._device = device
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

        Raises ContextOverflowError, and UnsupportedError for a grammar, an adapter, or messages that the template
        refuses.
        """
        if sampling.grammar is not None:
            raise UnsupportedError("The transformers reader has no grammars.", "Use a GGUF model with llama-cpp.")
        if sampling.adapter:
            raise UnsupportedError("The transformers reader takes no adapters.", "Use a GGUF model with llama-cpp.")
        model = self._model
        prompt = model.tokenize(messages)
        limit = completion_room(len(prompt), model.context_tokens, sampling.max_tokens)
        return Stream(self._generate(model, prompt, limit, sampling))

    def _generate(
        self, model: _Model, prompt: list[int], limit: int, sampling: Sampling
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        with self._turn:
            tokens, reason = yield from speak(model.pieces(prompt, sampling), limit, sampling.stop)
        return Usage(len(prompt), 0, tokens), reason

    @property
    def _model(self) -> _Model:
        with self._loading:
            if self._loaded is None:
                self._loaded = _Model(self._path, self._asked_tokens, self._device)
            return self._loaded


class _Model:
    """A loaded model and its tokenizer."""

    def __init__(self, path: Path, context_tokens: int, device: str | None) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        folder = path.parent if path.is_file() else path
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if path.is_file():
            options["gguf_file"] = path.name
        dtype = torch.float32 if self._device == "cpu" else torch.bfloat16
        try:
            with no_progress_bar():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, **options)
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError) as error:
            raise DamagedModelError(f"transformers can't load {path}: {error}", "Get the model again.") from error
        if not self._tokenizer.chat_template:
            raise UnsupportedError(f"The model {path} has no chat template.", "Use an instruction-tuned model.")
        if not self._tokenizer.is_fast:
            raise UnsupportedError(f"The model {path} has no fast tokenizer.", "Convert it to tokenizer.json.")
        self._path = path
        self._model = model.to(self._device).eval()
        self._ends = _end_tokens(self._tokenizer, model)
        self._cache_argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self.context_tokens = min(context_tokens, getattr(model.config, "max_position_embeddings", context_tokens))
        # A copy of its own: transformers switches truncation on the shared one, which fails while a thread encodes.
        self._encoder = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """The prompt. The template writes the special tokens, the first one included, so none is added."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            prompt = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            raise UnsupportedError(f"The chat template of {self._path} refuses these messages: {error}") from error
        return list(self._encoder.encode(prompt, add_special_tokens=False).ids)

    def pieces(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """The text of each token that follows, until the model ends its turn."""
        text = DecodeStream(skip_special_tokens=True)
        chance = torch.Generator().manual_seed(sampling.seed)
        logits, cache = self._evaluate(prompt, None)
        while (token := _pick(logits, sampling, chance)) not in self._ends:
            yield text.step(self._encoder, token) or ""
            logits, cache = self._evaluate([token], cache)

    @torch.inference_mode()
    def _evaluate(self, tokens: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """The logits after the last token, *shape:* (vocabulary,), on the CPU; and the attention cache."""
        ids = torch.tensor([tokens], device=self._device)
        output = self._model(ids, use_cache=True, logits_to_keep=1, **{self._cache_argument: cache})
        return output.logits[0, -1].float().cpu(), output[self._cache_argument]


def _pick(logits: torch.Tensor, sampling: Sampling, chance: torch.Generator) -> int:
    """The best token, or one by temperature, top_p (Holtzman et al. 2020) and min_p (Nguyen et al. 2024)."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    ranked, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    kept = (ranked.cumsum(-1) - ranked < sampling.top_p) & (ranked >= sampling.min_p * ranked[0])
    kept[0] = True
    return int(order[torch.multinomial(ranked * kept, 1, generator=chance)])


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The tokens that end a turn: what the tokenizer and the generation settings say, one or several."""
    said = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None}
