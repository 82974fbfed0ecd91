"""The verifier as a model of transformers, for `benchmarks/train_verifier.py` and `benchmarks/train_judge.py`.

verifier ─trainable_verifier→ model ─write_verifier→ differences from the embedding model, of low rank → file
"""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from ragfm.answering.judge import with_learned
from ragfm.citations.verifier import BASE, WEIGHTS, read_learned
from ragfm.core.durable_files import write_durably
from ragfm.embedders.bert import Layer, read_weights
from ragfm.models.model_lookup import find_model, hide_progress_bar, weights_sha256
from ragfm.training.ranker_models import no_new_head_warning

RANK = 64
"""Rank of the differences that are stored, of each square matrix."""
_NAMES = {
    "qkv": [f"attention.self.{part}" for part in ("query", "key", "value")],
    "out": ["attention.output.dense"],
    "out_norm": ["attention.output.LayerNorm"],
    "up": ["intermediate.dense"],
    "down": ["output.dense"],
    "down_norm": ["output.LayerNorm"],
}
"""The names that transformers gives to the parts of a layer."""


def trainable_verifier(folder: Path) -> Any:
    """The verifier in a folder as a model of transformers, with fixed embeddings. Raises what `read_learned` raises."""
    from transformers import AutoModelForQuestionAnswering

    base = find_model("bundled", "embedder")
    with hide_progress_bar(), no_new_head_warning():
        model = AutoModelForQuestionAnswering.from_pretrained(str(base))
    learned = read_learned(folder)
    state = {}
    for number, layer in enumerate(with_learned(read_weights(base), learned).layers):
        for part, names in _NAMES.items():
            linear = getattr(layer, part)
            weights, biases = np.split(linear.weight, len(names)), np.split(linear.bias, len(names))
            for name, weight, bias in zip(names, weights, biases, strict=True):
                state[f"bert.encoder.layer.{number}.{name}.weight"] = torch.from_numpy(weight.copy())
                state[f"bert.encoder.layer.{number}.{name}.bias"] = torch.from_numpy(bias.copy())
    state["qa_outputs.weight"] = torch.from_numpy(learned["head.weight"])
    state["qa_outputs.bias"] = torch.from_numpy(learned["head.bias"])
    model.load_state_dict(state, strict=False)
    model.bert.embeddings.requires_grad_(requires_grad=False)
    return model


def write_verifier(model: Any, folder: Path) -> None:
    """Write the differences of a trained model from the embedding model, as `Verifier` reads them.

    Those of matrices are of low rank (Eckart and Young 1936), all in half precision.
    """
    base = find_model("bundled", "embedder")
    with tempfile.TemporaryDirectory() as kept, hide_progress_bar():  # it has the names that `read_weights` knows
        model.save_pretrained(kept)
        before, after = read_weights(base), read_weights(Path(kept))
    head = model.qa_outputs
    learned: dict[str, NDArray[Any]] = {
        "head.weight": head.weight.detach().numpy(),
        "head.bias": head.bias.detach().numpy(),
    }
    for number, (old_layer, new_layer) in enumerate(zip(before.layers, after.layers, strict=True)):
        for part in fields(Layer):
            name, old, new = f"{number}.{part.name}", getattr(old_layer, part.name), getattr(new_layer, part.name)
            learned[f"{name}.bias"], change = new.bias - old.bias, new.weight - old.weight
            if change.ndim == 1:
                learned[f"{name}.weight"] = change
                continue
            u, s, v = np.linalg.svd(change, full_matrices=False)
            rank = RANK * (3 if part.name == "qkv" else 1)  # three matrices in one
            learned[f"{name}.left"] = u[:, :rank] * s[:rank] ** 0.5
            learned[f"{name}.right"] = (s[:rank] ** 0.5)[:, None] * v[:rank]
    halves = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in learned.items()}
    write_durably(folder / WEIGHTS, save(halves, {BASE: weights_sha256(base)}))
