"""Adaptation: the reader is taught to answer from your documents, and to say when they have no answer.

    questions ─data→ examples ─train→ adapter (PEFT) ─export→ GGUF adapter, or whole weights ─ask, eval answers→ better?

`ragfm.adapt.train` and `ragfm.adapt.export` have the other two steps; they need torch and the extra `train`.
"""

from __future__ import annotations

from ragfm.adapt.examples import Example, read_examples
from ragfm.adapt.leaks import HeldOut, held_out
from ragfm.adapt.raft import Dataset, Recipe, build_examples, write_dataset

__all__ = [
    "Dataset",
    "Example",
    "HeldOut",
    "Recipe",
    "build_examples",
    "held_out",
    "read_examples",
    "write_dataset",
]
