"""Convert LoRA adapters between PEFT's format and llama.cpp's.

    PEFT   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (rank, in), lora_B (out, rank), alpha / rank
    GGUF   blk.0.attn_q.weight.lora_a  (rank, in), lora_b (out, rank), adapter.lora.alpha

For RoPE, llama.cpp rotates pairs of adjacent dimensions in Llama's architecture (Mistral's included), transformers the
two halves of a head. GGUF files of that architecture therefore store the rows of q and k, and of their lora_B, in
another order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from safetensors.torch import load_file

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path
from ragfm.core.errors import DamagedModelError, UnsupportedError, needs_extra
from ragfm.core.output_folder import make_output
from ragfm.models.adapters import GGUF_BASE, GGUF_PROMPT, PEFT_CONFIG, WEIGHTS
from ragfm.training.checkpoint import translate_safetensors_errors

with needs_extra("Training", "train"):
    import gguf

Matrix = npt.NDArray[np.float32]
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "phi3": "phi3",
}
"""llama.cpp's architecture by the `model_type` of transformers."""
LICENCE = "general.license"
_PEFT_NAME = re.compile(r"^base_model\.model\.(.+)\.lora_(A|B)\.weight$")
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a base model that a conversion needs. `architecture` is llama.cpp's name."""

    architecture: str
    layers: int
    heads: int
    key_value_heads: int

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape in a configuration of transformers. Raises UnsupportedError for an unknown architecture."""
        kind = config.model_type
        if kind not in ARCHITECTURES:
            raise UnsupportedError(
                f"Models of type {kind!r} cannot be converted to GGUF names.",
                f"Supported types: {', '.join(ARCHITECTURES)}.",
            )
        heads = int(config.num_attention_heads)
        key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        return cls(ARCHITECTURES[kind], int(config.num_hidden_layers), heads, key_value_heads)

    def gguf_name(self, module: str) -> str:
        """llama.cpp's name of the weight of a module. Raises UnsupportedError if it has none."""
        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(architecture, self.layers)
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise UnsupportedError(
                f"llama.cpp's architecture {self.architecture} has no layer {module}.",
                "Merge the adapter: --to merged.",
            )
        return str(name)

    def to_gguf(self, name: str, rows: Matrix, *, inverse: bool = False) -> Matrix:
        """The rows of the weight `name`, or of its lora_B, in llama.cpp's order; `inverse` restores transformers'."""
        part = name.rpartition("attn_")[2].partition(".")[0]
        if self.architecture != "llama" or part not in ("q", "k"):
            return rows
        heads = self.heads if part == "q" else self.key_value_heads
        half = rows.shape[0] // heads // 2
        shape = (heads, half, 2) if inverse else (heads, 2, half)
        return rows.reshape(*shape, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def peft_to_gguf(folder: Path, out: Path, shape: ModelShape, *, dtype: str = "f16", about: Mapping[str, str]) -> None:
    """Write the adapter of a PEFT folder as a GGUF file, atomically.

    `dtype` is `f16` or `f32`. `about` is written as metadata, see `ragfm.models.adapters`. Raises UnsupportedError for
    an adapter that llama.cpp's format cannot represent.
    """
    config = json.loads((folder / PEFT_CONFIG).read_bytes())
    if reason := not_plain_lora(config):
        merges = config.get("peft_type") in ("LORA", "IA3")
        hint = "Merge it into the weights: --to merged." if merges else "Use it as it is, with the transformers reader."
        raise UnsupportedError(f"The adapter in {folder} cannot be written as a GGUF adapter: {reason}.", hint)
    pairs: dict[str, dict[str, Matrix]] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        match = _PEFT_NAME.match(name)
        if match is None:
            raise UnsupportedError(
                f"The adapter in {folder} has weights {name}, which a GGUF adapter cannot hold.",
                "Merge it: --to merged.",
            )
        pairs.setdefault(match[1], {})[match[2]] = tensor.float().numpy()
    alpha = float(config["lora_alpha"])
    patterns = (config.get("alpha_pattern") or {}).items()
    temporary = temporary_path(out)
    writer = gguf.GGUFWriter(temporary, shape.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for key, value in about.items():
        writer.add_string(key, value)
    number_type = np.float16 if dtype == "f16" else np.float32
    for module, pair in sorted(pairs.items()):
        name = shape.gguf_name(module)
        rank = pair["A"].shape[0]
        own_alpha = next((value for pattern, value in patterns if re.search(rf"(^|\.){pattern}$", module)), alpha)
        peft_scale = float(own_alpha) / (rank**0.5 if config.get("use_rslora") else rank)
        # llama.cpp scales all layers by alpha / rank with the alpha of the file; B absorbs any other scale.
        b = pair["B"] * (peft_scale / (alpha / rank))
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(pair["A"], dtype=number_type))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(shape.to_gguf(name, b), dtype=number_type))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync_file(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)


def gguf_to_peft(
    path: Path, folder: Path, shape: ModelShape, modules: Sequence[str], *, base: str = ""
) -> dict[str, str]:
    """Write the adapter of a GGUF file as the two files of a PEFT folder; returns its metadata, see `GGUF_BASE`.

    `modules` are the linear layers of the base, from which the names of transformers are looked up; `base` is the name
    that PEFT stores. Raises UnsupportedError for an adapter of a different model, DamagedModelError.
    """
    reader = gguf.GGUFReader(path)
    architecture = _text_field(reader, "general.architecture")
    if architecture != shape.architecture:
        raise UnsupportedError(
            f"{path} is an adapter for the architecture {architecture}, but the base is {shape.architecture}.",
            "Use the base that the adapter was trained on.",
        )
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    if _text_field(reader, gguf.Keys.Adapter.TYPE) != "lora" or alpha is None:
        raise DamagedModelError(f"{path} is not a LoRA adapter.", "Export the adapter again.")
    module_of = {shape.gguf_name(module): module for module in modules}
    tensors: dict[str, Matrix] = {}
    for tensor in reader.tensors:
        name, _, half = tensor.name.rpartition(".lora_")
        if name not in module_of:
            raise UnsupportedError(
                f"{path} adapts {name}, which is not a linear layer of the base.",
                "Use the base that the adapter was trained on.",
            )
        matrix = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if half == "b":
            matrix = shape.to_gguf(name, matrix, inverse=True)
        tensors[f"{_PEFT_PREFIX}{module_of[name]}.lora_{half.upper()}.weight"] = np.ascontiguousarray(matrix)
    ranks = {matrix.shape[0] for name, matrix in tensors.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise UnsupportedError(
            f"{path} has matrices of the ranks {sorted(ranks)}, but PEFT's format needs a single rank.",
            "Train the adapter again with one rank.",
        )
    make_output(folder)
    with translate_safetensors_errors(folder):
        save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": float(alpha.contents()),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.removeprefix(_PEFT_PREFIX).partition(".lora_")[0] for name in tensors}),
    }
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return {key: _text_field(reader, key) for key in (GGUF_BASE, GGUF_PROMPT, LICENCE)}


def not_plain_lora(config: Mapping[str, Any]) -> str | None:
    """Why an adapter is more than the matrices A and B, by its configuration; None if it is not."""
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        return f"it was trained with {kind.replace('_', ' ').lower()}, not with LoRA"
    if config.get("use_dora"):
        return "it was trained with DoRA, which also has column lengths"
    if config.get("bias", "none") != "none" or config.get("modules_to_save") or config.get("lora_bias"):
        return "it has trained biases or whole layers"
    return "its matrices are transposed" if config.get("fan_in_fan_out") else None


def _text_field(reader: Any, key: str) -> str:
    """A text in the metadata of a GGUF file; empty if there is none."""
    value = reader.get_field(key)
    return "" if value is None else str(value.contents())
