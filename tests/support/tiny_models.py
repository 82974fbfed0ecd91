"""Tiny models with random weights and a tokenizer of bytes, in all supported architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ragfm.core.types import Message
from ragfm.training import Example
from ragfm.training.gguf_lora import ModelShape

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}


def alphabet() -> list[str]:
    """The special tokens, a token for each byte, and one of two bytes, since GGUF needs a merge."""
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]


def tiny_config(kind: str = "llama", **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **{"vocab_size": len(alphabet()), **SIZES, **changes})


def tiny_model(folder: Path, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Write a model with random weights and its tokenizer into a folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(alphabet())}, merges=[("a", "b")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL[1:2]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def tiny_examples(count: int = 30) -> list[Example]:
    """Prompts of several lengths with completions, a third of which are abstentions."""
    return [
        Example(
            (Message("system", "Answer."), Message("user", f"[1] {'x' * (number % 7)} is {number}\n\nWhat is it?")),
            "I don't know." if number % 3 == 0 else f"It is {number % 10} [1].",
            {"kind": "answer"},
        )
        for number in range(count)
    ]


def tiny_gguf(
    model: Any, path: Path, shape: ModelShape, *, extra_special: Sequence[str] = (), template: str = TEMPLATE
) -> Path:
    """Write a model of transformers as a GGUF file in float32; `extra_special` are tokens that follow SPECIAL."""
    config, arch = model.config, shape.architecture
    writer = gguf.GGUFWriter(path, arch)
    _write_hyperparameters(writer, config, arch)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    special = [*SPECIAL, *extra_special]
    writer.add_token_list([*special, *alphabet()[len(SPECIAL) :]])
    writer.add_token_types([3] * len(special) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        values = tensor.float().numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(target, np.ascontiguousarray(shape.to_gguf(target, values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_hyperparameters(writer: gguf.GGUFWriter, config: Any, arch: str) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if arch == "gemma3":
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if arch == "phi2":
        writer.add_layer_norm_eps(config.layer_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)) if arch == "phi2" else head)
    if arch in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 4096)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
