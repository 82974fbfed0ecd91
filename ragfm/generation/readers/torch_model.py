"""A causal language model of transformers: its tokenizer, its chat template, its adapters, and how it is loaded."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ragfm.core.errors import ConfigError, DamagedModelError, MissingExtraError, RagfmError, UnsupportedError
from ragfm.core.types import Message
from ragfm.generation.readers.chat_template import check_template, rendered
from ragfm.generation.readers.engine import BLOCK, Adapter, Memory
from ragfm.generation.readers.torch_kv_cache import OneMemory, RowMemory, can_have_rows
from ragfm.models.model_lookup import no_progress_bar

if TYPE_CHECKING:
    from ragfm.generation.readers.prefix_cache import Beginnings

__all__ = ["Bits", "TorchModel"]

Bits: TypeAlias = Literal[4, 8]
_GPU_BLOCK = 1024


class TorchModel:
    """A loaded model and its tokenizer. Thread-safe, but for what the thread that evaluates calls."""

    granule = 1
    beginnings: Beginnings | None = None

    def __init__(
        self, path: Path, *, device: str | None = None, dtype: str | None = None, bits: Bits | None = None,
        attention: str | None = None,
    ) -> None:  # fmt: skip
        _check_options(device, dtype, attention)
        on_gpu = torch.cuda.is_available() if device is None else not device.startswith("cpu")
        folder = path.parent if path.is_file() else path
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if path.is_file():
            options["gguf_file"] = path.name
        how: dict[str, Any] = {"dtype": getattr(torch, dtype or ("bfloat16" if on_gpu else "float32"))}
        how |= {"attn_implementation": attention} if attention else {}
        if bits:
            how["quantization_config"] = _quantised(bits, how["dtype"])
        if bits or (device is None and torch.cuda.device_count() > 1):
            how["device_map"] = {"": device} if device else "auto"
        try:
            with no_progress_bar(gguf=path.is_file()):
                self._tokenizer = AutoTokenizer.from_pretrained(folder, **options)
                model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **how, **options)
        except ImportError as error:
            hint = "Run `pip install 'ragfm[qlora]'`." if bits else "Install what it names."
            raise MissingExtraError(f"{path} can't be loaded: {error}", hint) from error
        except Exception as error:  # a file may make transformers and safetensors raise whatever there is
            raise DamagedModelError(f"transformers can't load {path}: {error}", "Get the model again.") from error
        if not self._tokenizer.chat_template:
            raise UnsupportedError(f"The model {path} has no chat template.", "Use an instruction-tuned model.")
        if not self._tokenizer.is_fast:
            raise UnsupportedError(f"The model {path} has no fast tokenizer.", "Convert it to tokenizer.json.")
        self.path = path
        self._model = (model if "device_map" in how else model.to(device or ("cuda" if on_gpu else "cpu"))).eval()
        self.device, self.dtype = self._model.device, self._model.dtype
        self.config = model.config.get_text_config()
        self.block = _GPU_BLOCK if on_gpu else BLOCK
        takes = inspect.signature(model.forward).parameters
        self.parallel = can_have_rows(self.config) and "position_ids" in takes
        self.trained_tokens: int | None = getattr(self.config, "max_position_embeddings", None)
        self._ends = _end_tokens(self._tokenizer, model)
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"
        self.cache: Any = None
        self._adapters: dict[Adapter, str] = {}
        self._adapted: Any = None
        self._names = itertools.count()
        self._used: Adapter | None = None
        # A copy of its own: transformers switches truncation on the shared one, which fails while a thread encodes.
        self._encoder = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt. The template writes the special tokens, the first one included, so none is added."""
        return self.tokens(self.written(messages))

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text."""
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is refused
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def written(self, messages: Sequence[Message]) -> str:
        """A conversation as the model's own template writes it. Raises UnsupportedError."""

        def written(turns: list[dict[str, str]]) -> str:
            check_template(self._tokenizer.get_chat_template())
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

        return rendered(written, messages, self.path)

    def texts(self, tokens: Iterator[float]) -> Iterator[str]:
        """The text of each token: the whole characters that end in it."""
        text = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            yield text.step(self._encoder, int(token)) or ""

    def ends(self, token: int) -> bool:
        """Whether the token ends the model's turn."""
        return token in self._ends

    # --- What the thread that evaluates calls --------------------------------------------------------------------

    def memory(self, slots: int, window: int, threads: int) -> Memory:
        """An empty memory. Room is taken with the first evaluation."""
        return RowMemory(self, slots, window) if self.parallel else OneMemory(self)

    def forward(self, tokens: torch.Tensor, cache: Any, keep: int, **more: Any) -> Any:
        """The logits of the last `keep` tokens of each row. *Shape:* (rows, keep, vocabulary), on the CPU.

        Raises RagfmError where there is not enough memory.
        """
        more = {name: value.to(self.device) if name == "position_ids" else value for name, value in more.items()}
        try:
            output = self._model(
                tokens.to(self.device), use_cache=True, logits_to_keep=keep, **{self._cache_argument: cache}, **more
            )
        except torch.OutOfMemoryError as error:
            raise RagfmError(f"There is no memory left for {self.path}.", "Load it with fewer slots.") from error
        self.cache = output[self._cache_argument]
        return output.logits[:, -keep:].float().cpu().numpy()

    def switch(self, adapter: Adapter | None) -> None:
        """Evaluate with an adapter from now on, or with none. Raises DamagedModelError for one that is none."""
        if adapter == self._used:
            return
        if adapter is not None and adapter not in self._adapters:
            self._load(adapter)
        if adapter is None and self._adapted is not None:
            self._adapted.base_model.disable_adapter_layers()
        elif adapter is not None:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(self._adapters[adapter])
        self._used = adapter

    def _load(self, adapter: Adapter) -> None:
        """PEFT puts its layers into the model itself."""
        try:
            from peft import PeftConfig, PeftModel
        except ImportError as error:
            hint = "Run `pip install 'ragfm[train]'`."
            raise MissingExtraError("An adapter needs the module 'peft'.", hint) from error
        name = f"adapter{next(self._names)}"
        self._used = Adapter(name, "")  # none that is asked for: whatever becomes of it, the model is not as it was
        try:
            if PeftConfig.from_pretrained(adapter.path).is_prompt_learning:
                raise UnsupportedError(f"{adapter.path} learned a prompt, not weights.", "Train one by lora.")
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(self._model, adapter.path, adapter_name=name).eval()
            else:
                self._adapted.load_adapter(adapter.path, adapter_name=name)
        except RagfmError:
            raise
        except Exception as error:  # a file may make PEFT and safetensors raise whatever there is
            raise DamagedModelError(f"{adapter.path} is no adapter for {self.path}: {error}") from error
        adapter.check_same()
        self._adapters[adapter] = name


def _check_options(device: str | None, dtype: str | None, attention: str | None) -> None:
    """Raises ConfigError."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is one
        why = str(error).split("\n", 1)[0]
        raise ConfigError(f"There is no device {device!r} here: {why}.", "Give `cpu`, or `cuda` with a GPU.") from error
    kind = getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ConfigError(f"A reader's dtype can't be {dtype!r}.", "Give `float32`, `bfloat16` or `float16`.")
    if attention and attention not in (known := {"eager", *ALL_ATTENTION_FUNCTIONS}):
        raise ConfigError(f"A reader's attention can't be {attention!r}.", f"Known are {', '.join(sorted(known))}.")


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """The tokens that end a turn: what the tokenizer and the generation settings say, one or several."""
    said = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None}


def _quantised(bits: Bits, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if bits not in (4, 8):
        raise UnsupportedError(f"Weights of {bits} bits are not possible here.", "Load the model with 4 or 8.")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
