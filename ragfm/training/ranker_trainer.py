"""Train a ranking model (`ragfm.training.ranker_models`) by the epochs of its examples."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.models.hardware import limit_torch_threads
from ragfm.training.hard_negatives import RankingExample
from ragfm.training.ranker_models import Ranker
from ragfm.training.training_loop import TrainingLoop, linear_decay

_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """Settings of a ranker's training run.

    - `epochs`: number of passes over the examples.
    - `batch`: number of examples per step.
    - `rate`: peak learning rate.
    - `warmup`: share of the steps in which the learning rate rises; after that it falls linearly to zero.
    - `seed`: random seed.
    """

    epochs: int = 3
    batch: int = 32
    rate: float = 2e-5
    warmup: float = 0.1
    seed: int = 0


def train_ranker(
    ranker: Ranker,
    examples: Sequence[RankingExample],
    valid: Sequence[RankingExample],
    folder: Path,
    settings: RankerSettings,
    *,
    facts: dict[str, Any],
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train to the end, from the checkpoint in `folder` if there is one; returns the figures of the run.

    The weights of the epoch with the lowest validation loss are kept. A checkpoint continues only with the same
    settings, examples and `facts`. Each step reports `Progress("train", step, steps, {"loss": …})`. A Ctrl-C saves a
    checkpoint. Raises DataError if the checkpoint belongs to a different run or the loss is not finite.
    """
    send = progress or ignore_progress
    limit_torch_threads()
    torch.manual_seed(settings.seed)
    epochs = [epoch_batches(examples, epoch, settings, ranker.negatives) for epoch in range(settings.epochs)]
    steps = [batch for epoch in epochs for batch in epoch]
    epoch_ends = list(itertools.accumulate(map(len, epochs)))
    valid_batches = epoch_batches(valid, -1, settings, ranker.negatives)
    records = [example.as_record() for example in [*examples, *valid]]
    configuration = {
        **facts,
        **asdict(settings),
        "negatives": ranker.negatives,
        "lessons": sha256(json.dumps(records).encode()).hexdigest(),
    }
    loop = TrainingLoop(
        ranker.model,
        folder,
        configuration,
        steps=len(steps),
        rate=settings.rate,
        warmup=settings.warmup,
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
        "kept_epoch": epoch_ends.index(state.best_step) + 1,
        "bfloat16": loop.bfloat16,
        "threads": torch.get_num_threads(),
    }


def epoch_batches(
    examples: Sequence[RankingExample], epoch: int, settings: RankerSettings, negatives: int
) -> list[list[RankingExample]]:
    """The batches of an epoch: each example once, with `negatives` of its negatives drawn at random.

    No question and no positive occurs twice in a batch, since the positives of other examples count as negatives.
    """
    rng = random.Random(f"{settings.seed} {epoch}")  # noqa: S311
    batches: list[list[RankingExample]] = []
    texts_of_batch: list[set[str]] = []
    for example in rng.sample(list(examples), len(examples)):
        chosen = tuple(rng.sample(example.negatives, min(negatives, len(example.negatives))))
        texts = {example.question, example.positive}
        for batch, known in zip(batches, texts_of_batch, strict=True):
            if len(batch) < settings.batch and not texts & known:
                break
        else:
            batch, known = [], set[str]()
            batches.append(batch)
            texts_of_batch.append(known)
        batch.append(replace(example, negatives=chosen))
        known |= texts
    rng.shuffle(batches)
    return batches
