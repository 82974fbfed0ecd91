"""Adaptation: train the reader and the retriever on your own documents.

    questions ─make_dataset→ examples ─train→ adapter (PEFT) ─export_adapter→ GGUF adapter, or merged weights

    from ragfm.training import TrainSettings, train

    train("examples", "bundled", "my-adapter", settings=TrainSettings("lora", rank=8, epochs=2))

Training and export need torch and the extra `train`. This package does not load torch before they are used.

training_data           a dataset from questions and the answer log
dataset, examples       datasets and their data card; the examples in them
raft                    examples from questions with known answers
unanswerable_questions  near misses: questions that no passage answers
log_examples            examples from the answer log
held_out                questions and texts that are kept out of training, for tests
training_run            train an adapter, or estimate the cost
train_settings          its settings and estimate
trainer                 train a reader
training_loop           the loop of readers and embedders
training_batches        batches and their loss
base_model              the model that is trained
methods                 LoRA and the other methods of fine-tuning
checkpoint              the state of a training run on disk
adapter_folder          the folder with the finished adapter
adapter_card            its model card
adapter_export          adapters in other formats
gguf_lora               GGUF adapters, as PEFT folders too, and whether a GGUF file holds the weights of a model
output_checks           never replace files that ragfm did not write
retriever_training      train an embedder, and test it
hard_negatives          its training examples
embedder_training       its loss and its epochs
"""

from __future__ import annotations

import os

from ragfm.evaluation.log_questions import rated_entries
from ragfm.training.dataset import Dataset, Recipe, write_dataset
from ragfm.training.examples import Example, read_examples
from ragfm.training.held_out import HeldOut, load_held_out
from ragfm.training.log_examples import examples_from_log
from ragfm.training.raft import examples_from_questions
from ragfm.training.train_settings import TrainingEstimate, TrainSettings
from ragfm.training.training_data import make_dataset
from ragfm.training.training_run import estimate_training, train

__all__ = [
    "Dataset",
    "Example",
    "HeldOut",
    "Recipe",
    "TrainSettings",
    "TrainingEstimate",
    "estimate_training",
    "examples_from_log",
    "examples_from_questions",
    "load_held_out",
    "make_dataset",
    "rated_entries",
    "read_examples",
    "train",
    "write_dataset",
]

# Idle OpenMP threads of torch sleep after microseconds instead of milliseconds; read while torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "300")
