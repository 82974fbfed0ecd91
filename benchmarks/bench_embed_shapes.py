"""Speed and memory of embedders of the recommended shapes, with random weights: `ragfm models recommend` shows them.

    python benchmarks/bench_embed_shapes.py

Tokens per second of CPU time of one core, in numpy and fp32, for passages of 256 tokens: the median of three batches.
Memory is the growth of the process by weights and batches. The last line is the result in JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import about, save

from ragfm.embedders.bert import Bert, Layer, Linear
from ragfm.embedders.bert_numpy import NumpyBackend
from ragfm.embedders.model_folder import BertFolder

SHAPES = {
    "mdbr-leaf-ir": (6, 384, 768),
    "all-MiniLM-L6-v2, snowflake-arctic-embed-xs": (6, 384, 0),
    "snowflake-arctic-embed-s, bge-small-en-v1.5": (12, 384, 0),
    "all-mpnet-base-v2": (12, 768, 0),
}
"""Layers, hidden size, and outputs of a dense layer."""
WORDS, TOKENS, TEXTS = 30_522, 256, 4


def random_bert(layers: int, hidden: int, outputs: int) -> Bert:
    rng = np.random.default_rng(1)

    def linear(outputs: int, inputs: int) -> Linear:
        weight = rng.random((outputs, inputs), dtype=np.float32) - np.float32(0.5)
        return Linear(weight / np.float32(inputs**0.5), np.zeros(outputs, dtype=np.float32))

    norm = Linear(np.ones(hidden, dtype=np.float32), np.zeros(hidden, dtype=np.float32))

    def layer() -> Layer:
        mixing = (linear(hidden, hidden) for _ in range(4))
        return Layer.of((*mixing, norm, linear(4 * hidden, hidden), linear(hidden, 4 * hidden), norm))

    return Bert(
        words=linear(WORDS, hidden).weight,
        positions=linear(512, hidden).weight,
        norm=norm,
        layers=tuple(layer() for _ in range(layers)),
        dense=linear(outputs, hidden) if outputs else None,
    )


def measure(name: str) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layers, hidden, outputs = SHAPES[name]
    heads = 12  # in all of them
    folder = BertFolder(Path(), 512, "", False, outputs or hidden, heads, 1e-12, False, {})
    backend = NumpyBackend(folder, random_bert(layers, hidden, outputs))
    rng, speeds = np.random.default_rng(2), []
    for _ in range(3):
        ids = rng.integers(WORDS, size=(TEXTS, TOKENS)).tolist()
        begin = time.process_time()
        backend(ids)
        speeds.append(TEXTS * TOKENS / (time.process_time() - begin))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"tokens_per_second": round(statistics.median(speeds)), "megabytes": round(grown / 1024)}


def main() -> None:
    if len(sys.argv) == 2:  # a process of its own for each shape
        print(json.dumps(measure(sys.argv[1])))
        return
    result: dict[str, Any] = {}
    for name in SHAPES:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        result[name] = json.loads(done.stdout)
        print(name, result[name], flush=True)
    save({**about("embed_shapes"), "shapes": result}, "embed_shapes")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
