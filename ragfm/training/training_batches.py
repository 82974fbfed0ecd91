"""Which examples are learned from together, and what a batch loses.

Examples that begin alike, because they ask about the same passages, are laid out in one row that holds these once, with
the attention mask of a tree (as Cai et al. 2024 verify guesses):

    tokens     [ system, passages ][ question 1, answer 1 ][ question 2, answer 2 ]
    places       0 …            99   100 …                   100 …
    sees         before it           both of the left, not    the first, not the second
                                     what comes after

Each loses what it would alone, for a fraction of the work. The order is a function of lengths and seed alone, so that a
training that was stopped goes on with the same one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from ragfm.training.base_model import Encoded

Row: TypeAlias = tuple[int, ...]
"""Examples whose common beginning goes through the model once."""
Step: TypeAlias = tuple[tuple[Row, ...], ...]
"""The rows of one step, as batches that go through the model one after the other."""
_WINDOW = 16  # steps whose rows are sorted by length


def rows_of(examples: Sequence[Encoded], most_tokens: int) -> list[Row]:
    """Every example in one row, with others where half of it or more begins like theirs; of at most `most_tokens`."""
    rows: list[list[int]] = []
    for at in sorted(range(len(examples)), key=lambda at: examples[at].ids):
        if rows and _fits([examples[other] for other in rows[-1]], examples[at], most_tokens):
            rows[-1].append(at)
        else:
            rows.append([at])
    return sorted(tuple(row) for row in rows)


def tokens_of(row: Sequence[Encoded]) -> int:
    """How many tokens a row has."""
    common = _common(row)
    return common + sum(len(example.ids) - common for example in row)


def order(
    rows: Sequence[Row], lengths: Sequence[int], *, epochs: float, batch: int, most_tokens: int, seed: int
) -> list[Step]:
    """The steps of a whole training. Rows of like length go together, the steps come in a random order.

    A step has `batch` examples or a few more, since rows stay whole. `lengths` are the tokens of each row. A batch has
    at most `most_tokens` with what is padded, or one row.
    """
    steps: list[Step] = []
    wanted = max(1, round(epochs * len(rows)))
    for epoch in range(-(-wanted // len(rows))):
        chance = random.Random(f"{seed} {epoch}")  # noqa: S311
        mixed = list(range(len(rows)))
        chance.shuffle(mixed)
        for window in _portions(mixed[: wanted - epoch * len(rows)], rows, _WINDOW * batch):
            parts = list(_portions(sorted(window, key=lambda at: (lengths[at], at)), rows, batch))
            chance.shuffle(parts)
            steps += [
                tuple(tuple(rows[at] for at in one) for one in batches(part, lengths, most_tokens)) for part in parts
            ]
    return steps


def batches(indices: Sequence[int], lengths: Sequence[int], most_tokens: int) -> Iterator[tuple[int, ...]]:
    """Rows, sorted by length, in batches of at most `most_tokens`."""
    held: list[int] = []
    for at in sorted(indices, key=lambda at: lengths[at]):
        if held and lengths[at] * (len(held) + 1) > most_tokens:
            yield tuple(held)
            held = []
        held.append(at)
    if held:
        yield tuple(held)


def share(step: Step, examples: Sequence[Encoded], most_tokens: int, number: int, count: int) -> Step:
    """What process `number` of `count` takes of a step: all take about as many tokens.

    Where there are fewer rows than processes, rows are split; where there are fewer examples, some take nothing.
    """
    rows = [row for part in step for row in part]
    while len(rows) < count and len(longest := max(rows, key=len)) > 1:
        rows.remove(longest)
        rows += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
    lengths = [tokens_of([examples[at] for at in row]) for row in rows]
    taken: list[list[int]] = [[] for _ in range(count)]
    for at in sorted(range(len(rows)), key=lambda at: -lengths[at]):
        min(taken, key=lambda one: sum(lengths[at] for at in one)).append(at)
    return tuple(tuple(rows[at] for at in part) for part in batches(taken[number], lengths, most_tokens))


def loss_of(model: Any, rows: Sequence[Sequence[Encoded]], pad: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The negative log-likelihood of the completions, summed over their tokens, and how many these are.

    Logits are computed only where a completion's token is predicted. Padding is on the right, and the places are
    counted from the end, since virtual tokens may come before the first.
    """
    width = max(tokens_of(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    branch = torch.full_like(ids, -1)  # 0: common, 1…: of the row's examples, -1: padding
    positions = torch.zeros_like(ids)
    targets = torch.full_like(ids, -1)
    for at, row in enumerate(rows):
        common = place = _common(row)
        ids[at, :common] = torch.tensor(row[0].ids[:common])
        branch[at, :common] = 0
        positions[at, :common] = torch.arange(common)
        for number, example in enumerate(row, 1):
            size, answer = len(example.ids) - common, example.start - common
            ids[at, place : place + size] = torch.tensor(example.ids[common:])
            branch[at, place : place + size] = number
            positions[at, place : place + size] = torch.arange(common, common + size)
            targets[at, place + answer - 1 : place + size - 1] = ids[at, place + answer : place + size]
            place += size
    places = (targets >= 0).any(0).nonzero().flatten()
    targets = targets[:, places].to(device)
    output = model(
        input_ids=ids.to(device), logits_to_keep=(places - width).to(device), use_cache=False,
        **{name: value.to(device) for name, value in _seen(branch, positions).items()},
    )  # fmt: skip
    learned = targets >= 0
    logits = output.logits[learned].float()
    loss = torch.nn.functional.cross_entropy(logits, targets[learned], reduction="sum")
    return loss, int(learned.sum())


# --- Inside ------------------------------------------------------------------------------------------------------


def _seen(branch: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each token attends to: all that came before, of the common beginning and of its own example."""
    if int(branch.max()) <= 1:
        return {"attention_mask": (branch >= 0).long()}
    width = branch.shape[1]
    own = branch[:, :, None] == branch[:, None, :]
    before = torch.ones(width, width, dtype=torch.bool).tril()
    mask = before & (own | (branch == 0)[:, None, :])
    return {"attention_mask": mask[:, None], "position_ids": positions}


def _common(row: Sequence[Encoded]) -> int:
    """How many tokens all begin with; never the last of a prompt, by which an answer's first is predicted."""
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


def _fits(row: Sequence[Encoded], example: Encoded, most_tokens: int) -> bool:
    whole = [*row, example]
    return 2 * _common(whole) >= len(example.ids) and tokens_of(whole) <= most_tokens


def _portions(indices: Sequence[int], rows: Sequence[Row], examples: int) -> Iterator[list[int]]:
    """Rows in portions of so many examples, or a few more; the last may have fewer."""
    held: list[int] = []
    count = 0
    for at in indices:
        held.append(at)
        count += len(rows[at])
        if count >= examples:
            yield held
            held, count = [], 0
    if held:
        yield held
