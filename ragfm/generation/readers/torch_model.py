"""A causal language model of transformers: loading, tokenizer, chat template, PEFT adapters, forward pass."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

from ragfm.core.errors import ConfigError, DamagedModelError, RagfmError, UnsupportedError, needs_extra
from ragfm.core.types import Message
from ragfm.generation.reader_output import REASONING_TAGS
from ragfm.generation.readers.chat_template import ChatTemplate
from ragfm.generation.readers.engine import PREFILL_BLOCK, Adapter
from ragfm.models.hardware import limit_torch_threads
from ragfm.models.model_lookup import hide_progress_bar, report_damage

KeysAndValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Of a layer. *Shape* of each: (1, heads, tokens, head size)."""
_GPU_PREFILL_BLOCK = 1024
_BATCHED_LAYER_TYPES = {"full_attention", "sliding_attention"}


def has_only_attention(config: Any) -> bool:
    """Whether all layers of a model are attention layers with their own keys and values."""
    layer_types = set(getattr(config, "layer_types", None) or ())
    return layer_types <= _BATCHED_LAYER_TYPES and not getattr(config, "num_kv_shared_layers", 0)


def can_batch(config: Any) -> bool:
    """Whether the reader can give the attention layers of a model its own cache and mask."""
    attention = config._attn_implementation  # noqa: SLF001  has no public name
    return has_only_attention(config) and attention in ("sdpa", "eager")


class TorchModel:
    """A loaded model and its tokenizer. Thread-safe, except for the methods that the evaluation thread calls."""

    prefix_multiple = 1

    def __init__(
        self,
        path: Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        thinking: bool = False,
    ) -> None:
        _check_options(device, dtype)
        limit_torch_threads()
        on_gpu = torch.cuda.is_available() if device is None else not device.startswith("cpu")
        options: dict[str, Any] = {"dtype": getattr(torch, dtype or ("bfloat16" if on_gpu else "float32"))}
        if device is None and torch.cuda.device_count() > 1:
            options["device_map"] = "auto"
        self._tokenizer, model = load_pretrained(path, "transformers", **options)
        if not self._tokenizer.is_fast:
            raise UnsupportedError(f"The model '{path}' has no fast tokenizer.", "Convert it to tokenizer.json.")

        self.path, self._thinking = path, thinking
        if "device_map" not in options:
            model = model.to(device or ("cuda" if on_gpu else "cpu"))
        self._model = model.eval()
        self.device, self.dtype = self._model.device, self._model.dtype
        self.config = model.config.get_text_config()
        self.prefill_block = _GPU_PREFILL_BLOCK if on_gpu else PREFILL_BLOCK
        self.trained_tokens: int | None = getattr(self.config, "max_position_embeddings", None)
        self.end_tokens = end_tokens(self._tokenizer, model)
        self.supports_batching = (
            can_batch(self.config) and "position_ids" in inspect.signature(model.forward).parameters
        )
        self._cache_argument = cache_argument(model)

        self._template: ChatTemplate | None = None
        self._peft_model: Any = None
        self._adapter_names: dict[Adapter, str] = {}
        self._name_numbers = itertools.count()
        self._current_adapter: Adapter | None = None
        self._virtual_caches: dict[Adapter, list[KeysAndValues]] = {}
        self.virtual_tokens = 0
        """Number of virtual tokens of the current adapter."""

        # A copy: transformers switches truncation on and off on the shared one, which fails while a thread encodes.
        self._encoder = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()
        special = (token for token in self._encoder.get_added_tokens_decoder().items() if token[1].special)
        tags = {tag for tags in REASONING_TAGS.items() for tag in tags}
        self._special_tags = {number: token.content for number, token in special if token.content in tags}
        """Reasoning tags that are special tokens in this model."""

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation. The template writes all special tokens, including the first one."""
        return self.tokenize(self.render(messages))

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text."""
        text = text.encode("utf-8", "replace").decode()  # the tokenizer rejects unpaired surrogates
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation in the model's chat template. Raises UnsupportedError."""
        if self._template is None or self._template.source != self._tokenizer.get_chat_template():
            self._template = ChatTemplate.of_tokenizer(self._tokenizer, self.path, thinking=self._thinking)
        return self._template.render(messages)

    def detokenize(self, tokens: Iterator[float]) -> Iterator[str]:
        """For each token, the characters that it completes."""
        decoder = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            yield decoder.step(self._encoder, int(token)) or self._special_tags.get(int(token), "")

    def is_end_token(self, token: int) -> bool:
        """Whether the token ends the model's turn."""
        return token in self.end_tokens

    # --- Called by the evaluation thread -------------------------------------------------------------------------

    def forward(self, tokens: torch.Tensor, cache: Any, **inputs: Any) -> tuple[Any, Any]:
        """The logits of the last token of each row, and the new cache.

        *Shape:* (rows, vocabulary), on the CPU. Raises RagfmError if memory is short.
        """
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"].to(self.device)
        inputs[self._cache_argument] = cache
        try:
            output = self._model(tokens.to(self.device), use_cache=True, logits_to_keep=1, **inputs)
        except torch.OutOfMemoryError as error:
            raise RagfmError(f"There is not enough memory for '{self.path}'.", "Load it with fewer slots.") from error
        return output.logits[:, -1].float().cpu().numpy(), output[self._cache_argument]

    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use an adapter, or none, for the following evaluations. Raises DamagedModelError."""
        if adapter == self._current_adapter:
            return
        if adapter is not None and adapter not in self._adapter_names and adapter not in self._virtual_caches:
            self._load_adapter(adapter)
        if adapter in self._adapter_names:
            self._peft_model.base_model.enable_adapter_layers()
            self._peft_model.set_adapter(self._adapter_names[adapter])
        elif self._peft_model is not None:
            self._peft_model.base_model.disable_adapter_layers()
        self.virtual_tokens = adapter.virtual_tokens if adapter else 0
        self._current_adapter = adapter

    @property
    def virtual_cache(self) -> list[KeysAndValues]:
        """Keys and values of the current adapter's virtual tokens, for each layer."""
        assert self._current_adapter
        return self._virtual_caches[self._current_adapter]

    def _load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter with PEFT, which inserts its layers into the model, or its virtual tokens."""
        with needs_extra("Adapters", "train"):
            from peft import PeftConfig, PeftModel
        name = f"adapter{next(self._name_numbers)}"
        # If loading fails, the model may already have changed: no adapter, not even None, must count as current.
        self._current_adapter = Adapter(name, "")
        try:
            if PeftConfig.from_pretrained(adapter.path).is_prompt_learning:
                if not has_only_attention(self.config):
                    raise UnsupportedError(
                        f"'{self.path}' has layers other than attention, which cannot use the virtual tokens of "
                        f"'{adapter.path}'.",
                        "Train an adapter with lora.",
                    )
                if self._peft_model is not None:
                    self._peft_model.base_model.disable_adapter_layers()
                with warnings.catch_warnings(), torch.inference_mode():
                    warnings.filterwarnings("ignore", "You are trying to modify a model with PEFT for a second time")
                    cache = virtual_cache(PeftModel.from_pretrained(self._model, adapter.path))
                self._virtual_caches[adapter] = [
                    (layer.keys.to(self.dtype), layer.values.to(self.dtype)) for layer in cache.layers
                ]
            elif self._peft_model is None:
                self._peft_model = PeftModel.from_pretrained(self._model, adapter.path, adapter_name=name).eval()
            else:
                self._peft_model.load_adapter(adapter.path, adapter_name=name)
        except RagfmError:
            raise
        except Exception as error:  # damaged files make PEFT and safetensors raise all kinds of errors
            raise DamagedModelError(
                f"'{adapter.path}' is not an adapter for '{self.path}': {error}.",
                "Use an adapter that was trained for this model.",
            ) from error
        try:
            adapter.check_unchanged()
        except RagfmError:
            self._virtual_caches.pop(adapter, None)
            raise
        if adapter not in self._virtual_caches:
            self._adapter_names[adapter] = name


def load_pretrained(path: Path, extra: str, **options: Any) -> tuple[Any, Any]:
    """The tokenizer and the model in a folder, or in a GGUF file, which needs an extra.

    Raises DamagedModelError, MissingExtraError, and UnsupportedError without a chat template.
    """
    folder = path.parent if path.is_file() else path
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if path.is_file():
        common["gguf_file"] = path.name
    with (
        needs_extra(f"The model '{path}'", extra),
        report_damage("transformers", path),
        hide_progress_bar(gguf=path.is_file()),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **common, **options)
    if not tokenizer.chat_template:
        raise UnsupportedError(f"The model '{path}' has no chat template.", "Use an instruction-tuned model.")
    return tokenizer, model


def cache_argument(model: Any) -> str:
    """The name under which a model of transformers takes and returns its KV cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def has_virtual_tokens(model: Any) -> bool:
    """Whether a model is one of PEFT with virtual tokens (prefix or prompt tuning)."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def virtual_cache(peft_model: Any, rows: int = 1) -> Any:
    """A KV cache of transformers with the virtual tokens of a PEFT model (prefix or prompt tuning) in each row.

    Prefix tuning stores keys and values, prompt tuning the embeddings that the base model computes them from. PEFT's
    own `generate` (0.21) does not find the cache of transformers 5, whose name has changed.
    """
    prompt, model = peft_model.get_prompt(batch_size=rows), peft_model.get_base_model()
    if not isinstance(prompt, torch.Tensor):
        return prompt
    embeddings = prompt.to(model.device, model.get_input_embeddings().weight.dtype)
    cache = DynamicCache()
    model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **{cache_argument(model): cache})
    return cache


def _check_options(device: str | None, dtype: str | None) -> None:
    """Raises ConfigError."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:  # RuntimeError includes NotImplementedError
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(
            f"The device '{device}' is not available: {reason}.", "Use `cpu`, or `cuda` on a machine with a GPU."
        ) from error
    torch_dtype = getattr(torch, dtype or "float32", None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise ConfigError(
            f"Invalid reader option dtype: '{dtype}' is not a floating-point type.",
            "Use `float32`, `bfloat16` or `float16`.",
        )


def end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The tokens that end a turn, from the tokenizer and from the generation settings (one token or a list)."""
    configured = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
