"""Settings and estimate of a training run. This module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ragfm.models.adapters import Method


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of a training run.

    - `method`: the fine-tuning method, see `ragfm.training.methods`.
    - `rank`: rank of the matrices of lora and qlora. Their product is scaled by 2.
    - `dropout`: dropout probability of lora and qlora.
    - `tokens`: number of virtual tokens of prefix and prompt tuning.
    - `epochs`: number of passes over the examples; fractions are allowed.
    - `batch`: number of examples per optimizer step.
    - `rate`: peak learning rate; None is the default of the method (`ragfm.training.methods.LEARNING_RATES`).
    - `warmup`: share of the steps in which the learning rate rises; after that it falls by a cosine.
    - `validate_every`: number of steps between two validations; None is a tenth of all steps.
    - `patience`: number of validations without improvement after which training ends.
    - `most_tokens`: examples longer than this are skipped.
    - `checkpoint_seconds`: minimum number of seconds between two checkpoints.
    - `seed`: random seed.
    - `start`: adapter to continue from: a folder, a GGUF file, or `bundled`, the one that ships with ragfm.
    """

    method: Method = "lora"
    rank: int = 16
    dropout: float = 0.0
    tokens: int = 20
    epochs: float = 1.0
    batch: int = 16
    rate: float | None = None
    warmup: float = 0.05
    validate_every: int | None = None
    patience: int = 3
    most_tokens: int = 2048
    checkpoint_seconds: float = 60.0
    seed: int = 0
    start: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """Expected cost of a training run, extrapolated from a few measured batches.

    - `examples`: number of training examples.
    - `valid_examples`: number of validation examples.
    - `too_long`: number of examples that are skipped because of their length.
    - `tokens`: number of tokens that go through the model in training; shared beginnings count once.
    - `steps`: number of optimizer steps.
    - `seconds`: expected duration, validation included.
    - `peak_mb`: peak memory in MiB, of the process or of the GPU.
    - `disk_mb`: disk space in MiB needed by the checkpoint, the best weights and the result.
    - `tokens_per_second`: measured speed.
    - `learned`: number of trainable parameters.
    - `parameters`: number of all parameters.
    """

    examples: int
    valid_examples: int
    too_long: int
    tokens: int
    steps: int
    seconds: float
    peak_mb: float
    disk_mb: float
    tokens_per_second: float
    learned: int
    parameters: int
