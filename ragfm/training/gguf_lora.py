"""Convert LoRA adapters between PEFT's format and llama.cpp's.

    PEFT   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (rank, in), lora_B (out, rank), alpha / rank
    GGUF   blk.0.attn_q.weight.lora_a  (rank, in), lora_b (out, rank), adapter.lora.alpha

A GGUF file to serve over has to hold the weights that the adapter was trained on: some rows of each tensor in the
layers are dequantised and compared. Norms and biases are never quantised, which distinguishes a fine-tuned model from
its origin in most cases, even if four bits do not.

For RoPE, llama.cpp rotates pairs of adjacent dimensions in Llama's architecture (Mistral's included), transformers the
two halves of a head. GGUF files of that architecture therefore store the rows of q and k, and of their lora_B, in
another order.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path, write_durably
from ragfm.core.errors import AdapterMismatchError, DamagedModelError, UnsupportedError, needs_extra
from ragfm.core.output_folder import make_output
from ragfm.models.adapters import (
    BUNDLED_ADAPTER,
    GGUF,
    GGUF_BASE,
    GGUF_PROMPT,
    PEFT_CONFIG,
    RECORD,
    SHIPPED,
    WEIGHTS,
    AdapterRecord,
    check_adapter,
    read_record,
    trained_weights_sha256,
)
from ragfm.models.gguf_header import read_header
from ragfm.models.model_lookup import weights_sha256
from ragfm.training.base_model import Base
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
_ROWS = 64  # compared per tensor
_UNQUANTISED_BITS = {"F32": 12.0, "F16": 12.0, "BF16": 10.0}  # effective precision, including the model's own rounding
_MAX_ERROR = 0.9  # unrelated weights have an error of 1 or more


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


def gguf_adapter_file(adapter: Path) -> Path | None:
    """The GGUF file of an adapter that exists only in this format; None for a folder with PEFT's weights.

    `adapter` is a GGUF file or an adapter's folder.
    """
    if adapter.is_dir():
        return adapter / GGUF if (adapter / GGUF).is_file() and not (adapter / WEIGHTS).is_file() else None
    return adapter if adapter.is_file() else None


def exported_record(file: Path) -> AdapterRecord | None:
    """The record in the folder of a GGUF adapter, if the adapter was exported there."""
    return read_record(file.parent) if file.name == GGUF and (file.parent / RECORD).is_file() else None


def convert_to_peft(file: Path, base: Base, folder: Path) -> None:
    """Write a GGUF adapter as a PEFT folder with a record. Raises AdapterMismatchError if it is for another base."""
    check_adapter(file, base.path)
    head = base.model.lm_head
    linear = ((name, module) for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear))
    modules = [name for name, module in linear if module is not head]
    metadata = gguf_to_peft(file, folder, ModelShape.from_config(base.model.config), modules, base=base.name)
    source = exported_record(file)
    record = AdapterRecord(
        method="lora",
        base={"name": base.name, "sha256": weights_sha256(base.path)},
        prompt=metadata[GGUF_PROMPT],
        weights=trained_weights_sha256(folder),
        licence=metadata[LICENCE] or (source.licence if source else None),
    )
    write_durably(folder / RECORD, record.to_json())


@contextmanager
def as_peft_folder(adapter: str | Path, base: Base) -> Iterator[Path]:
    """An adapter as a PEFT folder; a GGUF adapter is converted into a temporary one.

    `bundled` is the adapter that ships with ragfm. Raises AdapterMismatchError if the adapter is for another base.
    """
    path = SHIPPED / GGUF if adapter == BUNDLED_ADAPTER else Path(adapter).expanduser()
    file = gguf_adapter_file(path)
    if file is None:
        check_adapter(path, base.path)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        convert_to_peft(file, base, folder)
        yield folder


def check_same_weights(model: Any, file: Path) -> None:
    """Raise AdapterMismatchError if a GGUF file is not a quantised or exact copy of a model of transformers.

    The error of a tensor is the norm of the difference divided by the norm of the original: 0.005 for Q8_0, 0.09 for
    Q4_0, 0.3 for Q2_K. About twice that is accepted. A different model of the same shape has an error of about 1.4.
    """

    def mismatch(why: str) -> AdapterMismatchError:
        return AdapterMismatchError(
            f"{file} is not the model that the adapter was trained on: {why}.", "Use a GGUF file made from that model."
        )

    read_header(file)
    shape = ModelShape.from_config(model.config)
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("blk.")}
    field = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    architecture = field and field.contents()
    if architecture != shape.architecture:
        raise mismatch(f"its architecture is {architecture}, not {shape.architecture}")
    weights = {}
    for key, values in model.state_dict().items():
        module, _, kind = key.rpartition(".")
        if ".layers." in key and kind in ("weight", "bias"):
            weights[shape.gguf_name(module).removesuffix("weight") + kind] = values
    if different := weights.keys() ^ tensors.keys():
        name = min(different)
        raise mismatch(f"{'it lacks' if name in weights else 'only it has'} {name}")
    for name, values in weights.items():
        if tuple(reversed(tensors[name].shape.tolist())) != tuple(values.shape):
            raise mismatch(f"{name} has a different shape")
    for name, values in weights.items():
        original = values.float().cpu().numpy()
        if shape.architecture.startswith("gemma") and name.endswith("norm.weight"):
            original = original + 1  # GGUF files store the factor, transformers its difference from one
        tensor = tensors[name]
        rows = np.unique(np.linspace(0, len(original) - 1, _ROWS).astype(int)) if original.ndim > 1 else slice(None)
        expected = shape.to_gguf(name, original)[rows]
        actual = gguf.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float32)
        error = float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1.0))
        numbers, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        bits = _UNQUANTISED_BITS.get(tensor.tensor_type.name, 8 * size / numbers)
        allowed = min(_MAX_ERROR, float(4 * 2**-bits))  # about twice the error of a quantisation
        if not error <= allowed:
            explained = f"{tensor.tensor_type.name} explains {allowed:.1%}"
            raise mismatch(f"{name} is off by {error:.1%}, where {explained}")
