"""A GGUF language model of 100 kB with random weights, a LoRA adapter for it, and ways to damage files."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import numpy as np

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}<s>"


def write_tiny(path: Path, *, embedding: int = 64, layers: int = 2, context: int = 512, seed: int = 0) -> Path:
    """Write a Llama model of the given size whose tokens are bytes."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(embedding)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embedding // 2)
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    special = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    writer.add_token_types([*special, *[TokenType.BYTE] * 256])
    for token, name in enumerate(("unk", "bos", "eos")):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, dtype=np.float32) / 8
        writer.add_tensor(f"{name}.weight", values if len(shape) > 1 else values + 1)

    tensor("token_embd", len(tokens), embedding)
    tensor("output_norm", embedding)
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{name}", embedding)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            tensor(f"blk.{layer}.{name}", embedding, embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(source: Path, target: Path, form: str) -> Path:
    """Write a GGUF file in another format, such as `Q8_0`."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}"), True
    assert not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    return target


def write_lora(
    path: Path,
    *,
    layer: int,
    size: int,
    seed: int = 0,
    scale: float = 1.0,
    architecture: str = "llama",
    depth: int = 0,
    dtype: type = np.float32,
) -> Path:
    """Write a LoRA adapter of rank 1 for one layer, strong enough to change the output.

    It is invalid with a `depth`, a third dimension, or an integer `dtype`.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", scale)
    rng = np.random.default_rng(seed)
    for name, shape in [("lora_a", (1, size)), ("lora_b", (size, 1))]:
        values = rng.standard_normal(shape, dtype=np.float32) * 3
        values = np.stack([values] * depth) if depth else values
        writer.add_tensor(f"blk.{layer}.attn_output.weight.{name}", values.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def damage(data: bytes, seed: int) -> bytes:
    """A copy of a file with flipped bits, a block of zeros or noise, a large number, or a missing end."""
    rng = random.Random(seed)
    header = data.index(b"token_embd") + 2000  # most damage matters there
    limit = header if rng.random() < 0.8 else len(data)
    damaged = bytearray(data)
    kind = seed % 5
    if kind == 0:
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(limit)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        offset, size = rng.randrange(limit), rng.choice((1, 8, 512, 4096))
        damaged[offset : offset + size] = bytes(size)
    elif kind == 2:
        offset, size = rng.randrange(limit), rng.choice((4, 64, 512))
        damaged[offset : offset + size] = rng.randbytes(size)
    elif kind == 3:
        offset = rng.randrange(limit)
        damaged[offset : offset + 8] = rng.choice((2**64 - 1, 2**63, 2**32, 2**31 - 1, 10**6)).to_bytes(8, "little")
    else:
        del damaged[rng.randrange(len(data)) :]
    return bytes(damaged)
