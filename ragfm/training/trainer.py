"""The training loop: from examples and a base model to trained weights, resumable at any moment.

    examples ─encode→ tokens ─plan→ steps ─┬─ loss on the completions → optimizer → checkpoint every minute
                                           └─ validation → the best weights are kept; early stopping

A run into the same folder with the same settings and data continues from the checkpoint (`ragfm.training.checkpoint`).
With the same seed and machine, a run that was killed and resumed has the losses of one that was not, unless its time is
limited: its learning rate falls with the time. With several processes (`ragfm.training.distributed`) each takes a share
of a step, and the step is the one that a single process would take.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ragfm.core.durable_files import temporary_paths
from ragfm.core.errors import ConfigError, DamagedModelError, DataError, RagfmError, UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.generation.readers.torch_model import has_only_attention
from ragfm.models.adapters import BEST, CHECKPOINT, read_record, trained_weights_sha256, virtual_tokens
from ragfm.models.hardware import peak_memory_bytes
from ragfm.training import checkpoint
from ragfm.training.base_model import Base, Encoded, in_bfloat16
from ragfm.training.checkpoint import defer_interrupt
from ragfm.training.distributed import Processes
from ragfm.training.examples import Example, examples_digest
from ragfm.training.methods import LEARNING_RATES, PREFERENCE_RATE, apply_method, cast_frozen_to_bfloat16
from ragfm.training.output_checks import check_training_output
from ragfm.training.peft_conversion import as_peft_folder
from ragfm.training.preference import (
    REFERENCE,
    Sequences,
    dpo_losses,
    encode_sequences,
    kto_losses,
    load_reference,
    preference_rows,
    save_reference,
)
from ragfm.training.train_settings import TrainingEstimate, TrainSettings
from ragfm.training.training_batches import (
    Row,
    Step,
    batch_rows,
    completion_logprobs,
    pack_rows,
    plan_steps,
    row_tokens,
    shard_step,
)
from ragfm.training.validation import MAX_EXAMPLES, score_answers

_MAX_GRADIENT_NORM = 1.0
_MAX_BATCH_TOKENS = 2048  # that go through the model at once

_log = logging.getLogger(__name__)


@dataclass
class _State:
    """The state of the loop, saved in checkpoints.

    `best` is the best loss, or negative score, of a validation; `worse` counts the validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0
    ended: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)
    valid: list[tuple[int, float]] = field(default_factory=list)


class Training:
    """A training run of one base model on some examples into an output folder.

    Examples that are too long are skipped. Raises DataError if no example is left, and ConfigError or
    AdapterMismatchError if the adapter to start from does not fit.

    - `folder`: output folder, also of the checkpoints.
    - `model`: the model that is trained; after `run`, with the weights to keep.
    - `examples`: number of training examples.
    - `valid_examples`: number of validation examples.
    - `too_long`: number of skipped examples.
    - `tokens`: number of tokens that go through the model in training.
    - `steps`: the planned steps.
    - `validate_every`: number of steps between two validations.
    - `configuration`: settings and hashes of the data; a checkpoint continues only with the same.
    - `state`: current step, losses and validations.
    - `licence`: licence of the adapter that the run starts from.
    - `finished`: whether `run` has ended and `model` holds the weights to keep; in the main process only.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        folder: str | Path,
        settings: TrainSettings = TrainSettings(),  # noqa: B008  frozen
        *,
        valid: Sequence[Example] = (),
    ) -> None:
        self.base, self.settings, self.folder = base, settings, Path(folder)
        self.processes = Processes()
        method = settings.method.method
        if base.processor is not None and method in ("full", "prefix", "prompt"):
            raise ConfigError(
                f"The method {method} cannot train models with vision.", "Use --method lora, qlora, dora or ia3."
            )

        # Tokens, rows and steps.
        window, adds_tokens = base.window, method in ("prefix", "prompt")
        if adds_tokens:
            if not has_only_attention(base.model.config.get_text_config()):
                raise ConfigError(
                    f"{base.name} has layers other than attention, which the method {method} cannot train.",
                    "Use --method lora.",
                )
            window -= virtual_tokens(settings.start) if settings.start else settings.method.tokens
        max_tokens = min(settings.most_tokens, window)
        self._train = encode_sequences(base, examples, settings.objective, max_tokens)
        self._valid = encode_sequences(
            base, valid, settings.objective, max_tokens, wanted=False, others=self._train.examples
        )
        self.too_long = self._train.too_long + self._valid.too_long
        self._asked = [
            example for example in self._valid.examples if not example.rejected or settings.objective == "dpo"
        ]
        if settings.judge == "answers" and self._valid.examples and not self._asked:
            raise DataError("No validation example has a good answer.", "Train with `--judge loss`.")
        self.examples, self.valid_examples = len(self._train.examples), len(self._valid.examples)
        self._pack_prefixes = shares_prefixes(base.model.config.get_text_config())
        rows, lengths = self._pack(self._train)
        self.steps: list[Step] = plan_steps(
            rows,
            lengths,
            epochs=settings.epochs,
            batch=settings.batch * (2 if settings.objective == "dpo" else 1),
            max_tokens=_MAX_BATCH_TOKENS,
            seed=settings.seed,
        )
        rank, count = self.processes.rank, self.processes.world_size
        self._own_steps = self.steps
        if count > 1:
            if settings.objective != "likelihood":
                raise UnsupportedError(
                    f"{settings.objective} trains in one process, but a launcher started {count}.",
                    "Run `ragfm adapt train` without a launcher.",
                )
            encoded = self._train.encoded
            self._own_steps = [shard_step(step, encoded, _MAX_BATCH_TOKENS, rank, count) for step in self.steps]
        self.validate_every = settings.validate_every or max(1, math.ceil(len(self.steps) / 10))
        self.tokens = sum(self._tokens(row) for step in self.steps for batch in step for row in batch)
        self.configuration = {
            "base": base.sha256,
            "examples": examples_digest(self._train.examples),
            "valid": examples_digest(self._valid.examples),
            **{
                key: value
                for key, value in asdict(settings).items()
                if key not in ("checkpoint_seconds", "max_seconds")
            },
        }
        if self._pack_prefixes and adds_tokens:  # unlike in checkpoints of older versions
            self.configuration["packed"] = True
        if settings.objective == "likelihood":  # as in checkpoints from before there were others
            self.configuration = {
                key: one for key, one in self.configuration.items() if key not in ("objective", "beta")
            }

        # Model and optimizer.
        self.state = _State()
        self.finished = False
        self.licence: str | None = None
        self._bfloat16 = in_bfloat16(base.device)
        torch.manual_seed(settings.seed)
        if settings.start:
            with as_peft_folder(settings.start, base) as start:
                self.configuration["start_weights"] = trained_weights_sha256(start)
                self.model = apply_method(base.model, settings.method, base.name, str(start))
                self.licence = read_record(start).licence
            config = self.model.peft_config["default"]
            if hasattr(config, "r"):  # the adapter's own rank and scale apply, not those of the settings
                self.configuration["method"] |= {"rank": config.r, "alpha": config.lora_alpha}
        else:
            self.model = apply_method(base.model, settings.method, base.name)
        if self._bfloat16 and method != "full":
            cast_frozen_to_bfloat16(base.model)
        self._parameters = list(checkpoint.trainable_parameters(self.model).values())
        self._learned = sum(parameter.numel() for parameter in self._parameters)
        # Two checkpoints and two best weights while one is replaced, the result, and a reserve.
        self._disk_mb = self._learned * 4 * (2 * 3 + 2 + 1) * 1.1 / 2**20
        default_rate = LEARNING_RATES[method] * (1 if settings.objective == "likelihood" else PREFERENCE_RATE)
        self._peak_rate = settings.rate or default_rate
        self._divergence = 0.0  # z of kto, in the current step or validation
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self._peak_rate, weight_decay=0.0)
        self._random_state: dict[str, torch.Tensor] | None = None  # at the beginning of an unfinished step

    def estimate(self) -> TrainingEstimate:
        """Estimate time, memory and disk space from the longest batch and one of medium length. Changes no state."""
        random_state = torch.get_rng_state()
        steps = self._own_steps if any(self._own_steps) else self.steps
        batches = sorted((batch for step in steps for batch in step), key=self._padded_tokens)
        self._time_batch(batches[-1])
        middle = batches[len(batches) // 2]
        speed = self._padded_tokens(middle) / self._time_batch(middle)
        answering = 0.0  # seconds that a validation takes to generate answers
        if self.settings.judge == "answers" and self._asked:
            start = time.monotonic()
            with self._evaluation_mode():
                score_answers(self.model, self.base, self._asked[:1])
            answering = (time.monotonic() - start) * min(MAX_EXAMPLES, len(self._asked))
        torch.set_rng_state(random_state)
        validations = len(self.steps) // self.validate_every + 1
        train_tokens: float = sum(self._padded_tokens(batch) for batch in batches)
        if not answering:
            train_tokens += validations * sum(self._pack(self._valid)[1]) * 0.4  # no backward pass
        if self.settings.objective != "likelihood":
            train_tokens += sum(self._pack(self._train)[1]) * 0.4  # by the reference model
        return TrainingEstimate(
            examples=self.examples,
            valid_examples=self.valid_examples,
            too_long=self.too_long,
            tokens=self.tokens,
            steps=len(self.steps),
            seconds=train_tokens / speed + validations * answering,
            peak_mb=_peak_mb(self.base.device) + self._learned * 8 / 2**20,
            disk_mb=self._disk_mb,
            tokens_per_second=speed,
            learned=self._learned,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def run(self, progress: ProgressCallback | None = None) -> dict[str, Any]:
        """Train to the end, from the checkpoint in the folder if there is one; returns the figures of the run.

        Each step reports `Progress("train", step, steps, figures)` with the loss per token, the last validation
        (`validation_loss`, or `validation_score` if answers are judged), tokens per second and the seconds left.

        A Ctrl-C saves a checkpoint. Raises DataError if the folder holds a checkpoint of a different training run or
        the loss is not finite, RagfmError if the disk is too small.
        """
        check_training_output(self.folder, self.base.path)
        make_output(self.folder)
        path = self.folder / CHECKPOINT
        if self.processes.is_main:
            for name in (CHECKPOINT, BEST, REFERENCE):  # what killed runs left
                for leftover in temporary_paths(self.folder / name):
                    leftover.unlink()
        kept = sum(file.stat().st_size for file in (path, self.folder / BEST) if file.exists())
        free_mb = (shutil.disk_usage(self.folder).free + kept) / 2**20
        if free_mb < self._disk_mb:
            raise RagfmError(
                f"The disk of {self.folder} has {free_mb:,.0f} MB left, and training needs {self._disk_mb:,.0f} MB.",
                "Free some space, or use a folder on another disk.",
            )
        if self.settings.objective != "likelihood":
            if path.exists():  # before the reference of another run is replaced
                checkpoint.check_configuration(path, self.configuration)
            self._compute_reference()
        if path.exists():
            saved = checkpoint.load_checkpoint(path, self.model, self._optimizer, self.configuration)
            self.state = _State(**saved)
            self._check_best()
        # The initial weights are random, and random numbers differ between GPUs.
        self.processes.broadcast(parameter.data for parameter in self._parameters)
        self.processes.barrier()  # all have read the checkpoint that the main process will replace
        self.model.train()
        try:
            with self.processes.defer_interrupts():
                speed = self._run_steps(progress or ignore_progress)
                self._save()
        except KeyboardInterrupt:
            self._optimizer.zero_grad(set_to_none=True)
            self._save()
            self.processes.barrier()  # the launcher ends all processes when one ends
            raise
        if self.state.best_step and self.processes.is_main:
            tensors, _ = checkpoint.read_tensors(self.folder / BEST)
            checkpoint.set_weights(self.model, tensors)
        self.finished = self.processes.is_main
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
            "kept_step": state.best_step or state.step,
            "seconds": round(state.seconds, 1),
            "tokens_per_second": round(speed, 1),
            "peak_mb": round(_peak_mb(self.base.device)),
            "learned": self._learned,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "device": str(self.base.device),
            "processes": self.processes.world_size,
            "threads": torch.get_num_threads(),
            "bfloat16": self._bfloat16,
        }

    def _check_best(self) -> None:
        """If the best weights so far are lost or damaged, those of the next validation are kept."""
        try:
            if self.state.best_step:
                checkpoint.read_tensors(self.folder / BEST)
        except DamagedModelError as error:
            _log.warning("The best weights so far are lost, later ones are kept instead: %s", error.message)
            self.state.best, self.state.best_step, self.state.worse = math.inf, 0, 0

    def _run_steps(self, progress: ProgressCallback) -> float:
        """Run the remaining steps; returns tokens per second."""
        begin = saved = time.monotonic()
        start = begin - self.state.seconds
        first_step, tokens = self.state.step, 0
        self._validate_if_due()  # the run may have been interrupted before a validation
        while self.state.step < len(self.steps) and not self.state.ended:
            tokens += sum(self._padded_tokens(batch) for batch in self.steps[self.state.step])
            loss = self._train_step()
            self.state.seconds = time.monotonic() - start
            time_is_up = self._time_is_up()
            self._validate_if_due(now=time_is_up)
            self.state.ended |= time_is_up
            elapsed = time.monotonic() - begin
            figures = {"loss": loss}
            if self.state.valid:
                key = "validation_loss" if self.settings.judge == "loss" else "validation_score"
                figures[key] = self.state.valid[-1][1]
            figures["tokens_per_second"] = tokens / elapsed
            seconds_per_step = elapsed / (self.state.step - first_step)
            figures["seconds_left"] = seconds_per_step * (len(self.steps) - self.state.step)
            if self.settings.max_seconds is not None:
                figures["seconds_left"] = min(
                    figures["seconds_left"], max(0.0, self.settings.max_seconds - self.state.seconds)
                )
            progress(Progress("train", self.state.step, len(self.steps), figures))
            if time.monotonic() - saved >= self.settings.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            self.processes.raise_if_interrupted(self.base.device)
        return tokens / max(1e-9, time.monotonic() - begin)

    def _time_is_up(self) -> bool:
        """Whether training has to end, by the clock of the main process."""
        if self.settings.max_seconds is None:
            return False
        is_up = torch.tensor(float(self.state.seconds >= self.settings.max_seconds), device=self.base.device)
        self.processes.broadcast([is_up])
        return bool(is_up)

    def _train_step(self) -> float:
        """Run one optimizer step; returns the loss per token."""
        indices = [index for batch in self.steps[self.state.step] for row in batch for index in row]
        examples = [self._train.encoded[index] for index in indices]
        tokens = sum(len(example.ids) - example.start for example in examples)
        total = {"likelihood": tokens, "dpo": len(indices) // 2, "kto": len(indices)}[self.settings.objective]
        step_loss = 0.0
        self._random_state = checkpoint.rng_state()
        if self.settings.objective == "kto":
            with self._evaluation_mode():
                self._divergence = self._estimate_divergence(self._train, indices)
        if self.processes.world_size > 1:
            # Dropout must differ between processes, and the checkpoint holds the random state of one of them.
            torch.manual_seed(hash((self.settings.seed, self.state.step, self.processes.rank)))
        for batch in self._own_steps[self.state.step]:
            with self._autocast():
                loss, _ = self._loss(self._train, batch)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            step_loss += loss.item()
        if self.processes.world_size > 1:
            for parameter in self._parameters:
                if parameter.grad is None:  # this process has no share in the step
                    parameter.grad = torch.zeros_like(parameter)
            total_loss = torch.tensor(step_loss, device=self.base.device)
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            self.processes.sum_tensors([total_loss, *gradients])
            step_loss = total_loss.item()
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        step, steps = self.state.step, len(self.steps)
        warmup = max(1, round(self.settings.warmup * steps))
        if step < warmup:
            scale = (step + 1) / warmup
        else:
            share = (step - warmup) / max(1, steps - warmup)
            # Training may end before the last step. The clocks of several processes differ, and their rates must not.
            if self.settings.max_seconds is not None and self.processes.world_size == 1:
                share = max(share, min(1.0, self.state.seconds / max(1e-9, self.settings.max_seconds)))
            scale = 0.5 * (1 + math.cos(math.pi * share))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_rate * scale
        with defer_interrupt():
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self.state.step += 1
            self.state.losses.append((self.state.step, step_loss / total))
            self._random_state = None
        if not math.isfinite(step_loss):
            raise DataError(f"The loss is {step_loss} at step {self.state.step}.", "Train with a lower learning rate.")
        return step_loss / total

    def _validate_if_due(self, *, now: bool = False) -> None:
        step, last = self.state.step, self.state.valid[-1][0] if self.state.valid else 0
        due = step > last and (now or step % self.validate_every == 0 or step == len(self.steps))
        if not self.valid_examples or not due:
            return
        result = torch.zeros(1, device=self.base.device)
        if self.processes.is_main:
            with self._evaluation_mode():
                if self.settings.judge == "answers":
                    result += score_answers(self.model, self.base, self._asked)
                else:
                    if self.settings.objective == "kto":
                        everything = range(len(self._valid.encoded))
                        self._divergence = self._estimate_divergence(self._valid, everything)
                    rows, lengths = self._pack(self._valid)
                    total_loss, total = 0.0, 0
                    for batch in batch_rows(range(len(rows)), lengths, _MAX_BATCH_TOKENS):
                        loss, count = self._loss(self._valid, [rows[index] for index in batch])
                        total_loss += loss.item()
                        total += count
                    result += total_loss / total
        self.processes.broadcast([result])
        value = result.item()
        objective = value if self.settings.judge == "loss" else -value
        better = objective < self.state.best
        if better and self.processes.is_main:
            checkpoint.write_tensors(self.folder / BEST, checkpoint.weight_tensors(self.model), {"step": step})
        with defer_interrupt():
            self.state.valid.append((step, value))
            if better:
                self.state.best, self.state.best_step, self.state.worse = objective, step, 0
            else:
                self.state.worse += 1
                self.state.ended = self.state.worse >= self.settings.patience

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad(), self._autocast():
            yield
        self.model.train()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self._bfloat16)

    def _time_batch(self, batch: Sequence[Row]) -> float:
        """The seconds of a forward and backward pass."""
        start = time.perf_counter()
        with self._autocast():
            loss, count = self._loss(self._train, batch)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        if self.base.device.type == "cuda":
            torch.cuda.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def _loss(self, data: Sequences, batch: Sequence[Row]) -> tuple[torch.Tensor, int]:
        """The summed loss of a batch, and the number of tokens, pairs or answers that it is summed over."""
        logprobs, tokens = self._logprobs(data.encoded, batch)
        if self.settings.objective == "likelihood":
            return -logprobs.sum(), tokens
        indices = [index for row in batch for index in row]
        reference = [data.reference[index] for index in indices] if data.reference else [0.0] * len(indices)
        ratios, beta = logprobs - torch.tensor(reference, device=self.base.device), self.settings.beta
        if self.settings.objective == "dpo":
            return dpo_losses(ratios[0::2], ratios[1::2], beta).sum(), len(indices) // 2
        good = torch.tensor([data.good[index] for index in indices], device=self.base.device)
        weights = self._train.good_and_bad_weights
        return kto_losses(ratios, good, self._divergence, beta, weights).sum(), len(indices)

    def _logprobs(self, examples: Sequence[Encoded], batch: Sequence[Row]) -> tuple[torch.Tensor, int]:
        """The log-probability of each completion, in the order of the batch, and their number of tokens."""
        rows = [[examples[index] for index in row] for row in batch]
        if not self._pack_prefixes:
            rows = [[example] for row in rows for example in row]
        model, pad, device = self.model, self.base.pad, self.base.device
        if not any(example.messages for row in rows for example in row):
            return completion_logprobs(model, rows, pad, device)
        # Models differ in how they batch images, so each example with images goes through the model alone.
        parts = [
            completion_logprobs(
                model, part, pad, device, **self.base.image_inputs(part[0][0].messages, len(part[0][0].ids))
            )
            for row in rows
            for part in ([[[example]] for example in row] if row[0].messages else [[row]])
        ]
        return torch.cat([logprobs for logprobs, _ in parts]), sum(tokens for _, tokens in parts)

    def _compute_reference(self) -> None:
        """Take the reference log-probabilities from the folder, or compute them: no step has been made yet."""
        data = (self._train, self._valid)
        if load_reference(self.folder, data, self.configuration):
            return
        with self.processes.defer_interrupts(), self._evaluation_mode():
            for sequences in data:
                sequences.reference = self._all_logprobs(sequences.encoded)
                sequences.mismatched_reference = self._all_logprobs(sequences.mismatched)
        save_reference(self.folder, data, self.configuration)

    def _all_logprobs(self, examples: Sequence[Encoded]) -> list[float]:
        """The log-probabilities of completions, without gradients. Raises KeyboardInterrupt between two batches."""
        rows, lengths = self._pack_alike(examples)
        found = [0.0] * len(examples)
        for batch in batch_rows(range(len(rows)), lengths, _MAX_BATCH_TOKENS):
            chosen = [rows[index] for index in batch]
            logprobs, _ = self._logprobs(examples, chosen)
            for index, value in zip((one for row in chosen for one in row), logprobs.tolist(), strict=True):
                found[index] = value
            self.processes.raise_if_interrupted(self.base.device)
        return found

    def _estimate_divergence(self, data: Sequences, indices: Sequence[int]) -> float:
        """The z of kto: the mean log-ratio of mismatched answers, at least 0."""
        logprobs = self._all_logprobs([data.mismatched[index] for index in indices])
        ratios = [value - data.mismatched_reference[index] for value, index in zip(logprobs, indices, strict=True)]
        return max(0.0, sum(ratios) / len(ratios))

    def _pack(self, data: Sequences) -> tuple[list[Row], list[int]]:
        """Rows of sequences that a step uses together or not at all, and the number of tokens of each."""
        if self.settings.objective == "dpo":
            rows = preference_rows(data)
            return rows, [row_tokens([data.encoded[index] for index in row]) for row in rows]
        return self._pack_alike(data.encoded)

    def _pack_alike(self, examples: Sequence[Encoded]) -> tuple[list[Row], list[int]]:
        """Rows of examples that begin alike, and the number of tokens of each."""
        rows: list[Row] = [(index,) for index in range(len(examples))]
        if self._pack_prefixes:
            rows = pack_rows(examples, _MAX_BATCH_TOKENS)
        return rows, [row_tokens([examples[index] for index in row]) for row in rows]

    def _tokens(self, row: Row) -> int:
        return row_tokens([self._train.encoded[index] for index in row])

    def _padded_tokens(self, batch: Sequence[Row]) -> int:
        return len(batch) * max(map(self._tokens, batch))

    def _save(self) -> None:
        if self.processes.is_main:
            state, path = asdict(self.state), self.folder / CHECKPOINT
            checkpoint.save_checkpoint(path, self.model, self._optimizer, self.configuration, state, self._random_state)


def shares_prefixes(config: Any) -> bool:
    """Whether rows of several examples work: the model takes any attention mask, which sliding attention does not."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    full_attention = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    takes_masks = config._attn_implementation == "sdpa"  # noqa: SLF001
    return full_attention and takes_masks


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_bytes() / 2**20
