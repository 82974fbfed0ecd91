"""The base model of a training run: a Hugging Face folder, or the GGUF file that will serve, dequantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ragfm.core.errors import UnsupportedError, needs_extra
from ragfm.core.types import Message
from ragfm.generation.readers.chat_template import ChatTemplate
from ragfm.generation.readers.torch_model import end_tokens, load_pretrained
from ragfm.models.hardware import has_bf16, limit_torch_threads
from ragfm.models.model_lookup import find_model
from ragfm.training.examples import Example

_PLACEHOLDER = "ANSWER"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of an example. The completion, on which the loss is computed, begins at index `start`."""

    ids: tuple[int, ...]
    start: int


class Base:
    """A model in float32 with its tokenizer.

    Raises DamagedModelError if the model cannot be loaded, UnsupportedError if it has no usable chat template.

    - `name`: the name or path that the model was loaded by.
    - `path`: its folder or GGUF file.
    - `device`: the first GPU, else the CPU.
    - `model`: the model of transformers.
    - `tokenizer`: its tokenizer.
    - `ends`: tokens that end a turn.
    - `pad`: padding token.
    - `window`: maximum number of tokens of a prompt and its completion.
    """

    def __init__(self, name: str, *, four_bit: bool = False) -> None:
        """Load a model; `four_bit` quantises it to 4 bits (QLoRA)."""
        limit_torch_threads()
        self.name = name
        self.path = find_model(name, "reader")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        quantisation = {"quantization_config": self._four_bit_config()} if four_bit else {}
        self.tokenizer, model = load_pretrained(self.path, "train", dtype=torch.float32, **quantisation)
        model.name_or_path = name  # PEFT stores it; the path on this machine must not get into the adapter
        self.model = model if four_bit else model.to(self.device)
        self.ends = end_tokens(self.tokenizer, model)
        self.pad = next(iter(self.ends), 0)
        self.window = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 20))
        # The text that the template writes before an answer, and the tokens after it up to the end of the turn.
        turns = [Message("user", "q"), Message("assistant", _PLACEHOLDER)]
        prompt, conversation = self.render(turns[:1]), self.render(turns, opens_answer=False)
        before, _, after = conversation.rpartition(_PLACEHOLDER)
        self._answer_prefix = before[len(prompt) :] if before.startswith(prompt) else ""
        tokens = self._tokens(after)
        ends = [index for index, token in enumerate(tokens) if token in self.ends]
        self._answer_end = tokens[: ends[0] + 1] if ends else [self.pad]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt, as the readers build it; the chat template writes the special tokens.

        Raises UnsupportedError.
        """
        return self._tokens(self.render(messages))

    def encode(self, example: Example) -> Encoded:
        """The tokens of prompt and completion, including the token that ends the turn."""
        prompt = self.prompt(example.messages)
        completion = self._tokens(self._answer_prefix + example.completion)
        return Encoded((*prompt, *completion, *self._answer_end), len(prompt))

    def render(self, messages: Sequence[Message], *, opens_answer: bool = True) -> str:
        """A conversation without reasoning, as the readers render it. Raises UnsupportedError."""
        return ChatTemplate.of_tokenizer(self.tokenizer, self.path, opens_answer=opens_answer).render(messages)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _four_bit_config(self) -> Any:
        if self.path.is_file():
            raise UnsupportedError(
                f"qlora quantises a folder of safetensors, but {self.path} is a GGUF file, quantised in its own way.",
                "Use lora, which trains on the dequantised weights, or a folder as the base.",
            )
        with needs_extra("qlora", "qlora"):
            import bitsandbytes  # noqa: F401
            from transformers import BitsAndBytesConfig
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )


def in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device.type == "cpu":
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
        return bool(supported) and has_bf16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
