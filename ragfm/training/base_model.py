"""The model that is adapted: a Hugging Face folder, or the very GGUF file that will serve, dequantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragfm.core.errors import DamagedModelError, MissingExtraError, UnsupportedError
from ragfm.core.types import Message
from ragfm.models.model_lookup import find_model, hide_progress_bar, weights_sha256
from ragfm.training.examples import Example

_WORD = "ANSWER"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of an example; those from `start` on are learned."""

    ids: tuple[int, ...]
    start: int


class Base:
    """A model with its tokenizer, in float32. `four_bit` quantises it while it is loaded (QLoRA)."""

    def __init__(self, name: str, *, device: str | None = None, four_bit: bool = False) -> None:
        self.name = name
        self.path = find_model(name, "reader")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = self.path.parent if self.path.is_file() else self.path
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if self.path.is_file():
            options["gguf_file"] = self.path.name
        if four_bit:
            options["quantization_config"] = self._four_bit()
        try:
            with hide_progress_bar(gguf=self.path.is_file()):
                self.tokenizer = AutoTokenizer.from_pretrained(folder, **{k: options[k] for k in options
                                                                          if k != "quantization_config"})  # fmt: skip
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True,
                                                             **options)  # fmt: skip
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedModelError(f"transformers can't load {self.path}: {error}", "Get the model again.") from error
        if not self.tokenizer.chat_template:
            raise UnsupportedError(f"The model {self.path} has no chat template.", "Use an instruction-tuned model.")
        model.name_or_path = name  # what PEFT writes down: not where the model lies on this machine
        self.model = model if four_bit else model.to(self.device)
        said = model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None}
        self.pad = next(iter(self.ends), 0)
        self.window = int(getattr(model.config, "max_position_embeddings", 1 << 20))
        self._lead, self._end = self._turn()

    @property
    def sha256(self) -> str:
        """Of the weights, as they lie on the disk."""
        return weights_sha256(self.path)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that the readers give the model; the template writes the special ones."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._tokens(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except (TemplateError, ValueError) as error:
            raise UnsupportedError(f"The chat template of {self.path} refuses these messages: {error}") from error

    def encode(self, example: Example) -> Encoded:
        """The tokens of prompt and completion, up to the one that ends the turn."""
        prompt = self.prompt(example.messages)
        return Encoded((*prompt, *self._tokens(self._lead + example.completion), *self._end), len(prompt))

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _turn(self) -> tuple[str, list[int]]:
        """What the template writes before the words of an answer, and the tokens behind them, the last one an end."""
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _WORD}]
        try:
            prompt = self.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
            whole = self.tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, ValueError) as error:
            raise UnsupportedError(f"The chat template of {self.path} can't be used: {error}") from error
        before, _, after = whole.rpartition(_WORD)
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        end = self._tokens(after)
        first = next((at for at, token in enumerate(end) if token in self.ends), None)
        return lead, [self.pad] if first is None else end[: first + 1]

    def _four_bit(self) -> Any:
        if self.path.is_file():
            raise UnsupportedError(
                f"qlora quantises a folder of safetensors, and {self.path} is a GGUF file, quantised in its own way.",
                "Use lora, which trains on its dequantised weights; or name a folder.",
            )
        try:
            import bitsandbytes  # noqa: F401
            from transformers import BitsAndBytesConfig
        except ImportError as error:
            raise MissingExtraError("qlora needs bitsandbytes.", "Run `pip install 'ragfm[qlora]'`.") from error
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )


def in_bfloat16(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "bf16" in _cpu_flags()  # noqa: SLF001
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_flags() -> str:
    file = Path("/proc/cpuinfo")
    return (
        next((line for line in file.read_text().splitlines() if line.startswith("flags")), "") if file.exists() else ""
    )
