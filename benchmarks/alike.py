"""Compare greedy answers of the llama.cpp and transformers readers with the same weights; used by `bench_reader.py`."""

from __future__ import annotations

import ctypes
import gzip
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from bench_prompt import DATA, shipped

from ragfm.core.types import Message
from ragfm.generation.readers.generation_request import GenerationRequest
from ragfm.generation.readers.llama_cpp_reader import LlamaCppReader
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.generation.readers.transformers_reader import TransformersReader
from ragfm.models.model_lookup import find_model

TOKENS = 32
FORMS = {"Q4_1, as it is": None, "F32": llama_cpp.LLAMA_FTYPE_ALL_F32}
"""Forms of the bundled file for llama.cpp. With F32 weights it does not round activations to 8 bits."""


def prompts(count: int) -> list[list[Message]]:
    """Prompts from SQuAD 1.1 dev: a question and its passage each."""
    with gzip.open(DATA / "squad" / "squad-v1.1-dev.json.gz") as file:
        paragraphs = [paragraph for article in json.load(file)["data"] for paragraph in article["paragraphs"]]
    chosen = random.Random(1).sample(paragraphs, count)
    return [shipped(paragraph["qas"][0]["question"], [paragraph["context"]]) for paragraph in chosen]


def alike(count: int, threads: int) -> dict[str, Any]:
    """Compare greedy answers of llama.cpp, for each form of the bundled file, with those of transformers."""
    asked, file = prompts(count), find_model("bundled", "reader")
    theirs = TransformersReader("bundled")
    tokens = [theirs._engine.model.prompt_tokens(messages) for messages in asked]
    expected = [_answer(theirs, messages) for messages in asked]
    found: dict[str, Any] = {"prompts": count, "tokens": TOKENS}
    for name, form in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = file if form is None else _quantize(file, Path(folder) / "model.gguf", form)
            ours = LlamaCppReader(str(path), threads=threads)
            assert [ours._engine.model.prompt_tokens(messages) for messages in asked] == tokens
            found[name] = _compare([_answer(ours, messages) for messages in asked], expected)
            print(f"alike, {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def _quantize(source: Path, target: Path, form: int) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = form, True
    assert not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    return target


class _Best:
    """Greedy sampler that records the logits."""

    def __init__(self) -> None:
        self.logits: list[Any] = []

    def pick(self, logits: Any) -> int:
        self.logits.append(logits.copy())
        return int(logits.argmax())


def _answer(reader: LocalReader[Any], messages: Sequence[Message]) -> Any:
    """Logits of each token of an answer, the end token included. *Shape:* (tokens, vocabulary)."""
    model, batcher, *_ = reader._engine
    best = _Best()
    request = GenerationRequest(model.prompt_tokens(messages), None, sampler=best, max_tokens=TOKENS)
    batcher.submit(request)
    list(request.results())
    return np.stack(best.logits)


def _compare(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Shares of equal texts and tokens up to the first difference, the positions of the differences, logit medians.

    `gap` is the margin of transformers' best token over its second, where llama.cpp picks the same token;
    `gap_where_they_part` is the margin where it does not. `moved` is the absolute difference of that margin between
    the two readers.
    """
    first, gaps, moved = [], [], []
    for a, b in zip(ours, theirs, strict=True):
        size = min(len(a), len(b))
        parted = np.flatnonzero(a[:size].argmax(axis=1) != b[:size].argmax(axis=1))
        first.append(int(parted[0]) if len(parted) else None)
        for at in range(size if first[-1] is None else first[-1] + 1):
            second, best = b[at].argsort()[-2:]
            gaps.append((at == first[-1], b[at, best] - b[at, second]))
            moved.append(abs(a[at, best] - a[at, second] - gaps[-1][1]))
    return {
        "same_texts": round(sum(at is None for at in first) / len(first), 3),
        "same_tokens": round(sum(not parted for parted, _ in gaps) / sum(map(len, theirs)), 3),
        "first_differences": sorted(at for at in first if at is not None),
        "gap": _median([gap for parted, gap in gaps if not parted]),
        "gap_where_they_part": _median([gap for parted, gap in gaps if parted]),
        "moved": _median(moved),
    }


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(map(float, values)), 4) if values else None
