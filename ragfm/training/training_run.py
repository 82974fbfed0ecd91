"""Train an adapter, from a folder of examples to a folder with the adapter. This module loads torch when it is used.

    examples ─┐
    base ─────┴→ Training.estimate → Training.run → write_adapter → OUT/ragfm-adapter.json, adapter_model.safetensors, …

`OUT/checkpoint.safetensors` is the checkpoint of an unfinished run, see `ragfm.training.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.abstention import is_abstention
from ragfm.core.errors import DataError
from ragfm.core.progress import ProgressCallback
from ragfm.models.adapters import AdapterRecord
from ragfm.models.model_lookup import find_model
from ragfm.training.examples import TRAIN, VALID, Example, read_card, read_examples
from ragfm.training.output_checks import check_training_output
from ragfm.training.train_settings import TrainingEstimate, TrainSettings

if TYPE_CHECKING:
    from ragfm.training.trainer import Training


def train(
    examples: str | Path | Sequence[Example],
    base: str = "bundled",
    out: str | Path = "ragfm-adapter",
    *,
    settings: TrainSettings | None = None,
    valid: Sequence[Example] | None = None,
    licence: str | None = None,
    on_estimate: Callable[[TrainingEstimate], None] | None = None,
    progress: ProgressCallback | None = None,
) -> AdapterRecord:
    """Train an adapter and write it, with its record and a model card, into the folder `out`; returns the record.

    `examples` is a folder that `write_dataset` wrote, a file of examples, or the examples themselves. `valid` are the
    validation examples, by default those of the folder. `base` is a model folder or a GGUF file. `licence` goes into
    the record; by default it is that of the adapter that training starts from (`settings.start`).

    After an interruption, the same call continues from the checkpoint in `out`. A KeyboardInterrupt saves a checkpoint
    and is raised again.

    `record.numbers` has the figures of the run. `on_estimate` receives the expected cost before the first step; without
    it nothing is measured. `progress` receives `Progress("train", step, steps, figures)` after each step, see
    `ragfm.training.trainer.Training.run`.

    Raises DataError if there is nothing to train with, if `out` holds an adapter, a model that ragfm did not write or
    the checkpoint of a different run, or if the loss is not finite; ConfigError, UnsupportedError, DamagedModelError
    and AdapterMismatchError if base, method and adapter do not fit; RagfmError if the disk is too small.
    """
    from ragfm.training.adapter_folder import write_adapter

    training, card = _prepare(examples, base, out, settings, valid)
    if on_estimate is not None:
        on_estimate(training.estimate())
    return write_adapter(training, training.run(progress), card=card, licence=licence)


def estimate_training(
    examples: str | Path | Sequence[Example],
    base: str = "bundled",
    out: str | Path = "ragfm-adapter",
    *,
    settings: TrainSettings | None = None,
    valid: Sequence[Example] | None = None,
) -> TrainingEstimate:
    """Estimate time, memory and disk space of `train` with the same arguments. Writes nothing; raises the same errors.

    A checkpoint in `out` is ignored: the estimate is that of a whole run.
    """
    training, _ = _prepare(examples, base, out, settings, valid)
    return training.estimate()


def _prepare(
    examples: str | Path | Sequence[Example],
    base: str,
    out: str | Path,
    settings: TrainSettings | None,
    valid: Sequence[Example] | None,
) -> tuple[Training, dict[str, Any]]:
    """Check the arguments and load the base; returns the training run and the data card."""
    settings = settings or TrainSettings()
    card: dict[str, Any] = {}
    if isinstance(examples, str | Path):
        path = Path(examples)
        folder = path.parent if path.is_file() else path
        train_examples = read_examples(path if path.is_file() else path / TRAIN)
        if valid is None and not path.is_file() and (path / VALID).is_file():
            valid = read_examples(path / VALID)
        card = read_card(folder)
        if not train_examples:
            raise DataError(
                f"There is no example in {examples} to train with.", "Create examples with `ragfm adapt data`."
            )
    else:
        train_examples = list(examples)
    answers = (example for example in train_examples if not is_abstention(example.completion))
    if train_examples and not any(answers):
        raise DataError(
            f"No example answers its question: all {len(train_examples)} completions are abstentions.",
            "Create examples with answers: `ragfm adapt data`.",
        )
    out = Path(out)
    check_training_output(out, find_model(base, "reader"))

    from ragfm.training.base_model import Base
    from ragfm.training.trainer import Training

    loaded = Base(base, four_bit=settings.method == "qlora")
    return Training(loaded, train_examples, out, settings, valid=valid or ()), card
