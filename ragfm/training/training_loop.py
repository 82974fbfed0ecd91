"""The training loop of readers and embedders, resumable at any moment.

    step ─gradients→ AdamW ─┬─ checkpoint every minute
                            └─ validation → the best weights are kept; early stopping

A run into the same folder with the same configuration continues from the checkpoint (`ragfm.training.checkpoint`). With
the same seed and machine, a run that was killed and resumed has the losses of one that was not.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ragfm.core.errors import DamagedModelError, DataError
from ragfm.models.adapters import BEST, CHECKPOINT
from ragfm.training import checkpoint
from ragfm.training.base_model import in_bfloat16

_MAX_GRADIENT_NORM = 1.0

_log = logging.getLogger(__name__)


@dataclass
class LoopState:
    """The state of the loop, saved in checkpoints.

    `losses` and `valid` are pairs of a step and its loss; `best` is the best loss of a validation, and `worse` counts
    the validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0
    ended: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    valid: list[tuple[int, float]] = field(default_factory=list)


def cosine_decay(share: float) -> float:
    """The learning rate, relative to its peak, after a share of the steps that follow the warm-up."""
    return 0.5 * (1 + math.cos(math.pi * share))


def linear_decay(share: float) -> float:
    """The learning rate, relative to its peak, after a share of the steps that follow the warm-up."""
    return 1 - share


class TrainingLoop:
    """The loop that trains the trainable parameters of a model, with its files in a folder.

    A checkpoint continues only with the same `configuration`. `warmup` is the share of the `steps` in which the
    learning rate rises to `rate`; then it falls by `decay`. The model is validated after the steps in `validate_at`,
    and training ends after `patience` validations without improvement.

    - `state`: current step, losses and validations.
    - `optimizer`: AdamW.
    - `bfloat16`: whether the model computes in bfloat16.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        folder: Path,
        configuration: Mapping[str, Any],
        *,
        steps: int,
        rate: float,
        warmup: float,
        decay: Callable[[float], float],
        weight_decay: float,
        validate_at: Container[int],
        patience: float = math.inf,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.model, self.folder, self.configuration = model, folder, configuration
        self.state = LoopState()
        self._steps, self._rate, self._warmup, self._decay = steps, rate, max(1, round(warmup * steps)), decay
        self._validate_at, self._patience, self._checkpoint_seconds = validate_at, patience, checkpoint_seconds
        self._device = next(model.parameters()).device
        self._parameters = list(checkpoint.trainable_parameters(model).values())
        self._random_state: dict[str, torch.Tensor] | None = None  # at the beginning of an unfinished step
        self.optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=weight_decay)
        self.bfloat16 = in_bfloat16(self._device)

    def run(
        self, backward: Callable[[int], float], validate: Callable[[], float], report: Callable[[float], None]
    ) -> None:
        """Train to the end, from the checkpoint if there is one; a model that is validated then has the best weights.

        `backward` computes the gradients of a step and returns its loss; `validate`, called in `evaluation_mode`,
        returns the loss of a validation; `report` receives the loss of each step. A Ctrl-C saves a checkpoint. Raises
        DataError if the checkpoint belongs to a different run or a loss is not finite.
        """
        path = self.folder / CHECKPOINT
        if path.exists():
            saved = checkpoint.load_checkpoint(path, self.model, self.optimizer, self.configuration)
            self.state = LoopState(**saved)
            try:
                if self.state.best_step:
                    checkpoint.read_tensors(self.folder / BEST)
            except DamagedModelError as error:
                _log.warning("The best weights so far are lost, later ones are kept instead: %s", error.message)
                self.state.best, self.state.best_step, self.state.worse = math.inf, 0, 0
        self.model.train()
        saved_at = time.monotonic()
        start = saved_at - self.state.seconds
        try:
            with interrupts_between_steps() as raise_if_interrupted:
                self._validate_if_due(validate)  # the run may have been interrupted before a validation
                while self.state.step < self._steps and not self.state.ended:
                    loss = self._train_step(backward)
                    self.state.seconds = time.monotonic() - start
                    self._validate_if_due(validate)
                    report(loss)
                    if time.monotonic() - saved_at >= self._checkpoint_seconds:
                        self._save()
                        saved_at = time.monotonic()
                    raise_if_interrupted()
                self._save()
        except KeyboardInterrupt:
            self.optimizer.zero_grad(set_to_none=True)
            self._save()
            raise
        if self.state.best_step:
            tensors, _ = checkpoint.read_tensors(self.folder / BEST)
            checkpoint.set_weights(self.model, tensors)

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 where the device supports it."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Compute without dropout and gradients."""
        self.model.eval()
        with torch.no_grad(), self.autocast():
            yield
        self.model.train()

    def _train_step(self, backward: Callable[[int], float]) -> float:
        step = self.state.step
        self._random_state = checkpoint.rng_state()
        loss = backward(step)
        if not math.isfinite(loss):
            raise DataError(f"The loss is {loss} at step {step + 1}.", "Train with a lower learning rate.")
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        if step < self._warmup:
            scale = (step + 1) / self._warmup
        else:
            scale = self._decay((step - self._warmup) / max(1, self._steps - self._warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * scale
        with without_interrupts():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            self.state.losses.append((self.state.step, loss))
            self._random_state = None
        return loss

    def _validate_if_due(self, validate: Callable[[], float]) -> None:
        step, last = self.state.step, self.state.valid[-1][0] if self.state.valid else 0
        if step == last or step not in self._validate_at:
            return
        with self.evaluation_mode():
            loss = validate()
        better = loss < self.state.best
        if better:
            checkpoint.write_tensors(self.folder / BEST, checkpoint.weight_tensors(self.model), {"step": step})
        with without_interrupts():
            self.state.valid.append((step, loss))
            if better:
                self.state.best, self.state.best_step, self.state.worse = loss, step, 0
            else:
                self.state.worse += 1
                self.state.ended = self.state.worse >= self._patience

    def _save(self) -> None:
        path, state = self.folder / CHECKPOINT, asdict(self.state)
        checkpoint.save_checkpoint(path, self.model, self.optimizer, self.configuration, state, self._random_state)


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Keep a Ctrl-C in this block for the function that is yielded, which raises it, or for the end of the block.

    Raised inside torch it may end the process. A second Ctrl-C is raised at once. Does nothing outside the main thread.
    """
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    def raise_if_interrupted() -> None:
        if interrupted:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield raise_if_interrupted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield raise_if_interrupted
    finally:
        signal.signal(signal.SIGINT, handler)
    raise_if_interrupted()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Deliver a Ctrl-C that arrives inside the block at its end. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[Any, ...]] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(*received[0])
