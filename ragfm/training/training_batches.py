"""Batches of training examples and their loss.

Examples that begin alike, because they ask about the same passages, are packed into one row that contains their common
beginning once. A tree attention mask (as in Medusa, Cai et al. 2024) keeps the examples of a row apart:

    tokens     [ system, passages ][ question 1, answer 1 ][ question 2, answer 2 ]
    positions    0 …            99   100 …                   100 …
    attends to   itself              beginning and itself    beginning and itself

The loss of each example is what it would be alone, at a fraction of the work. The order of the steps depends only on
lengths and seed, so a resumed training run repeats it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from ragfm.generation.readers.torch_model import cache_argument, has_virtual_tokens, virtual_cache
from ragfm.training.base_model import Encoded

Row: TypeAlias = tuple[int, ...]
"""Indices of examples whose common beginning goes through the model once."""
Step: TypeAlias = tuple[tuple[Row, ...], ...]
"""The batches of an optimizer step, each a tuple of rows; they go through the model one after the other."""
_STEPS_SORTED_TOGETHER = 16  # by length


def pack_rows(examples: Sequence[Encoded], max_tokens: int) -> list[Row]:
    """Pack examples into rows of at most `max_tokens`; an example joins a row that shares at least half its tokens."""
    rows: list[list[int]] = []
    for index in sorted(range(len(examples)), key=lambda index: examples[index].ids):
        example = examples[index]
        if rows:
            row = [*(examples[other] for other in rows[-1]), example]
            alike = 2 * _common_tokens(row) >= len(example.ids)
            if alike and row_tokens(row) <= max_tokens:
                rows[-1].append(index)
                continue
        rows.append([index])
    return sorted(tuple(row) for row in rows)


def row_tokens(row: Sequence[Encoded]) -> int:
    """The number of tokens of a row."""
    common = _common_tokens(row)
    return common + sum(len(example.ids) - common for example in row)


def plan_steps(
    rows: Sequence[Row], lengths: Sequence[int], *, epochs: float, batch: int, max_tokens: int, seed: int
) -> list[Step]:
    """The steps of a training run, in random order; rows of similar length share a step.

    A step has `batch` examples, or a few more because rows are not split. `lengths` are the tokens of each row. A batch
    has at most `max_tokens` including padding, or one row.
    """
    steps: list[Step] = []
    total = max(1, round(epochs * len(rows)))
    for epoch in range(-(-total // len(rows))):
        rng = random.Random(f"{seed} {epoch}")  # noqa: S311
        shuffled = list(range(len(rows)))
        rng.shuffle(shuffled)
        for window in _split_by_examples(shuffled[: total - epoch * len(rows)], rows, _STEPS_SORTED_TOGETHER * batch):
            by_length = sorted(window, key=lambda index: (lengths[index], index))
            portions = list(_split_by_examples(by_length, rows, batch))
            rng.shuffle(portions)
            for portion in portions:
                batches = batch_rows(portion, lengths, max_tokens)
                steps.append(tuple(tuple(rows[index] for index in indices) for indices in batches))
    return steps


def batch_rows(indices: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[int, ...]]:
    """Rows sorted by length, in batches of at most `max_tokens` including padding."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield tuple(batch)
            batch = []
        batch.append(index)
    if batch:
        yield tuple(batch)


def completion_loss(
    model: Any, rows: Sequence[Sequence[Encoded]], pad: int, device: torch.device
) -> tuple[torch.Tensor, int]:
    """The summed loss of the completions, and their number of tokens.

    Logits are computed only where a token of a completion is predicted. Padding is on the right, and positions are
    counted from the end. The virtual tokens of prefix and prompt tuning precede each row, in the KV cache.
    """
    width = max(row_tokens(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    branch = torch.full_like(ids, -1)  # 0: common beginning, 1, 2, …: example of the row, -1: padding
    positions = torch.zeros_like(ids)
    targets = torch.full_like(ids, -1)
    for number, row in enumerate(rows):
        common = offset = _common_tokens(row)
        ids[number, :common] = torch.tensor(row[0].ids[:common])
        branch[number, :common] = 0
        positions[number, :common] = torch.arange(common)
        for leaf, example in enumerate(row, 1):
            size, answer = len(example.ids) - common, example.start - common
            end = offset + size
            ids[number, offset:end] = torch.tensor(example.ids[common:])
            branch[number, offset:end] = leaf
            positions[number, offset:end] = torch.arange(common, common + size)
            targets[number, offset + answer - 1 : end - 1] = ids[number, offset + answer : end]
            offset = end
    columns = (targets >= 0).any(0).nonzero().flatten()
    targets = targets[:, columns].to(device)
    virtual, options = 0, dict[str, Any]()
    if has_virtual_tokens(model):
        virtual = model.active_peft_config.num_virtual_tokens
        cache, model = virtual_cache(model, len(rows)), model.get_base_model()
        options[cache_argument(model)] = cache
    if int(branch.max()) <= 1:
        options["attention_mask"] = torch.nn.functional.pad((branch >= 0).long(), (virtual, 0), value=1)
    else:
        same_branch = branch[:, :, None] == branch[:, None, :]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = causal & (same_branch | (branch == 0)[:, None, :])
        options["attention_mask"] = torch.nn.functional.pad(mask, (virtual, 0), value=True)[:, None]
        options["position_ids"] = virtual + positions
    output = model(
        input_ids=ids.to(device),
        logits_to_keep=(columns - width).to(device),
        use_cache=False,
        **{name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()},
    )
    predicted = targets >= 0
    logits = output.logits[predicted].float()
    loss = torch.nn.functional.cross_entropy(logits, targets[predicted], reduction="sum")
    return loss, int(predicted.sum())


def _common_tokens(row: Sequence[Encoded]) -> int:
    """The number of tokens that all examples begin with, without a prompt's last, which predicts the answer's first."""
    if len(row) == 1:
        return 0
    low, high = 0, min(example.start for example in row) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if len({example.ids[:middle] for example in row}) == 1:
            low = middle
        else:
            high = middle - 1
    return low


def _split_by_examples(indices: Sequence[int], rows: Sequence[Row], examples: int) -> Iterator[list[int]]:
    """Rows in portions of at least `examples` examples each; the last portion may have fewer."""
    portion: list[int] = []
    count = 0
    for index in indices:
        portion.append(index)
        count += len(rows[index])
        if count >= examples:
            yield portion
            portion, count = [], 0
    if portion:
        yield portion
