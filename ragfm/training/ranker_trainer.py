"""Train a ranking model (`ragfm.training.ranker_models`) by the epochs of its examples."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.models.hardware import limit_torch_threads
from ragfm.training.hard_negatives import RankingExample
from ragfm.training.ranker_models import Ranker
from ragfm.training.training_loop import TrainingLoop, linear_decay

_WARMUP, _WEIGHT_DECAY = 0.1, 0.01


def train_ranker(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    valid: Sequence[RankingExample],
    folder: Path,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int = 0,
    facts: dict[str, Any],
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train to the end, from the checkpoint in `folder` if there is one; returns the figures of the run.

    `batch` is the number of examples per step, `rate` the peak learning rate. The weights of the epoch with the lowest
    validation loss are kept. A checkpoint continues only with the same settings, examples and `facts`. Each step
    reports `Progress("train", step, steps, {"loss": …})`. A Ctrl-C saves a checkpoint. Raises DataError if the
    checkpoint belongs to a different run or the loss is not finite.
    """
    send = progress or ignore_progress
    limit_torch_threads()
    torch.manual_seed(seed)
    draw = partial(epoch_batches, size=batch, negatives=ranker.negatives, seed=seed)
    by_epoch = [draw(examples, epoch) for epoch in range(epochs)]
    steps = list(itertools.chain.from_iterable(by_epoch))
    epoch_ends = list(itertools.accumulate(map(len, by_epoch)))
    valid_batches = draw(valid, -1)
    records = [example.as_record() for example in [*examples, *valid]]
    configuration = {
        **facts,
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "negatives": ranker.negatives,
        "lessons": sha256(json.dumps(records).encode()).hexdigest(),
    }
    loop = TrainingLoop(
        ranker.model,
        folder,
        configuration,
        steps=len(steps),
        rate=rate,
        warmup=_WARMUP,
        decay=linear_decay,
        weight_decay=_WEIGHT_DECAY,
        validate_at=epoch_ends,
    )

    def backward(step: int) -> float:
        with loop.autocast():
            loss = ranker.loss(steps[step])
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def validate() -> float:
        total = sum(ranker.loss(batch).item() * len(batch) for batch in valid_batches)
        return total / sum(map(len, valid_batches))

    loop.run(backward, validate, lambda loss: send(Progress("train", loop.state.step, len(steps), {"loss": loss})))
    state = loop.state
    losses = [loss for _, loss in state.losses]
    return {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "valid": [round(loss, 4) for _, loss in state.valid],
        "loss": {"first": losses[0], "last_5": sum(losses[-5:]) / len(losses[-5:])},
        "kept_epoch": epoch_ends.index(state.best_step or state.step) + 1,
        "bfloat16": loop.bfloat16,
        "threads": torch.get_num_threads(),
    }


def epoch_batches(
    examples: Sequence[RankingExample], epoch: int, *, size: int, negatives: int, seed: int = 0
) -> list[list[RankingExample]]:
    """The batches of an epoch, of at most `size` examples: each once, with `negatives` of its negatives at random.

    No question and no positive occurs twice in a batch, since the positives of other examples count as negatives.
    """
    rng = random.Random(f"{seed} {epoch}")  # noqa: S311
    batches: list[list[RankingExample]] = []
    texts_of_batch: list[set[str]] = []
    for example in rng.sample(list(examples), len(examples)):
        chosen = tuple(rng.sample(example.negatives, min(negatives, len(example.negatives))))
        texts = {example.question, example.positive}
        for batch, known in zip(batches, texts_of_batch, strict=True):
            if len(batch) < size and not texts & known:
                break
        else:
            batch, known = [], set[str]()
            batches.append(batch)
            texts_of_batch.append(known)
        batch.append(replace(example, negatives=chosen))
        known |= texts
    rng.shuffle(batches)
    return batches
