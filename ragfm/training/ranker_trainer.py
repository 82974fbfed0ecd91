"""The training of a model that ranks: small, and resumable like that of a reader."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ragfm.core.errors import DataError
from ragfm.models.adapters import CHECKPOINT
from ragfm.training import checkpoint
from ragfm.training.base_model import in_bfloat16
from ragfm.training.checkpoint import BEST
from ragfm.training.hard_negatives import Lesson
from ragfm.training.interrupts import undivided
from ragfm.training.ranker_models import Ranker

_CLIP = 1.0
_SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class FitSettings:
    """`rate` is the highest learning rate; it rises for the share `warmup` of the steps and falls to nothing."""

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


def fit(
    ranker: Ranker, lessons: Sequence[Lesson], valid: Sequence[Lesson], folder: Path, settings: FitSettings,
    *, facts: dict[str, Any], progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train to the end, from where a checkpoint in the folder stands; the epoch that validates best is kept.

    A Ctrl-C leaves a checkpoint. Gives what was measured.
    """
    torch.manual_seed(settings.seed)
    fitting = _Fitting(ranker, lessons, valid, folder, settings, facts)
    fitting.resume()
    try:
        fitting.run(progress)
    except KeyboardInterrupt:
        fitting.save()
        raise
    return fitting.finished()


def epoch_batches(lessons: Sequence[Lesson], epoch: int, settings: FitSettings, negatives: int) -> list[list[Lesson]]:
    """The batches of an epoch: each lesson once, with some of its negatives, and no text twice in a batch.

    The other lessons' passages are negatives, too: one that is right would be called wrong.
    """
    chance = random.Random(f"{settings.seed} {epoch}")  # noqa: S311
    batches: list[list[Lesson]] = []
    known: list[set[str]] = []
    for lesson in chance.sample(list(lessons), len(lessons)):
        wrong = tuple(chance.sample(lesson.wrong, min(negatives, len(lesson.wrong))))
        texts = {lesson.question, lesson.right}
        at = next((at for at, batch in enumerate(batches) if len(batch) < settings.batch and not texts & known[at]), -1)
        if at < 0:
            batches.append([])
            known.append(set())
        batches[at].append(replace(lesson, wrong=wrong))
        known[at] |= texts
    chance.shuffle(batches)
    return batches


# --- Inside ------------------------------------------------------------------------------------------------------


class _Fitting:
    def __init__(
        self, ranker: Ranker, lessons: Sequence[Lesson], valid: Sequence[Lesson], folder: Path, settings: FitSettings,
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self.ranker, self.folder, self.settings = ranker, folder, settings
        epochs = [epoch_batches(lessons, epoch, settings, ranker.negatives) for epoch in range(settings.epochs)]
        self.steps = [batch for epoch in epochs for batch in epoch]
        self.ends = [sum(map(len, epochs[: at + 1])) for at in range(len(epochs))]
        self.valid = epoch_batches(valid, -1, settings, ranker.negatives)
        self.facts = {
            **facts,
            **asdict(settings),
            "negatives": ranker.negatives,
            "lessons": _digest([*lessons, *valid]),
        }
        self.model = ranker.model
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad], lr=settings.rate
        )
        self.state = _State()
        self._device = next(self.model.parameters()).device
        self._bfloat16 = in_bfloat16(self._device)
        self._chance: dict[str, torch.Tensor] | None = None

    def resume(self) -> None:
        path = self.folder / CHECKPOINT
        if path.exists():
            _, about = checkpoint.read_tensors(path)
            checkpoint.check_same(path, about["facts"], self.facts)
            self.state = _State(**checkpoint.load(path, self.model, self.optimizer)["state"])

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        start, saved = time.monotonic() - self.state.seconds, time.monotonic()
        self.model.train()
        self._validate_if_due()
        while self.state.step < len(self.steps):
            self._step()
            self.state.seconds = time.monotonic() - start
            self._validate_if_due()
            if progress:
                progress(self.state.step, len(self.steps))
            if time.monotonic() - saved >= _SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        about = {"facts": self.facts, "step": self.state.step, "state": asdict(self.state)}
        checkpoint.save(self.folder / CHECKPOINT, self.model, self.optimizer, about, self._chance)

    def finished(self) -> dict[str, Any]:
        tensors, about = checkpoint.read_tensors(self.folder / BEST)
        checkpoint.put(self.model, tensors)
        state = self.state
        return {
            "steps": state.step, "seconds": round(state.seconds, 1),
            "valid": [round(value, 4) for value in state.valid],
            "loss": {"first": state.losses[0], "last_5": sum(state.losses[-5:]) / len(state.losses[-5:])},
            "kept_epoch": about["epoch"], "bfloat16": self._bfloat16, "threads": torch.get_num_threads(),
        }  # fmt: skip

    def _step(self) -> None:
        self._chance = checkpoint.chance()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._scale()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            loss = self.ranker.loss(self.steps[self.state.step])
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(f"The loss is {value} at step {self.state.step}.", "Train with a lower learning rate.")
        with undivided():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            self.state.losses.append(value)
            self._chance = None

    def _scale(self) -> float:
        """The learning rate, as a share of the highest."""
        step, warm = self.state.step, max(1, round(self.settings.warmup * len(self.steps)))
        return (step + 1) / warm if step < warm else (len(self.steps) - step) / max(1, len(self.steps) - warm)

    def _validate_if_due(self) -> None:
        """At the end of an epoch."""
        epoch = len(self.state.valid)
        if epoch >= len(self.ends) or self.state.step < self.ends[epoch]:
            return
        self.model.eval()
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            lost = sum(self.ranker.loss(batch).item() * len(batch) for batch in self.valid)
        self.model.train()
        value = lost / sum(map(len, self.valid))
        if value < min(self.state.valid, default=math.inf):
            tensors = {f"model.{name}": tensor for name, tensor in checkpoint.learned(self.model).items()}
            checkpoint.write_tensors(self.folder / BEST, tensors, {"epoch": epoch + 1})
        self.state.valid.append(value)


def _digest(lessons: Sequence[Lesson]) -> str:
    return sha256(json.dumps([asdict(lesson) for lesson in lessons]).encode()).hexdigest()
