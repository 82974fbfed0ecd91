"""The verifier as a trainable model: it learns where passages hold the answer, and that others do not hold it.

shipped weights ─train→ weights ─mean with those before→ differences from the embedding model, of low rank → file
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch.nn import functional

from ragfm.answering.judge import with_learned
from ragfm.citations.verifier import BASE, WEIGHTS, WINDOW, find_verifier, read_learned
from ragfm.core.durable_files import write_durably
from ragfm.embedders.bert import Layer, read_weights
from ragfm.models.model_lookup import find_model, hide_progress_bar, weights_sha256
from ragfm.training.hard_negatives import RankingExample
from ragfm.training.ranker_models import Ranker, no_new_head_warning

RANK = 64
"""Rank of the differences that are stored, of each square matrix."""
_ANYWHERE = (0, 2**30)  # characters
_SHARE_BEFORE = 0.5  # of the weights from before training in the mean
_NAMES = {
    "qkv": [f"attention.self.{part}" for part in ("query", "key", "value")],
    "out": ["attention.output.dense"],
    "out_norm": ["attention.output.LayerNorm"],
    "up": ["intermediate.dense"],
    "down": ["output.dense"],
    "down_norm": ["output.LayerNorm"],
}
"""The names that transformers gives to the parts of a layer."""


class VerifierRanker(Ranker):
    """The verifier, trained to find the answer in the passage of a question, and "not here" in its hard negatives.

    The loss is the cross-entropy of the answer's first and last token (Devlin et al. 2019); where the answer's place is
    not known, all tokens of the passage count as right (Clark and Gardner 2018). The result is the mean of the weights
    before and after, which keeps what was learned before (Wortsman et al. 2022).
    """

    def __init__(self, base: str, negatives: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(find_model("bundled", "embedder")))
        super().__init__(trainable_verifier(find_verifier(base)), negatives)
        self._before = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def loss(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """The mean loss over the passages of the examples."""
        rows = [
            (example.question, passage, place)
            for example in examples
            for passage, place in (
                (example.positive, example.answer or _ANYWHERE),
                *((negative, None) for negative in example.negatives),
            )
        ]
        questions, passages, places = zip(*rows, strict=True)
        encoded = self._tokenizer(
            list(questions),
            list(passages),
            truncation="only_second",
            max_length=WINDOW,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        output = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        read = torch.tensor([[part == 1 for part in encoded.sequence_ids(row)] for row in range(len(rows))])
        wanted = _wanted_tokens(read, encoded["offset_mapping"], places)
        read[:, 0] = True  # "not here"
        losses = []
        for scores, tokens in zip((output.start_logits, output.end_logits), wanted, strict=True):
            logs = functional.log_softmax(scores.float().masked_fill(~read, -1e4), dim=-1)
            losses.append(-logs.masked_fill(~tokens, -torch.inf).logsumexp(dim=-1))
        return torch.stack(losses).mean()

    def save(self, folder: Path) -> None:
        """Write the mean of the weights before and after as `Verifier` reads it."""
        after = self.model.state_dict()
        self.model.load_state_dict({name: torch.lerp(after[name], self._before[name], _SHARE_BEFORE) for name in after})
        write_verifier(self.model, folder)


def _wanted_tokens(
    read: torch.Tensor, spans: torch.Tensor, places: Sequence[tuple[int, int] | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be the first, and those that may be the last of the answer; the first of a row: "not here".

    *Shape:* `read` (B, L), whether a token is of the passage; `spans` (B, L, 2), its characters; the results (B, L).
    """
    first, last = torch.zeros_like(read), torch.zeros_like(read)
    for row, place in enumerate(places):
        start, end = place or (0, 0)
        inside = torch.nonzero(read[row] & (spans[row, :, 0] < end) & (spans[row, :, 1] > start)).flatten()
        if not len(inside):  # of a negative, or beyond the window
            first[row, 0] = last[row, 0] = True
        elif place == _ANYWHERE:
            first[row, inside] = last[row, inside] = True
        else:
            first[row, inside[0]] = last[row, inside[-1]] = True
    return first, last


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
