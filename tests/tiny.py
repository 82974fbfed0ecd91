"""Tiny models of random weights, with a tokenizer of bytes: what is true of them is true of large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ragfm.adapt import Example
from ragfm.types import Message

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def alphabet() -> list[str]:
    """The special tokens, then a token for each byte."""
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def tiny_config(kind: str = "llama", **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **{"vocab_size": len(alphabet()), **SIZES, **changes})


def tiny_model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A folder with a model of random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL[1:2]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def lessons(count: int = 30) -> list[Example]:
    """Prompts of several lengths, a third of them to be abstained from."""
    return [
        Example(
            (Message("system", "Answer."), Message("user", f"[1] {'x' * (number % 7)} is {number}\n\nWhat is it?")),
            "I don't know." if number % 3 == 0 else f"It is {number % 10} [1].",
            {"kind": "answer"},
        )
        for number in range(count)
    ]
