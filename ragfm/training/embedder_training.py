"""Train an embedder to put each question nearer to its passage than to other passages.

The loss is that of sentence-transformers, in ragfm's own loop: the library's trainer needs `datasets` and stores
checkpoints as pickles.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.models.hardware import limit_torch_threads
from ragfm.models.model_lookup import find_model, hide_progress_bar, silence_kernel_warning
from ragfm.training.checkpoint import translate_safetensors_errors
from ragfm.training.hard_negatives import RankingExample
from ragfm.training.training_loop import TrainingLoop, linear_decay

_WARMUP, _WEIGHT_DECAY = 0.1, 0.01
_CHUNK = 16  # texts that go through the network at once, which bounds the memory
_UNCHUNKED = 96  # texts of a batch up to which it is not chunked: chunks take a third more time


def train_embedder(
    base: str,
    examples: Sequence[RankingExample],
    valid: Sequence[RankingExample],
    folder: Path,
    *,
    checkpoints: Path,
    epochs: int,
    batch: int,
    rate: float,
    negatives: int,
    seed: int = 0,
    facts: dict[str, Any],
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train to the end, from the checkpoint if there is one, and write the model to `folder`; returns the figures.

    `batch` is the number of examples per step, `rate` the peak learning rate, `negatives` the hard negatives per
    example. The weights of the epoch with the lowest validation loss are kept. A checkpoint continues only with the
    same settings, examples and `facts`. Each step reports `Progress("train", step, steps, {"loss": …})`. A Ctrl-C saves
    a checkpoint. Raises DataError if the checkpoint belongs to a different run or the loss is not finite.
    """
    send = progress or ignore_progress
    silence_kernel_warning()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    limit_torch_threads()
    torch.manual_seed(seed)
    with hide_progress_bar():
        model = SentenceTransformer(str(find_model(base, "embedder")), local_files_only=True)
    # Dropout in attention rules out the fused kernel, and takes as long as all matrices do on a CPU.
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = 0.0
    # InfoNCE (Henderson et al. 2017), for large batches in chunks (GradCache, Gao et al. 2021).
    whole = losses.MultipleNegativesRankingLoss(model)
    in_chunks = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=_CHUNK)

    def mean_loss(batch: Sequence[RankingExample]) -> torch.Tensor:
        """All examples count as many negatives as the one with the fewest."""
        shared = min(len(example.negatives) for example in batch)
        columns = [[example.question for example in batch], [example.positive for example in batch]]
        columns += [[example.negatives[index] for example in batch] for index in range(shared)]
        features = []
        for number, texts in enumerate(columns):
            values = model.preprocess(texts, prompt=model.prompts.get("document" if number else "query") or None)
            features.append(
                {key: value.to(model.device) if hasattr(value, "to") else value for key, value in values.items()}
            )
        loss: torch.Tensor = (whole if len(columns) * len(batch) <= _UNCHUNKED else in_chunks)(features, None)
        return loss

    draw = partial(epoch_batches, size=batch, negatives=negatives, seed=seed)
    by_epoch = [draw(examples, epoch) for epoch in range(epochs)]
    steps = list(itertools.chain.from_iterable(by_epoch))
    epoch_ends = list(itertools.accumulate(map(len, by_epoch)))
    valid_batches = draw(valid, -1)
    records = [astuple(example) for example in [*examples, *valid]]
    configuration = {
        **facts,
        "epochs": epochs,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "negatives": negatives,
        "lessons": sha256(json.dumps(records).encode()).hexdigest(),
    }
    loop = TrainingLoop(
        model,
        checkpoints,
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
            loss = mean_loss(steps[step])
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def validate() -> float:
        total = sum(mean_loss(batch).item() * len(batch) for batch in valid_batches)
        return total / sum(map(len, valid_batches))

    loop.run(backward, validate, lambda loss: send(Progress("train", loop.state.step, len(steps), {"loss": loss})))
    with hide_progress_bar(), translate_safetensors_errors(folder):
        model.save_pretrained(str(folder), create_model_card=False)
    state = loop.state
    found = [loss for _, loss in state.losses]
    return {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "valid": [round(loss, 4) for _, loss in state.valid],
        "loss": {"first": found[0], "last_5": sum(found[-5:]) / len(found[-5:])},
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
