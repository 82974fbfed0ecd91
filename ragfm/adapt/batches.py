"""Which examples are learned from together, and what a batch loses.

The order is a function of lengths and seed alone, so that a training that was stopped goes on with the same one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from ragfm.adapt.base import Encoded

Step: TypeAlias = tuple[tuple[int, ...], ...]
"""The examples of one step, as batches that go through the model one after the other."""
_WINDOW = 16  # steps whose examples are sorted by length


def order(lengths: Sequence[int], epochs: float, batch: int, most_tokens: int, seed: int) -> list[Step]:
    """The steps of a whole training. Examples of like length go together, the steps come in a random order.

    A batch has at most `most_tokens` with what is padded, or one example.
    """
    steps: list[Step] = []
    wanted = max(1, round(epochs * len(lengths)))
    for epoch in range(-(-wanted // len(lengths))):
        chance = random.Random(f"{seed} {epoch}")  # noqa: S311
        mixed = list(range(len(lengths)))
        chance.shuffle(mixed)
        mixed = mixed[: wanted - epoch * len(lengths)]
        for start in range(0, len(mixed), _WINDOW * batch):
            window = sorted(mixed[start : start + _WINDOW * batch], key=lambda at: (lengths[at], at))
            parts = [window[at : at + batch] for at in range(0, len(window), batch)]
            chance.shuffle(parts)
            steps += [tuple(batches(part, lengths, most_tokens)) for part in parts]
    return steps


def batches(indices: Sequence[int], lengths: Sequence[int], most_tokens: int) -> Iterator[tuple[int, ...]]:
    """Examples, sorted by length, in batches of at most `most_tokens`."""
    held: list[int] = []
    for at in sorted(indices, key=lambda at: lengths[at]):
        if held and lengths[at] * (len(held) + 1) > most_tokens:
            yield tuple(held)
            held = []
        held.append(at)
    if held:
        yield tuple(held)


def loss_of(model: Any, examples: Sequence[Encoded], pad: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The negative log-likelihood of the completions, summed over their tokens, and how many these are.

    Logits are computed only where a completion's token is predicted. Padding is on the right, and the places are
    counted from the end, since virtual tokens may come before the first.
    """
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, -1)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        mask[row, :size] = 1
        targets[row, example.start - 1 : size - 1] = ids[row, example.start : size]
    places = (targets >= 0).any(0).nonzero().flatten()
    targets = targets[:, places].to(device)
    output = model(
        input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=(places - width).to(device),
        use_cache=False,
    )  # fmt: skip
    learned = targets >= 0
    logits = output.logits[learned].float()
    loss = torch.nn.functional.cross_entropy(logits, targets[learned], reduction="sum")
    return loss, int(learned.sum())
