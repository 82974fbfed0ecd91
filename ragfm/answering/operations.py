"""Which calculation a question asks for: a linear classifier over the bundled embedding of the question.

`benchmarks/train_operations.py` trains it, and measures how often it is wrong. It was trained on English questions.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.embedders import load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragfm.core.types import Embedder

SHIPPED = Path(__file__).parents[1] / "models" / "shipped" / "operations" / "operations.safetensors"
NONE = "none"


def asked_operation(question: str, embedder: Embedder | None = None) -> tuple[Any, float]:
    """The operation that a question most likely asks for, `none` if it needs no calculation, and its probability.

    `embedder` is the bundled one; if None, it is loaded. Raises ModelNotFoundError if it is not installed.
    """
    names, weights, bias = _classifier()
    scores = weights @ (embedder or _bundled()).embed_queries([question])[0] + bias
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    best = int(chances.argmax())
    return names[best], float(chances[best])


@cache
def _bundled() -> Embedder:
    embedder: Embedder = load_embedder("bundled")
    return embedder


@cache
def _classifier() -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    from safetensors import safe_open

    with safe_open(SHIPPED, framework="np") as file:
        names: list[str] = json.loads((file.metadata() or {})["operations"])
        return names, file.get_tensor("weights").astype(np.float32), file.get_tensor("bias")
