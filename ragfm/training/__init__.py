"""Adaptation: train the reader and the retriever on your own documents.

    questions ─make_dataset→ examples ─train→ adapter (PEFT) ─export_adapter→ GGUF adapter, or merged weights

    from ragfm.training import MethodSettings, TrainSettings, train

    train("examples", "bundled", "my-adapter", settings=TrainSettings(MethodSettings("lora", rank=8), epochs=2))

Training and export need torch and the extra `train`. This package does not load torch before they are used;
`ragfm.training.adapter_export`, `.refresh` and `.retriever_training` have the further steps.
"""

from __future__ import annotations

import os

from ragfm.training.dataset import Dataset, Recipe, add_examples, write_dataset
from ragfm.training.examples import Example, read_examples
from ragfm.training.held_out import HeldOut, load_held_out
from ragfm.training.log_examples import examples_from_log, rated_entries
from ragfm.training.raft import build_raft_dataset
from ragfm.training.train_settings import MethodSettings, TrainingEstimate, TrainSettings
from ragfm.training.training_data import make_dataset
from ragfm.training.training_run import TrainingResult, estimate_training, train

__all__ = [
    "Dataset",
    "Example",
    "HeldOut",
    "MethodSettings",
    "Recipe",
    "TrainSettings",
    "TrainingEstimate",
    "TrainingResult",
    "add_examples",
    "build_raft_dataset",
    "estimate_training",
    "examples_from_log",
    "load_held_out",
    "make_dataset",
    "rated_entries",
    "read_examples",
    "train",
    "write_dataset",
]

# Threads of OpenMP spin for milliseconds while they wait for each other, which slows training down on a busy machine.
# OpenMP reads the variable when torch is loaded. See `ragfm.models.llama_library`.
os.environ.setdefault("GOMP_SPINCOUNT", "300")
