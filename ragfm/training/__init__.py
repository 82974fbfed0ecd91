"""Adaptation: the reader is taught to answer from your documents, and to say when they have no answer.

    questions ─data→ examples ─train→ adapter (PEFT) ─export→ GGUF adapter, or whole weights ─ask, eval answers→ better?

`ragfm.training.trainer` and `ragfm.training.adapter_export` have the other two steps; they need torch and the
extra `train`.
"""

from __future__ import annotations

from ragfm.training.dataset import Dataset, Recipe, with_examples, write_dataset
from ragfm.training.examples import Example, read_examples
from ragfm.training.held_out import HeldOut, held_out
from ragfm.training.log_examples import logged_examples, rated_entries
from ragfm.training.raft import build_examples

__all__ = [
    "Dataset",
    "Example",
    "HeldOut",
    "Recipe",
    "build_examples",
    "held_out",
    "logged_examples",
    "rated_entries",
    "read_examples",
    "with_examples",
    "write_dataset",
]
