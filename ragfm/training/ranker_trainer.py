"""The training loop of a ranking model, resumable like that of a reader (`ragfm.training.trainer`)."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ragfm.core.errors import DataError
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.models.adapters import BEST, CHECKPOINT
from ragfm.models.hardware import limit_torch_threads
from ragfm.training import checkpoint
from ragfm.training.base_model import in_bfloat16
from ragfm.training.checkpoint import defer_interrupt
from ragfm.training.distributed import Processes
from ragfm.training.hard_negatives import RankingExample
from ragfm.training.ranker_models import Ranker

_MAX_GRADIENT_NORM = 1.0
_CHECKPOINT_SECONDS = 60.0


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


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)


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
    report = progress or ignore_progress
    limit_torch_threads()
    torch.manual_seed(settings.seed)
    epochs = [epoch_batches(examples, epoch, settings, ranker.negatives) for epoch in range(settings.epochs)]
    steps = [batch for epoch in epochs for batch in epoch]
    epoch_ends = [sum(map(len, epochs[: epoch + 1])) for epoch in range(len(epochs))]
    valid_batches = epoch_batches(valid, -1, settings, ranker.negatives)
    records = [example.as_record() for example in [*examples, *valid]]
    configuration = {
        **facts,
        **asdict(settings),
        "negatives": ranker.negatives,
        "lessons": sha256(json.dumps(records).encode()).hexdigest(),
    }
    model = ranker.model
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=settings.rate)
    device = next(model.parameters()).device
    bfloat16 = in_bfloat16(device)
    random_state: dict[str, torch.Tensor] | None = None  # at the beginning of an unfinished step
    state, path = _State(), folder / CHECKPOINT
    if path.exists():
        state = _State(**checkpoint.load_checkpoint(path, model, optimizer, configuration))
        if state.valid:  # a damaged file is reported now, not after the last step
            checkpoint.read_tensors(folder / BEST)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    def save() -> None:
        optimizer.zero_grad(set_to_none=True)
        checkpoint.save_checkpoint(path, model, optimizer, configuration, asdict(state), random_state)

    def validate_if_due() -> None:
        """Validate at the end of an epoch, and keep the weights if they are the best so far."""
        epoch = len(state.valid)
        if epoch >= len(epoch_ends) or state.step < epoch_ends[epoch]:
            return
        model.eval()
        with torch.no_grad(), autocast():
            total = sum(ranker.loss(batch).item() * len(batch) for batch in valid_batches)
        model.train()
        loss = total / sum(map(len, valid_batches))
        if loss < min(state.valid, default=math.inf):
            checkpoint.write_tensors(folder / BEST, checkpoint.weight_tensors(model), {"epoch": epoch + 1})
        state.valid.append(loss)

    start, saved = time.monotonic() - state.seconds, time.monotonic()
    warmup = max(1, round(settings.warmup * len(steps)))
    processes = Processes()
    try:
        with processes.defer_interrupts():
            model.train()
            validate_if_due()
            while state.step < len(steps):
                step, random_state = state.step, checkpoint.rng_state()
                scale = (step + 1) / warmup if step < warmup else (len(steps) - step) / max(1, len(steps) - warmup)
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate * scale
                with autocast():
                    loss = ranker.loss(steps[step])
                    loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
                value = loss.item()
                if not math.isfinite(value):
                    raise DataError(f"The loss is {value} at step {step}.", "Train with a lower learning rate.")
                with defer_interrupt():
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    state.step += 1
                    state.losses.append(value)
                    random_state = None
                state.seconds = time.monotonic() - start
                validate_if_due()
                report(Progress("train", state.step, len(steps), {"loss": value}))
                if time.monotonic() - saved >= _CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
                processes.raise_if_interrupted(device)
        save()
    except KeyboardInterrupt:
        save()
        raise
    tensors, about = checkpoint.read_tensors(folder / BEST)
    checkpoint.set_weights(model, tensors)
    return {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "valid": [round(loss, 4) for loss in state.valid],
        "loss": {"first": state.losses[0], "last_5": sum(state.losses[-5:]) / len(state.losses[-5:])},
        "kept_epoch": about["epoch"],
        "bfloat16": bfloat16,
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
