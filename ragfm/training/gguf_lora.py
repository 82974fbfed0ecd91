"""A LoRA adapter between PEFT's form and llama.cpp's.

    PEFT   base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight  (rank, in), lora_B (out, rank), alpha / rank
    GGUF   blk.0.attn_q.weight.lora_a  (rank, in), lora_b (out, rank), adapter.lora.alpha

llama.cpp turns pairs of neighbours where transformers turns halves of a head (RoPE), so that in files of Llama's
architecture, Mistral's among them, the rows of q and k stand in another order: those of lora_B must, too.
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

from ragfm.core.durable_files import sync_file, sync_folder, temporary_path
from ragfm.core.errors import DamagedModelError, UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.models.adapters import GGUF_BASE, GGUF_PROMPT, WEIGHTS

Matrix = npt.NDArray[np.float32]
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi": "phi2", "phi3": "phi3",
}  # fmt: skip
"""What llama.cpp calls the `model_type`s of transformers that are known here."""
LICENCE = "general.license"
_PEFT_NAME = re.compile(r"^base_model\.model\.(.+)\.lora_(A|B)\.weight$")
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Shape:
    """What a conversion must know of the base: its architecture as llama.cpp calls it, layers and attention heads."""

    architecture: str
    layers: int
    heads: int
    key_value_heads: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """That of a configuration of transformers. Raises UnsupportedError for an architecture that is not known."""
        kind = config.model_type
        if kind not in ARCHITECTURES:
            raise UnsupportedError(
                f"How llama.cpp names the layers of {kind!r} is not known here.", f"Known: {', '.join(ARCHITECTURES)}."
            )
        heads = int(config.num_attention_heads)
        key_value = int(getattr(config, "num_key_value_heads", None) or heads)
        return cls(ARCHITECTURES[kind], int(config.num_hidden_layers), heads, key_value)

    def gguf_name(self, module: str) -> str:
        """llama.cpp's name of a module's weight. Raises UnsupportedError."""
        import gguf

        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(arch, self.layers)
        found = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if found is None:
            raise UnsupportedError(f"llama.cpp's {self.architecture} has no place for {module}.", "Merge the adapter.")
        return str(found)

    def to_gguf(self, name: str, rows: Matrix) -> Matrix:
        """The rows of a weight, or of lora_B, in llama.cpp's order."""
        return self._turned(name, rows, back=False)

    def from_gguf(self, name: str, rows: Matrix) -> Matrix:
        """The rows in transformers' order."""
        return self._turned(name, rows, back=True)

    def _turned(self, name: str, rows: Matrix, *, back: bool) -> Matrix:
        part = name.rpartition("attn_")[2].partition(".")[0]
        if self.architecture != "llama" or part not in ("q", "k"):
            return rows
        heads = self.heads if part == "q" else self.key_value_heads
        half = rows.shape[0] // heads // 2
        shape = (heads, half, 2) if back else (heads, 2, half)
        return rows.reshape(*shape, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def peft_to_gguf(folder: Path, out: Path, shape: Shape, *, dtype: str = "f16", about: Mapping[str, str]) -> None:
    """Write the adapter of a PEFT folder as a GGUF file, whole or not at all.

    `about` says what it is for, see `ragfm.models.adapters`. Raises UnsupportedError for what llama.cpp's adapters
    can't hold.
    """
    import gguf

    config = json.loads((folder / "adapter_config.json").read_bytes())
    _check(config, folder)
    pairs = _pairs(folder)
    new = temporary_path(out)
    writer = gguf.GGUFWriter(new, shape.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = float(config["lora_alpha"])
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for key, value in about.items():
        writer.add_string(key, value)
    half = np.float16 if dtype == "f16" else np.float32
    for module, (a, b) in sorted(pairs.items()):
        name = shape.gguf_name(module)
        rank = a.shape[0]
        # llama.cpp scales by alpha / rank, with one alpha for the file: what PEFT scales otherwise goes into B.
        b = b * (_scale(config, module, rank) / (alpha / rank))
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=half))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(shape.to_gguf(name, b), dtype=half))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync_file(new)
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(out.parent)


def gguf_to_peft(path: Path, folder: Path, shape: Shape, modules: Sequence[str], *, base: str = "") -> dict[str, str]:
    """Write the adapter of a GGUF file as PEFT's two files; gives what the file says that it is for.

    `modules` are the base's linear layers, since a name in GGUF does not tell transformers' own.
    """
    import gguf
    from safetensors.numpy import save_file

    from ragfm.training.checkpoint import saving

    reader = gguf.GGUFReader(path)
    if (said := _text(reader, "general.architecture")) != shape.architecture:
        raise UnsupportedError(f"{path} is for {said}, and the base is {shape.architecture}.", "Name its own base.")
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    if _text(reader, gguf.Keys.Adapter.TYPE) != "lora" or alpha is None:
        raise DamagedModelError(f"{path} is no LoRA adapter.", "Export the adapter again.")
    named = {shape.gguf_name(module): module for module in modules}
    tensors: dict[str, Matrix] = {}
    for tensor in reader.tensors:
        name, _, which = tensor.name.rpartition(".lora_")
        if name not in named:
            raise UnsupportedError(f"{path} adapts {name}, which is no linear layer of the base.", "Name its own base.")
        matrix = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        matrix = shape.from_gguf(name, matrix) if which == "b" else matrix
        tensors[f"{_PREFIX}{named[name]}.lora_{which.upper()}.weight"] = np.ascontiguousarray(matrix)
    ranks = {matrix.shape[0] for name, matrix in tensors.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise UnsupportedError(f"{path} has ranks {sorted(ranks)}, and PEFT's form wants one.", "Train it anew.")
    make_output(folder)
    with saving(folder):
        save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": ranks.pop(),
        "lora_alpha": float(alpha.contents()), "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": sorted({name.removeprefix(_PREFIX).partition(".lora_")[0] for name in tensors}),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return {key: _text(reader, key) for key in (GGUF_BASE, GGUF_PROMPT, LICENCE)}


def _pairs(folder: Path) -> dict[str, tuple[Matrix, Matrix]]:
    """A and B of each module."""
    from safetensors.torch import load_file

    halves: dict[str, dict[str, Matrix]] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        match = _PEFT_NAME.match(name)
        if match is None:
            raise UnsupportedError(f"{folder} learned {name}, for which GGUF has no place.", "Merge it: --to merged.")
        halves.setdefault(match[1], {})[match[2]] = tensor.float().numpy()
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _check(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type"))
    why = None
    if kind != "LORA":
        why = f"it is {kind.replace('_', ' ').lower()}, and llama.cpp's adapters are LoRA alone"
    elif config.get("use_dora"):
        why = "it is DoRA, whose lengths of columns llama.cpp's adapters can't hold"
    elif config.get("bias", "none") != "none" or config.get("modules_to_save") or config.get("lora_bias"):
        why = "it learned biases or whole layers, too"
    elif config.get("fan_in_fan_out"):
        why = "its matrices are transposed"
    if why:
        merges = kind in ("LORA", "IA3")
        hint = "Merge it into whole weights: --to merged." if merges else "It serves with transformers and peft alone."
        raise UnsupportedError(f"The adapter in {folder} can't be a GGUF adapter: {why}.", hint)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alphas = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in alphas.items() if re.search(rf"(^|\.){key}$", module)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _text(reader: Any, key: str) -> str:
    one = reader.get_field(key)
    return "" if one is None else str(one.contents())
