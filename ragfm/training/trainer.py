"""Train a reader: from examples and a base model to trained weights.

examples ─encode→ tokens ─plan→ steps ─TrainingLoop→ trained weights
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ragfm.core.durable_files import temporary_paths
from ragfm.core.errors import ConfigError, DataError, RagfmError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import Progress, ProgressCallback, ignore_progress
from ragfm.generation.readers.torch_model import has_only_attention
from ragfm.models.adapters import BEST, CHECKPOINT, read_record, trained_weights_sha256, virtual_tokens
from ragfm.models.hardware import peak_memory_bytes
from ragfm.models.model_lookup import weights_sha256
from ragfm.training import checkpoint
from ragfm.training.base_model import Base, Encoded
from ragfm.training.examples import Example, examples_digest
from ragfm.training.gguf_lora import as_peft_folder
from ragfm.training.methods import LEARNING_RATES, apply_method, cast_frozen_to_bfloat16
from ragfm.training.output_checks import check_training_output
from ragfm.training.train_settings import TrainingEstimate, TrainSettings
from ragfm.training.training_batches import (
    Row,
    Step,
    batch_rows,
    completion_loss,
    pack_rows,
    plan_steps,
    row_tokens,
)
from ragfm.training.training_loop import LoopState, TrainingLoop, cosine_decay

_MAX_BATCH_TOKENS = 2048  # that go through the model at once


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
    - `configuration`: settings and hashes of the data; a checkpoint continues only with the same.
    - `loop`: the training loop, with the state and the optimizer.
    - `licence`: licence of the adapter that the run starts from.
    - `finished`: whether `run` has ended and `model` holds the weights to keep.
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
        self.finished = False
        method, max_tokens = settings.method, _max_tokens(base, settings)

        # Tokens, rows and steps.
        kept, self._train = _encode(base, examples, max_tokens)
        kept_valid, self._valid = _encode(base, valid, max_tokens)
        if not kept:
            limit = f" of at most {max_tokens} tokens" if examples else ""
            raise DataError(f"There is no example{limit} to train with.", "Create examples with `ragfm adapt data`.")
        self.examples, self.valid_examples = len(kept), len(kept_valid)
        self.too_long = len(examples) + len(valid) - self.examples - self.valid_examples
        self._pack_prefixes = shares_prefixes(base.model.config.get_text_config())
        rows, lengths = self._pack(self._train)
        self.steps: list[Step] = plan_steps(
            rows,
            lengths,
            epochs=settings.epochs,
            batch=settings.batch,
            max_tokens=_MAX_BATCH_TOKENS,
            seed=settings.seed,
        )
        self.tokens = sum(self._tokens(row) for step in self.steps for batch in step for row in batch)
        self.configuration = {
            "base": weights_sha256(base.path),
            "examples": examples_digest(kept),
            "valid": examples_digest(kept_valid),
            **{key: value for key, value in asdict(settings).items() if key != "checkpoint_seconds"},
        }

        # Model and loop.
        self.licence: str | None = None
        torch.manual_seed(settings.seed)
        if settings.start:
            with as_peft_folder(settings.start, base) as start:
                self.configuration["start_weights"] = trained_weights_sha256(start)
                self.model = apply_method(base.model, settings, base.name, str(start))
                self.licence = read_record(start).licence
            adapter = self.model.peft_config["default"]
            if hasattr(adapter, "r"):  # the adapter's own rank and scale apply, not those of the settings
                self.configuration |= {"rank": adapter.r, "alpha": adapter.lora_alpha}
        else:
            self.model = apply_method(base.model, settings, base.name)
        self._learned = sum(parameter.numel() for parameter in checkpoint.trainable_parameters(self.model).values())
        # Two checkpoints and two best weights while one is replaced, the result, and a reserve.
        self._disk_mb = self._learned * 4 * (2 * 3 + 2 + 1) * 1.1 / 2**20
        every = settings.validate_every or max(1, math.ceil(len(self.steps) / 10))
        validations = {*range(every, len(self.steps), every), len(self.steps)} if self.valid_examples else set[int]()
        self._validations = len(validations)
        self.loop = TrainingLoop(
            self.model,
            self.folder,
            self.configuration,
            steps=len(self.steps),
            rate=settings.rate or LEARNING_RATES[method],
            warmup=settings.warmup,
            decay=cosine_decay,
            weight_decay=0.0,
            validate_at=validations,
            patience=settings.patience,
            checkpoint_seconds=settings.checkpoint_seconds,
        )
        if self.loop.bfloat16 and method != "full":
            cast_frozen_to_bfloat16(base.model)

    @property
    def state(self) -> LoopState:
        """Current step, losses and validations."""
        return self.loop.state

    def estimate(self) -> TrainingEstimate:
        """Estimate time, memory and disk space from the longest batch and one of medium length. Changes no state."""
        random_state = torch.get_rng_state()
        batches = sorted((batch for step in self.steps for batch in step), key=self._padded_tokens)
        self._time_batch(batches[-1])
        middle = batches[len(batches) // 2]
        speed = self._padded_tokens(middle) / self._time_batch(middle)
        torch.set_rng_state(random_state)
        tokens: float = sum(self._padded_tokens(batch) for batch in batches)
        tokens += self._validations * sum(self._pack(self._valid)[1]) * 0.4  # no backward pass
        return TrainingEstimate(
            examples=self.examples,
            valid_examples=self.valid_examples,
            too_long=self.too_long,
            tokens=self.tokens,
            steps=len(self.steps),
            seconds=tokens / speed,
            peak_mb=_peak_mb(self.base.device) + self._learned * 8 / 2**20,
            disk_mb=self._disk_mb,
            tokens_per_second=speed,
            learned=self._learned,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def run(self, progress: ProgressCallback | None = None) -> dict[str, Any]:
        """Train to the end, from the checkpoint in the folder if there is one; returns the figures of the run.

        Each step reports `Progress("train", step, steps, figures)` with the loss per token, the loss of the last
        validation (`validation_loss`), tokens per second and the seconds left.

        A Ctrl-C saves a checkpoint. Raises DataError if the folder holds a checkpoint of a different training run or
        the loss is not finite, RagfmError if the disk is too small.
        """
        check_training_output(self.folder, self.base.path)
        make_output(self.folder)
        path = self.folder / CHECKPOINT
        for name in (CHECKPOINT, BEST):  # what killed runs left
            for leftover in temporary_paths(self.folder / name):
                leftover.unlink()
        kept = sum(file.stat().st_size for file in (path, self.folder / BEST) if file.exists())
        free_mb = (shutil.disk_usage(self.folder).free + kept) / 2**20
        if free_mb < self._disk_mb:
            raise RagfmError(
                f"The disk of {self.folder} has {free_mb:,.0f} MB left, and training needs {self._disk_mb:,.0f} MB.",
                "Free some space, or use a folder on another disk.",
            )
        send, begin, tokens, done = progress or ignore_progress, time.monotonic(), 0, 0

        def report(loss: float) -> None:
            nonlocal tokens, done
            step, elapsed = self.state.step, time.monotonic() - begin
            tokens, done = tokens + sum(map(self._padded_tokens, self.steps[step - 1])), done + 1
            validation = {"validation_loss": self.state.valid[-1][1]} if self.state.valid else {}
            left = elapsed / done * (len(self.steps) - step)
            figures = {"loss": loss, **validation, "tokens_per_second": tokens / elapsed, "seconds_left": left}
            send(Progress("train", step, len(self.steps), figures))

        self.loop.run(self._backward, self._validate, report)
        speed = tokens / max(1e-9, time.monotonic() - begin)
        self.finished = True
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
            "threads": torch.get_num_threads(),
            "bfloat16": self.loop.bfloat16,
        }

    def _backward(self, step: int) -> float:
        """Compute the gradients of a step; returns the loss per token."""
        examples = [self._train[index] for batch in self.steps[step] for row in batch for index in row]
        total = sum(len(example.ids) - example.start for example in examples)
        step_loss = 0.0
        for batch in self.steps[step]:
            with self.loop.autocast():
                loss, _ = self._loss(self._train, batch)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            step_loss += loss.item()
        return step_loss / total

    def _validate(self) -> float:
        """The loss per token of the validation examples."""
        rows, lengths = self._pack(self._valid)
        batches = batch_rows(range(len(rows)), lengths, _MAX_BATCH_TOKENS)
        losses = [self._loss(self._valid, [rows[index] for index in batch]) for batch in batches]
        return sum(loss.item() for loss, _ in losses) / sum(count for _, count in losses)

    def _time_batch(self, batch: Sequence[Row]) -> float:
        """The seconds of a forward and backward pass."""
        start = time.perf_counter()
        with self.loop.autocast():
            loss, count = self._loss(self._train, batch)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        if self.base.device.type == "cuda":
            torch.cuda.synchronize()
        self.loop.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    def _loss(self, examples: Sequence[Encoded], batch: Sequence[Row]) -> tuple[torch.Tensor, int]:
        """The summed loss of a batch, and the number of tokens that it is summed over."""
        rows = [[examples[index] for index in row] for row in batch]
        if not self._pack_prefixes:
            rows = [[example] for row in rows for example in row]
        return completion_loss(self.model, rows, self.base.pad, self.base.device)

    def _pack(self, examples: Sequence[Encoded]) -> tuple[list[Row], list[int]]:
        """Rows of examples that begin alike, and the number of tokens of each."""
        rows: list[Row] = [(index,) for index in range(len(examples))]
        if self._pack_prefixes:
            rows = pack_rows(examples, _MAX_BATCH_TOKENS)
        return rows, [row_tokens([examples[index] for index in row]) for row in rows]

    def _tokens(self, row: Row) -> int:
        return row_tokens([self._train[index] for index in row])

    def _padded_tokens(self, batch: Sequence[Row]) -> int:
        return len(batch) * max(map(self._tokens, batch))


def _encode(base: Base, examples: Sequence[Example], max_tokens: int) -> tuple[list[Example], list[Encoded]]:
    """The examples of at most `max_tokens`, and their tokens."""
    encoded = [base.encode(example) for example in examples]
    fits = [len(sequence.ids) <= max_tokens for sequence in encoded]
    return list(itertools.compress(examples, fits)), list(itertools.compress(encoded, fits))


def _max_tokens(base: Base, settings: TrainSettings) -> int:
    """The length up to which examples are trained on. Raises ConfigError if the method cannot train the base."""
    method = settings.method
    if method not in ("prefix", "prompt"):
        return min(settings.most_tokens, base.window)
    if not has_only_attention(base.model.config.get_text_config()):
        raise ConfigError(
            f"{base.name} has layers other than attention, which the method {method} cannot train.",
            "Use --method lora.",
        )
    added = virtual_tokens(settings.start) if settings.start else settings.tokens
    return min(settings.most_tokens, base.window - added)


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
