"""Train a judge from an embedding model, in rounds that can be stopped and continued at any time.

    python benchmarks/train_judge.py BACKBONE FOLDER [--rounds 20] [--decay 4] [--begin JUDGE]

BACKBONE is a folder with all-mpnet-base-v2, or `bundled` for all-MiniLM-L6-v2. FOLDER keeps the state after each round
and `log.jsonl` with the loss, the speed and, every eighth round, the figures on the tuning sets. The same command
continues. The rate is constant after a warm-up, and falls to its end over the last `--decay` rounds, after which the
weights are final. `--begin` lets a new folder start from exported weights, as those in `ragfm/models/shipped`, and
with round `--first`, so that its examples are others. `--evaluate` prints the figures of the present weights only, and
`--export OUT` writes them for `ragfm`; with `--mean FOLDER`, these are the mean of two states of one training (Wortsman
et al. 2022). With a trained judge as `--teacher`, the network also learns its probabilities (Hinton et al. 2015), whose
tokens are the same: both models have the word pieces of BERT. A round has about 2,500 examples, see
`judge_examples.py`.

The network reads `<s> question </s> statement </s> context </s> text </s>`. Each token of the text gets a score for
being the first and the last of the answer, and `<s>` stands for "not here" (Devlin et al. 2019, Rajpurkar et al. 2018);
the state of `<s>` says whether the text supports the statement, contradicts it, or neither (Bowman et al. 2015). Each
token of question and statement gets a score for being stated by the text; the least one takes part in both decisions.
Where it is known which words are not stated, since they were changed, these scores are learned word by word.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any, TypeAlias

import numpy as np
import torch
from judge_examples import CONTRADICTS, NEITHER, ROUND, SUPPORTS, Example, Rounds, tuning
from safetensors.numpy import save
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import AutoModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from ragfm.answering.judge import (
    BASE,
    CONTEXT,
    QUESTION,
    STATEMENT,
    WEIGHTS,
    WINDOW,
    read_learned,
    with_learned,
)
from ragfm.core.durable_files import write_durably
from ragfm.embedders.bert import BERT_PARTS, MPNET_PARTS, Bert, Layer, Linear, read_weights
from ragfm.evaluation.answer_matching import token_f1
from ragfm.evaluation.confidence_calibration import estimate_auc
from ragfm.models.model_lookup import find_model, weights_sha256

RANK = 64
"""Rank of the changes that are exported, of each square matrix."""
BATCH_TOKENS = 4_000
FROZEN = {12: 3, 6: 0}
"""Layers from below that keep their weights, as the embeddings do, by the number of layers."""
RATES = {12: 7e-5, 6: 2e-4}
"""Peak learning rate by the number of layers; that of the heads is five times as high."""
WARM_UP = 60  # steps
TAUGHT = 12
"""Number of different rounds with a teacher, whose outputs are kept and learned again: reading takes it most time."""
AVERAGE = 0.99
"""Share of the average of the weights that is kept at a step; the average is evaluated (Izmailov et al. 2018)."""


class Judge(nn.Module):
    """The backbone with a head for the answer's first and last token, and one for the stance of the text."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(backbone, add_pooling_layer=False)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # sampling it takes a fifth of the time on a processor
            if isinstance(module, MPNetSelfAttention):
                module.forward = MethodType(_fused_attention, module)
        width = self.encoder.config.hidden_size
        self.span = nn.Linear(width, 2)
        self.pool = nn.Linear(width, width)
        self.stance = nn.Linear(width, 3)
        self.stated = nn.Linear(width, 1)
        self.least = nn.Linear(1, 4, bias=False)  # weights of the least score: for the stances, and "not here"
        with torch.no_grad():
            self.least.weight[:, 0] = torch.tensor([0.5, -0.25, -0.25, -0.5])
        self.layers: int = self.encoder.config.num_hidden_layers
        self.backbone = Path(backbone)
        self.encoder.embeddings.requires_grad_(requires_grad=False)
        for layer in self.encoder.encoder.layer[: FROZEN[self.layers]]:
            layer.requires_grad_(requires_grad=False)
        if hasattr(self.encoder.encoder, "relative_attention_bias"):
            self.encoder.encoder.relative_attention_bias.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def begin(self, judge: Path) -> None:
        """Take the weights that were exported to a folder."""
        learned = read_learned(judge, self.backbone)
        parts = MPNET_PARTS if self.encoder.config.model_type == "mpnet" else BERT_PARTS
        changed = with_learned(read_weights(self.backbone), learned)
        for module, layer in zip(self.encoder.encoder.layer, changed.layers, strict=True):
            weights, biases = np.split(layer.qkv.weight, 3), np.split(layer.qkv.bias, 3)
            values = [*map(Linear, weights, biases), layer.out, layer.out_norm, layer.up, layer.down, layer.down_norm]
            for part, value in zip(parts, values, strict=True):
                module.get_parameter(f"{part}.weight").copy_(torch.from_numpy(value.weight))
                module.get_parameter(f"{part}.bias").copy_(torch.from_numpy(value.bias))
        for name in ("span", "pool", "stance", "stated", "least"):
            head = getattr(self, name)
            for weight, parameter in head.named_parameters():
                parameter.copy_(torch.from_numpy(learned[f"{name}.{weight}"]))

    def forward(self, batch: Encoded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores of tokens as first and last of the answer, of the stance, and of tokens as stated.

        *Shape:* (B, L, 2), (B, 3), (B, L).
        """
        states = self.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        spans, stances = self.span(states).float(), self.stance(torch.tanh(self.pool(states[:, 0]))).float()
        stated = self.stated(states).squeeze(-1).float()
        weights = self.least.weight.squeeze(-1)
        stances = stances + _least(stated, batch.question | batch.statement) * weights[:3]
        nowhere = _least(stated, batch.question) * weights[3]
        spans = torch.cat([spans[:, :1] + nowhere.unsqueeze(-1), spans[:, 1:]], dim=1)
        return spans, stances, stated


def _least(scores: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The soft minimum of the scores in each row; 0 for a row without any. *Shape:* (B, 1) for (B, L)."""
    least = -torch.logsumexp((-scores).masked_fill(~where, -1e4), dim=1, keepdim=True)
    return torch.where(where.any(dim=1, keepdim=True), least, torch.zeros_like(least))


def _fused_attention(
    self: MPNetSelfAttention, states: torch.Tensor, mask: torch.Tensor | None, position_bias: torch.Tensor, **_: Any
) -> tuple[torch.Tensor]:
    """The attention of the library in one kernel. Its biases by distance stay as they are."""
    shape = (*states.shape[:-1], -1, self.attention_head_size)
    q, k, v = (part(states).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
    bias = position_bias.detach() if mask is None else position_bias.detach() + mask
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return (self.o(mixed.transpose(1, 2).reshape(states.shape)),)


class Encoded:
    """A batch of examples as tokens."""

    def __init__(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
        mpnet = tokenizer.token_to_id("</s>") is not None
        special = ("<s>", "</s>", "<pad>") if mpnet else ("[CLS]", "[SEP]", "[PAD]")
        start, end, pad = map(tokenizer.token_to_id, special)
        encoded = [
            tokenizer.encode_batch([getattr(one, name) for one in examples], add_special_tokens=False)
            for name in ("question", "statement", "context", "text")
        ]
        rows, self.offsets, self.spans, self.begin = [], [], [], []
        for one, question, statement, context, text in zip(examples, *encoded, strict=True):
            above = [start, *question.ids[:QUESTION], end, *statement.ids[:STATEMENT], end]
            above += [*context.ids[-CONTEXT:], end]
            room = WINDOW - len(above) - 1
            rows.append([*above, *text.ids[:room], end])
            offsets = text.offsets[:room]
            self.begin.append(len(above))
            self.offsets.append(offsets)
            self.spans.append(_tokens(one, offsets, len(above)))
        longest = max(map(len, rows))
        self.ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        self.question = torch.zeros_like(self.mask, dtype=torch.bool)
        self.statement = torch.zeros_like(self.question)
        self.stated = torch.full(self.mask.shape, -1.0)  # 1 for a token that the text states, 0 for others, -1: unknown
        for row, one in enumerate(examples):
            counts = [min(len(encoded[0][row].ids), QUESTION), min(len(encoded[1][row].ids), STATEMENT)]
            places = ((self.question, one.odd_question, 1), (self.statement, one.odd_statement, 2 + counts[0]))
            for part, (where, odd, begin) in enumerate(places):
                where[row, begin : begin + counts[part]] = True
                if odd is not None:
                    for n, (first, last) in enumerate(encoded[part][row].offsets[: counts[part]]):
                        self.stated[row, begin + n] = float(not any(first < b and last > a for a, b in odd))
        self.read = torch.zeros_like(self.question)  # tokens that the answer may begin or end with
        self.read[:, 0] = True
        for row, (begin, offsets) in enumerate(zip(self.begin, self.offsets, strict=True)):
            self.read[row, begin : begin + len(offsets)] = True


def _tokens(one: Example, offsets: Sequence[tuple[int, int]], before: int) -> tuple[int, int] | None:
    """The first and the last token of the answer; 0, 0 if it is not in the text, None if it is unknown."""
    if one.start is None or one.end is None:
        return None
    inside = [n for n, (first, last) in enumerate(offsets) if first < one.end and last > one.start]
    return (before + inside[0], before + inside[-1]) if one.start >= 0 and inside else (0, 0)


Outputs: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def losses(
    outputs: Outputs, batch: Encoded, examples: Sequence[Example]
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Cross-entropy of the answer's tokens, of the stance, and of stated tokens: a mean over what is known."""
    spans, stances, stated_tokens = outputs
    known = [row for row, span in enumerate(batch.spans) if span is not None]
    stated = [row for row, one in enumerate(examples) if one.stance is not None]
    span_loss = stance_loss = token_loss = None
    if known:
        scores = spans[known].float().masked_fill(~batch.read[known].unsqueeze(-1), -1e4)
        wanted = torch.tensor([batch.spans[row] for row in known])
        span_loss = functional.cross_entropy(scores.transpose(1, 2).reshape(2 * len(known), -1), wanted.reshape(-1))
    if stated:
        wanted = torch.tensor([examples[row].stance for row in stated])
        logs = functional.log_softmax(stances[stated], dim=1)
        logs = torch.cat([logs, logs[:, 1:].logsumexp(dim=1, keepdim=True)], dim=1)  # of UNSUPPORTED
        stance_loss = functional.nll_loss(logs, wanted)
    marked = batch.stated >= 0
    if marked.any():
        wanted = batch.stated[marked]
        weights = 1 + 4 * (1 - wanted)  # few tokens are not stated
        token_loss = functional.binary_cross_entropy_with_logits(stated_tokens[marked], wanted, weights)
    return span_loss, stance_loss, token_loss


def distillation_loss(
    outputs: Outputs, taught: Sequence[torch.Tensor], batch: Encoded, examples: Sequence[Example]
) -> torch.Tensor:
    """Cross-entropy with the teacher's probabilities: of the answer's first and last token, and of the stances."""
    (spans, stances, _), (wanted_spans, wanted_stances) = outputs, (scores.float() for scores in taught)
    outside = ~batch.read.unsqueeze(-1)
    wanted = wanted_spans.masked_fill(outside, -1e4).softmax(dim=1)
    total = functional.cross_entropy(spans.masked_fill(outside, -1e4), wanted)
    stated = [row for row, one in enumerate(examples) if one.statement]
    if stated:
        total = total + functional.cross_entropy(stances[stated], wanted_stances[stated].softmax(dim=1))
    return total


def _save(value: Any, file: Path) -> None:
    """Write a file that is complete or does not exist, whenever the training is stopped."""
    part = file.with_suffix(".part")
    torch.save(value, part)
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    part.rename(file)


def batches(examples: Sequence[Example], rng: random.Random) -> list[list[Example]]:
    """Batches of examples of similar length, in random order."""

    def length(one: Example) -> float:
        characters = min(len(one.question), 400) + len(one.statement) + min(len(one.context), 300) + len(one.text)
        return min(WINDOW, 8 + characters / 3.9)

    found, batch = list[list[Example]](), list[Example]()
    for one in sorted(examples, key=lambda one: (length(one), rng.random())):
        if batch and (len(batch) + 1) * length(one) > BATCH_TOKENS:
            found.append(batch)
            batch = []
        batch.append(one)
    return rng.sample([*found, batch], len(found) + 1)


@torch.inference_mode()
def read(model: Judge, tokenizer: Tokenizer, examples: Sequence[Example]) -> Iterator[tuple[float, str, np.ndarray]]:
    """For each example: how likely the text has the answer, the likeliest answer, and the chances of the stances."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda n: len(examples[n].text))
    results: dict[int, tuple[float, str, np.ndarray]] = {}
    for at in range(0, len(order), 16):
        some = [examples[n] for n in order[at : at + 16]]
        batch = Encoded(tokenizer, some)
        with torch.autocast("cpu", torch.bfloat16):
            spans, stances, _ = model(batch)
        chances = spans.float().masked_fill(~batch.read.unsqueeze(-1), -1e4).softmax(dim=1).numpy()
        for row, one in enumerate(some):
            begin, offsets = batch.begin[row], batch.offsets[row]
            first, last = chances[row, begin : begin + len(offsets)].T
            pairs = np.triu(np.outer(first, last))
            pairs -= np.triu(pairs, 40)
            a, b = np.unravel_index(pairs.argmax(), pairs.shape) if pairs.size else (0, 0)
            best = one.text[offsets[a][0] : offsets[b][1]] if offsets else ""
            stance = stances[row].float().softmax(dim=0).numpy()
            results[order[at + row]] = (1 - float(chances[row, 0].mean()), best, stance)
    model.train()
    yield from (results[n] for n in range(len(examples)))


def figures(model: Judge, tokenizer: Tokenizer, sets: dict[str, list[Example]]) -> dict[str, dict[str, float]]:
    """F1 of the best span, AUC of "has an answer", AUC of "supports" and accuracy of the stance, where they apply."""
    found = dict[str, dict[str, float]]()
    for name, examples in sets.items():
        readings = list(read(model, tokenizer, examples))
        of: dict[str, float] = {"examples": len(examples)}
        answered = [one.start is not None and one.start >= 0 for one in examples]
        f1 = [
            token_f1(best, one.text[one.start : one.end])
            for one, (_, best, _) in zip(examples, readings, strict=True)
            if one.start is not None and one.start >= 0
        ]
        if f1:
            of["f1"] = round(float(np.mean(f1)), 4)
        known = [n for n, one in enumerate(examples) if one.start is not None]
        if known and 0 < sum(answered[n] for n in known) < len(known):
            there = np.array([readings[n][0] for n in known])
            of["answers auc"] = round(estimate_auc(there, np.array([float(answered[n]) for n in known]), 0).value, 4)
        stated = [n for n, one in enumerate(examples) if one.stance is not None]
        if stated:
            wanted = np.array([examples[n].stance for n in stated])
            supports = np.array([readings[n][2][SUPPORTS] for n in stated])
            of["supports auc"] = round(estimate_auc(supports, (wanted == SUPPORTS).astype(float), 0).value, 4)
            if name != "table pairs":
                guessed = np.array([readings[n][2].argmax() for n in stated])
                of["stance"] = round(float((guessed == wanted).mean()), 4)
                for kind, number in (("contradicts", CONTRADICTS), ("neither", NEITHER)):
                    if (wanted == number).any():
                        of[f"{kind}, found"] = round(float((guessed == number)[wanted == number].mean()), 4)
            else:
                of["told apart"] = round(float((supports[::2] > supports[1::2]).mean()), 4)
        found[name] = of
    return found


class Training:
    """The model, its optimizer and the average of its weights, which a folder keeps."""

    def __init__(
        self, backbone: str, folder: Path, teacher: Training | None = None, begin: Path | None = None, first: int = 0
    ) -> None:
        self.folder, self.rounds, self.steps, self.teacher = folder, first, 0, teacher
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_file(str(Path(backbone) / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        torch.manual_seed(0)
        self.model = Judge(backbone)
        state_file = folder / "state.pt"
        if begin and not state_file.exists():
            self.model.begin(begin)
        self.rates = (RATES[self.model.layers], 5 * RATES[self.model.layers])
        learned = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        self.names = [name for name, _ in learned]
        body = [weight for name, weight in learned if name.startswith("encoder.")]
        head = [weight for name, weight in learned if not name.startswith("encoder.")]
        groups = [{"params": part, "lr": rate} for part, rate in zip((body, head), self.rates, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        self.average = {name: weight.detach().clone() for name, weight in learned}
        if state_file.exists():
            state = torch.load(state_file, weights_only=True)
            self.model.load_state_dict(state["model"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.rounds, self.steps = state["average"], state["rounds"], state["steps"]

    def save(self) -> None:
        """Replace the state in the folder."""
        learned = {name: weight for name, weight in self.model.state_dict().items() if name in set(self.names)}
        state = {
            "model": learned,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "rounds": self.rounds,
            "steps": self.steps,
        }
        _save(state, self.folder / "state.pt")

    def export(self, backbone: Path, out: Path) -> None:
        """Write the average of the weights as changes of low rank, in half precision, and the heads."""
        model = self.averaged()
        with TemporaryDirectory() as whole:
            model.encoder.save_pretrained(whole)
            changes: dict[str, Any] = low_rank_changes(read_weights(backbone), read_weights(Path(whole)), RANK)
        for name in ("span", "pool", "stance", "stated"):
            head = getattr(model, name)
            changes |= {f"{name}.weight": head.weight.detach().numpy(), f"{name}.bias": head.bias.detach().numpy()}
        changes["least.weight"] = model.least.weight.detach().numpy()
        self.restore()
        halves = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in changes.items()}
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / WEIGHTS, save(halves, {BASE: weights_sha256(backbone)}))

    def averaged(self) -> Judge:
        """The model with the average of its weights; call `restore` afterwards."""
        self._kept = {
            name: weight.detach().clone() for name, weight in self.model.named_parameters() if name in self.average
        }
        self.model.load_state_dict(self.average, strict=False)
        return self.model

    def restore(self) -> None:
        """Go back to the weights before `averaged`."""
        self.model.load_state_dict(self._kept, strict=False)

    def taught(self, number: int, steps: Sequence[Sequence[Example]]) -> list[list[torch.Tensor]]:
        """The teacher's scores of spans and stances for each step of a round, which the folder keeps."""
        if not self.teacher:
            return []
        file = self.folder / f"taught-{number}.pt"
        if not file.exists():
            scores = []
            for examples in steps:
                with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
                    spans, stances, _ = self.teacher.model(Encoded(self.teacher.tokenizer, examples))
                scores.append([spans.half(), stances.half()])
            _save(scores, file)
        taught: list[list[torch.Tensor]] = torch.load(file, weights_only=True)
        return taught

    def run(self, rounds: Rounds, factor: Sequence[float]) -> dict[str, float]:
        """Train on one round, while the rates go from the first to the second factor of their peaks."""
        number = self.rounds % TAUGHT if self.teacher else self.rounds
        steps = batches(rounds.examples(number), random.Random(number))
        taught = self.taught(number, steps)
        order = random.Random(self.rounds).sample(range(len(steps)), len(steps))
        begin, tokens, count = time.monotonic(), 0, 0
        sums: dict[str, list[float]] = {"span": [], "stance": [], "stated": []}
        self.model.train()
        for at, step in enumerate(order):
            examples = steps[step]
            share = factor[0] + (factor[1] - factor[0]) * at / len(steps)
            for group, peak in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = peak * share * min(1.0, (self.steps + 1) / WARM_UP)
            batch = Encoded(self.tokenizer, examples)
            with torch.autocast("cpu", torch.bfloat16):
                outputs = self.model(batch)
            span, stance, stated = losses(outputs, batch, examples)
            total = torch.zeros(())
            if taught:
                total = distillation_loss(outputs, taught[step], batch, examples)
            for name, loss, rows in (
                ("span", span, sum(one is not None for one in batch.spans)),
                ("stance", stance, sum(one.stance is not None for one in examples)),
                ("stated", stated, len(examples)),
            ):
                if loss is not None:
                    total = total + loss * rows / len(examples)
                    sums[name].append(loss.item())
            total.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            kept = min(AVERAGE, self.steps / (self.steps + 10))
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    if name in self.average:
                        self.average[name].lerp_(weight, 1 - kept)
            tokens += int(batch.mask.sum())
            count += len(examples)
            if at % 10 == 9:
                took = time.monotonic() - begin
                recent = ", ".join(f"{name} {np.mean(values[-20:]):.3f}" for name, values in sums.items() if values)
                print(
                    f"round {self.rounds}, step {at + 1} of {len(steps)}: {recent}, {count / took:.1f} examples/s, "
                    f"{tokens / took:.0f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
        self.rounds += 1
        return {
            "examples": count,
            "seconds": round(time.monotonic() - begin),
            **{name: round(float(np.mean(values)), 4) for name, values in sums.items()},
        }


def low_rank_changes(before: Bert, after: Bert, rank: int) -> dict[str, np.ndarray]:
    """The differences of a trained network, as `with_learned` of the judge adds them: those of matrices have low rank.

    That is the nearest matrix of this rank (Eckart and Young 1936); query, key and value, which are one matrix, have
    three times the rank. Layers that did not change are left out.
    """
    changes: dict[str, np.ndarray] = {}
    for number, (old_layer, new_layer) in enumerate(zip(before.layers, after.layers, strict=True)):
        for part in fields(Layer):
            name, old, new = f"{number}.{part.name}", getattr(old_layer, part.name), getattr(new_layer, part.name)
            change = new.weight - old.weight
            if not change.any():
                continue
            changes[f"{name}.bias"] = new.bias - old.bias
            if change.ndim == 1:
                changes[f"{name}.weight"] = change
                continue
            u, s, v = np.linalg.svd(change, full_matrices=False)
            kept = rank * (3 if part.name == "qkv" else 1)
            changes[f"{name}.left"] = u[:, :kept] * s[:kept] ** 0.5
            changes[f"{name}.right"] = (s[:kept] ** 0.5)[:, None] * v[:kept]
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=20, help="Round to stop after, counted from the start")
    parser.add_argument("--decay", type=int, default=0, help="Number of last rounds in which the rate falls")
    parser.add_argument("--size", type=int, default=ROUND, help="Items of a round")
    parser.add_argument("--opposite", type=float, default=0.2, help="Share of sentences that are also negated")
    parser.add_argument("--begin", type=Path, metavar="JUDGE", help="Exported weights that a new folder starts from")
    parser.add_argument("--first", type=int, default=0, help="Number of the first round of a new folder")
    parser.add_argument("--teacher", nargs=2, metavar=("BACKBONE", "FOLDER"), help="A judge to learn from as well")
    parser.add_argument("--mean", type=Path, metavar="FOLDER", help="A state to take the mean of both weights with")
    parser.add_argument("--evaluate", action="store_true", help="Only print the figures of the present weights")
    parser.add_argument("--export", type=Path, metavar="OUT", help="Only write the present weights")
    args = parser.parse_args()
    if args.backbone == "bundled":
        args.backbone = str(find_model("bundled", "embedder"))
    teacher = Training(args.teacher[0], Path(args.teacher[1])) if args.teacher else None
    if teacher:
        teacher.averaged()
    training = Training(args.backbone, args.folder, teacher, args.begin, args.first)
    if args.mean:
        for name, weight in torch.load(args.mean / "state.pt", weights_only=True)["average"].items():
            training.average[name].lerp_(weight, 0.5)
    if args.export:
        training.export(Path(args.backbone), args.export)
        return
    sets = tuning()
    if args.evaluate:
        print(json.dumps(figures(training.averaged(), training.tokenizer, sets), indent=1))
        return
    rounds = Rounds(args.size, args.opposite)
    while training.rounds < args.rounds:
        left = args.rounds - training.rounds
        factor = [max(0.02, min(1.0, rest / args.decay)) if args.decay else 1.0 for rest in (left, left - 1)]
        entry: dict[str, Any] = {"round": training.rounds, **training.run(rounds, factor)}
        training.save()
        if training.rounds % 8 == 0 or training.rounds == args.rounds:
            entry["tuning"] = figures(training.averaged(), training.tokenizer, sets)
            training.restore()
        with (args.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
