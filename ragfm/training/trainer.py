"""Training: from examples to an adapter's folder, resumable at any moment.

    examples ─encode→ tokens ─order→ steps ─┬─ loss on the completions → optimizer → checkpoint, now and then
                                            └─ validation → the best so far is kept, and it ends where none comes

With the same seed and machine a training that was killed and resumed loses what one that was not loses. Where
`ragfm.training.distributed` has several, each takes a share of a step, and the step is that of one process.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from ragfm.core.errors import DataError, RagfmError
from ragfm.core.output_folder import make_output
from ragfm.models.adapters import CHECKPOINT, read_record
from ragfm.models.hardware import peak_memory_bytes
from ragfm.training import checkpoint
from ragfm.training.base_model import Base, Encoded, in_bfloat16
from ragfm.training.checkpoint import BEST
from ragfm.training.distributed import Processes
from ragfm.training.examples import Example, digest
from ragfm.training.interrupts import undivided
from ragfm.training.methods import RATES, MethodSettings, adapted, halved
from ragfm.training.output_checks import check_training
from ragfm.training.peft_conversion import peft_form
from ragfm.training.training_batches import Row, Step, batches, loss_of, order, rows_of, share, tokens_of
from ragfm.training.validation import MOST, answers_score

Judge: TypeAlias = Literal["loss", "answers"]
_CLIP = 1.0
_MOST_TOKENS = 2048  # of a batch that goes through the model at once


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How it is trained. `batch` is how many examples make a step; `rate` the highest learning rate, by method.

    The rate rises for the share `warmup` of the steps and falls by a cosine. `judge` says what validation measures,
    every `validate_every` steps; after `patience` validations without a better one training ends. `most_tokens`: longer
    examples are left out. `start` is an adapter to go on from: a folder, or a GGUF file.
    """

    method: MethodSettings = MethodSettings()  # noqa: RUF009  frozen
    epochs: float = 1.0
    batch: int = 16
    rate: float | None = None
    warmup: float = 0.05
    judge: Judge = "loss"
    validate_every: int | None = None
    patience: int = 3
    most_tokens: int = 2048
    checkpoint_seconds: float = 60.0
    seed: int = 0
    start: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training takes, from a few batches that were measured. `peak_mb` is of the process, or of the GPU."""

    seconds: float
    peak_mb: float
    disk_mb: float
    tokens_per_second: float
    learned: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. `valid` is the last validation: a loss, or a score of answers; None before the first."""

    step: int
    steps: int
    loss: float
    valid: float | None
    tokens_per_second: float
    seconds_left: float


@dataclass
class _State:
    """What changes, and is kept in a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0
    ended: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    valid: list[tuple[int, float]] = field(default_factory=list)


class Training:
    """A training of one base on some examples, into a folder.

    `examples` that don't fit are left out and counted in `too_long`. Raises DataError where none is left.
    """

    def __init__(
        self, base: Base, examples: Sequence[Example], folder: str | Path, settings: TrainSettings = TrainSettings(),
        *, valid: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.base, self.settings, self.folder = base, settings, Path(folder)
        self.processes = Processes()
        self._most = min(settings.most_tokens, base.window)
        encoded, fitting_valid = self._fitting(examples), self._fitting(valid)
        self.too_long = len(examples) + len(valid) - len(encoded) - len(fitting_valid)
        if not encoded:
            long = f" of at most {self._most} tokens" if examples else ""
            raise DataError(f"There is no example{long} to train with.", "Make some with `ragfm adapt data`.")
        self._train = [tokens for _, tokens in encoded]
        self._valid = fitting_valid
        self.examples, self.valid_examples = len(self._train), len(self._valid)
        self._share = shares_prefixes(base.model.config, settings.method.method)
        rows = self._rows(self._train)
        self.steps: list[Step] = order(
            rows, [self._tokens(row) for row in rows], epochs=settings.epochs, batch=settings.batch,
            most_tokens=_MOST_TOKENS, seed=settings.seed,
        )  # fmt: skip
        number, count = self.processes.number, self.processes.count
        self._own = self.steps if count == 1 else [
            share(step, self._train, _MOST_TOKENS, number, count) for step in self.steps
        ]  # fmt: skip
        self.tokens = sum(self._tokens(row) for step in self.steps for part in step for row in part)
        self.facts = {
            "base": base.sha256,
            "examples": digest([example for example, _ in encoded]),
            "valid": digest([example for example, _ in self._valid]),
            **{key: value for key, value in asdict(settings).items() if key != "checkpoint_seconds"},
        }
        self.state = _State()
        self.settled = False
        self._bfloat16 = in_bfloat16(base.device)
        torch.manual_seed(settings.seed)
        self.licence: str | None = None
        """That of the adapter it goes on from."""
        if settings.start:
            with peft_form(settings.start, base) as start:
                self.model = adapted(base.model, settings.method, base.name, str(start))
                self.licence = read_record(start).licence
        else:
            self.model = adapted(base.model, settings.method, base.name)
        if settings.start and hasattr(config := self.model.peft_config["default"], "r"):
            self.facts["method"] |= {"rank": config.r, "alpha": config.lora_alpha}  # of the adapter it goes on from
        if self._bfloat16 and settings.method.method != "full":
            halved(base.model)
        self._learned = list(checkpoint.learned(self.model).values())
        rate = settings.rate or RATES[settings.method.method]
        self._optimizer = torch.optim.AdamW(self._learned, lr=rate, weight_decay=0.0)
        self._rate = rate
        self._chance: dict[str, torch.Tensor] | None = None  # what it was before a step that has not ended

    @property
    def validate_every(self) -> int:
        """Steps from one validation to the next."""
        return self.settings.validate_every or max(1, math.ceil(len(self.steps) / 10))

    def estimate(self) -> Estimate:
        """Measure the longest batch and a middle one, and tell from them; changes nothing."""
        chance = torch.get_rng_state()
        parts = sorted((part for step in self._own for part in step), key=self._padded)
        self._measured(parts[-1])
        middle = parts[len(parts) // 2]
        speed = self._padded(middle) / self._measured(middle)
        answering = self._answering() if self.settings.judge == "answers" and self._valid else 0.0
        torch.set_rng_state(chance)
        passes = sum(self._padded(part) for part in parts)
        validations = len(self.steps) // self.validate_every + 1
        kept = [tokens for _, tokens in self._valid]
        once = sum(tokens_of([kept[at] for at in row]) for row in self._rows(kept))
        valid = 0.0 if answering else validations * once * 0.4  # no way back
        size = sum(parameter.numel() for parameter in self._learned)
        return Estimate(
            seconds=(passes + valid) / speed + validations * answering,
            peak_mb=_peak_mb(self.base.device) + size * 8 / 2**20,
            disk_mb=self._disk_mb,
            tokens_per_second=speed,
            learned=size,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def run(self, progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        """Train to the end, from where a checkpoint in the folder stands; gives what was measured.

        A Ctrl-C leaves a checkpoint. Raises DataError where the folder holds another training.
        """
        check_training(self.folder, self.base.path)
        make_output(self.folder)
        self._check_disk()
        self._resume()
        self.processes.spread(parameter.data for parameter in self._learned)  # GPUs draw other random numbers
        self.processes.wait()  # all have read what the first will replace
        self.model.train()
        try:
            with self.processes.together():
                speed = self._steps(progress)
        except KeyboardInterrupt:
            self._optimizer.zero_grad(set_to_none=True)
            self._save()
            self.processes.wait()  # the launcher ends all at the end of one
            raise
        self._save()
        if self._valid and self.processes.first:
            tensors, _ = checkpoint.read_tensors(self.folder / BEST)
            checkpoint.put(self.model, tensors)
        self.settled = self.processes.first
        return self._numbers(speed)

    def _steps(self, progress: Callable[[Progress], None] | None) -> float:
        """All steps that are left; gives tokens per second."""
        start, saved = time.monotonic() - self.state.seconds, time.monotonic()
        first, begun, tokens = self.state.step, time.monotonic(), 0
        self._validate_if_due()  # an interruption may have come before
        while self.state.step < len(self.steps) and not self.state.ended:
            tokens += sum(self._padded(part) for part in self.steps[self.state.step])
            loss = self._step()
            self.state.seconds = time.monotonic() - start
            self._validate_if_due()
            if progress:
                each = (time.monotonic() - begun) / (self.state.step - first)
                progress(self._progress(loss, tokens / (time.monotonic() - begun), each))
            if time.monotonic() - saved >= self.settings.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            self.processes.stop_if_interrupted(self.base.device)
        return tokens / max(1e-9, time.monotonic() - begun)

    def _fitting(self, examples: Sequence[Example]) -> list[tuple[Example, Encoded]]:
        pairs = [(example, self.base.encode(example)) for example in examples]
        return [(example, tokens) for example, tokens in pairs if len(tokens.ids) <= self._most]

    def _rows(self, examples: Sequence[Encoded]) -> list[Row]:
        return rows_of(examples, _MOST_TOKENS) if self._share else [(at,) for at in range(len(examples))]

    def _tokens(self, row: Row) -> int:
        return tokens_of([self._train[at] for at in row])

    def _padded(self, part: Sequence[Row]) -> int:
        return len(part) * max(map(self._tokens, part))

    def _loss(self, examples: Sequence[Encoded], part: Sequence[Row]) -> tuple[torch.Tensor, int]:
        rows = [[examples[at] for at in row] for row in part]
        return loss_of(self.model, rows, self.base.pad, self.base.device)

    def _step(self) -> float:
        """One step of the optimizer; gives the loss of a token."""
        learned = [self._train[at] for part in self.steps[self.state.step] for row in part for at in row]
        total = sum(len(example.ids) - example.start for example in learned)
        lost = 0.0
        self._chance = checkpoint.chance()
        if self.processes.count > 1:  # each drops others out, and the checkpoint has the chance of one
            torch.manual_seed(hash((self.settings.seed, self.state.step, self.processes.number)))
        for part in self._own[self.state.step]:
            with self._autocast():
                loss, _ = self._loss(self._train, part)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            lost += loss.item()
        lost = self._summed(lost)
        torch.nn.utils.clip_grad_norm_(self._learned, _CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * self._scale(self.state.step)
        with undivided():
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            self.state.losses.append((self.state.step, lost / total))
            self._chance = None
        if not math.isfinite(lost):
            raise DataError(f"The loss is {lost} at step {self.state.step}.", "Train with a lower learning rate.")
        return lost / total

    def _summed(self, lost: float) -> float:
        """The loss of all processes; the gradients are then those of all, too."""
        if self.processes.count == 1:
            return lost
        for parameter in self._learned:
            if parameter.grad is None:  # a process without a share
                parameter.grad = torch.zeros_like(parameter)
        losses = torch.tensor(lost, device=self.base.device)
        self.processes.add([losses, *(parameter.grad for parameter in self._learned if parameter.grad is not None)])
        return losses.item()

    def _scale(self, step: int) -> float:
        """The learning rate of a step, as a share of the highest."""
        warm = max(1, round(self.settings.warmup * len(self.steps)))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, len(self.steps) - warm)))

    def _validate_if_due(self) -> None:
        step, done = self.state.step, self.state.valid[-1][0] if self.state.valid else 0
        if self._valid and step > done and (step % self.validate_every == 0 or step == len(self.steps)):
            self._validate()

    def _validate(self) -> None:
        told = torch.zeros(1, device=self.base.device)
        if self.processes.first:
            told += self._value()
        self.processes.spread([told])
        value = told.item()
        lower = value if self.settings.judge == "loss" else -value
        if (better := lower < self.state.best) and self.processes.first:
            tensors = {f"model.{name}": value for name, value in checkpoint.learned(self.model).items()}
            checkpoint.write_tensors(self.folder / BEST, tensors, {"step": self.state.step})
        with undivided():
            self.state.valid.append((self.state.step, value))
            if better:
                self.state.best, self.state.best_step, self.state.worse = lower, self.state.step, 0
            else:
                self.state.worse += 1
                self.state.ended = self.state.worse >= self.settings.patience

    def _value(self) -> float:
        """The loss of a token, or the score of the answers."""
        if self.settings.judge == "answers":
            return self._score([example for example, _ in self._valid])
        with self._validating():
            return self._valid_loss()

    def _answering(self) -> float:
        """The seconds that a validation takes which has answers generated, by one of them."""
        start = time.monotonic()
        self._score([self._valid[0][0]])
        return (time.monotonic() - start) * min(MOST, len(self._valid))

    def _score(self, examples: Sequence[Example]) -> float:
        with self._validating():
            return answers_score(self.model, self.base, examples)

    @contextmanager
    def _validating(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            yield
        self.model.train()

    def _valid_loss(self) -> float:
        tokens = [one for _, one in self._valid]
        rows = self._rows(tokens)
        lengths = [tokens_of([tokens[at] for at in row]) for row in rows]
        parts = batches(range(len(rows)), lengths, _MOST_TOKENS)
        pairs = [self._loss(tokens, [rows[at] for at in part]) for part in parts]
        return sum(loss.item() for loss, _ in pairs) / sum(count for _, count in pairs)

    def _measured(self, part: Sequence[Row]) -> float:
        """Seconds of a batch there and back."""
        start = time.perf_counter()
        with self._autocast():
            loss, count = self._loss(self._train, part)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        if self.base.device.type == "cuda":
            torch.cuda.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self._bfloat16):
            yield

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if path.exists():
            _, about = checkpoint.read_tensors(path)
            checkpoint.check_same(path, about["facts"], self.facts)
            self.state = _State(**checkpoint.load(path, self.model, self._optimizer)["state"])

    @property
    def _disk_mb(self) -> float:
        """Two checkpoints while one is replaced, the same of the best weights, and the result; a tenth to spare."""
        return sum(parameter.numel() for parameter in self._learned) * 4 * (2 * 3 + 2 + 1) * 1.1 / 2**20

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.folder).free / 2**20
        if free < self._disk_mb:
            raise RagfmError(
                f"The disk of {self.folder} has {free:,.0f} MB left, and training needs {self._disk_mb:,.0f} MB.",
                "Make room, or name a folder elsewhere.",
            )

    def _save(self) -> None:
        if not self.processes.first:
            return
        about = {"facts": self.facts, "step": self.state.step, "state": asdict(self.state)}
        checkpoint.save(self.folder / CHECKPOINT, self.model, self._optimizer, about, self._chance)

    def _progress(self, loss: float, speed: float, each: float) -> Progress:
        valid = self.state.valid[-1][1] if self.state.valid else None
        left = each * (len(self.steps) - self.state.step)
        return Progress(self.state.step, len(self.steps), loss, valid, speed, left)

    def _numbers(self, speed: float) -> dict[str, Any]:
        state = self.state
        last = [loss for _, loss in state.losses[-5:]]
        return {
            "examples": self.examples,
            "valid_examples": self.valid_examples,
            "too_long": self.too_long,
            "steps": state.step,
            "of_steps": len(self.steps),
            "loss": {"first": state.losses[0][1], "last_5": sum(last) / len(last)},
            "valid": dict(state.valid),
            "kept_step": state.best_step if self._valid else state.step,
            "seconds": round(state.seconds, 1),
            "tokens_per_second": round(speed, 1),
            "peak_mb": round(_peak_mb(self.base.device)),
            "learned": sum(parameter.numel() for parameter in self._learned),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "device": str(self.base.device),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "bfloat16": self._bfloat16,
        }


def shares_prefixes(config: Any, method: str) -> bool:
    """Whether the model takes any attention mask: not one that slides, nor one with virtual tokens before the first."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    return plain and method not in ("prefix", "prompt") and config._attn_implementation == "sdpa"  # noqa: SLF001


def curves(state: Mapping[str, Any] | _State) -> dict[str, list[tuple[int, float]]]:
    """The losses and validations of a training, by step."""
    values = state if isinstance(state, Mapping) else asdict(state)
    return {"training": values["losses"], "validation": values["valid"]}


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_bytes() / 2**20
