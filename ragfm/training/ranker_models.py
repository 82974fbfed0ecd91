"""Trainable ranking models: an embedder and a cross-encoder with the losses of sentence-transformers.

`ragfm.training.ranker_trainer` has the training loop: the library's own trainer needs `datasets` and stores checkpoints
as pickles.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ragfm.models.model_lookup import find_model, hide_progress_bar, silence_kernel_warning
from ragfm.training.checkpoint import translate_safetensors_errors
from ragfm.training.hard_negatives import RankingExample

_CHUNK = 16  # texts that go through the network at once, which bounds the memory
_UNCHUNKED = 96  # texts of a batch up to which it is not chunked: chunks take a third more time
_POSITIVE_LABEL = 10.0  # so high that softmax puts nearly all weight on it


class Ranker(ABC):
    """A model that `train_ranker` can train.

    - `model`: the torch module.
    - `negatives`: number of hard negatives per example.
    """

    def __init__(self, model: Any, negatives: int) -> None:
        self.model, self.negatives = model, negatives
        # Dropout in attention rules out the fused kernel, and takes as long as all matrices do on a CPU.
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and name.endswith("attention.self.dropout"):
                module.p = 0.0

    @abstractmethod
    def loss(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """The mean loss of a batch, for backpropagation."""

    def save(self, folder: Path) -> None:
        """Write the model as sentence-transformers reads it."""
        with hide_progress_bar(), translate_safetensors_errors(folder):
            self.model.save_pretrained(str(folder), create_model_card=False)


class EmbedderRanker(Ranker):
    """An embedder, trained to put each question nearer to its passage than to the other passages of the batch.

    The loss is InfoNCE (Henderson et al. 2017); for large batches embeddings are computed in chunks (GradCache, Gao et
    al. 2021).
    """

    def __init__(self, base: str, negatives: int) -> None:
        silence_kernel_warning()
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses

        with hide_progress_bar():
            super().__init__(SentenceTransformer(str(find_model(base, "embedder")), local_files_only=True), negatives)
        self._loss = losses.MultipleNegativesRankingLoss(self.model)
        self._chunked_loss = losses.CachedMultipleNegativesRankingLoss(self.model, mini_batch_size=_CHUNK)

    def loss(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """The mean loss; all examples count as many negatives as the one with the fewest."""
        negatives = min(len(example.negatives) for example in examples)
        columns = [[example.question for example in examples], [example.positive for example in examples]]
        columns += [[example.negatives[index] for example in examples] for index in range(negatives)]
        features = []
        for number, texts in enumerate(columns):
            prompt = self.model.prompts.get("document" if number else "query") or None
            values = self.model.preprocess(texts, prompt=prompt)
            device = self.model.device
            features.append({key: value.to(device) if hasattr(value, "to") else value for key, value in values.items()})
        compute = self._loss if len(columns) * len(examples) <= _UNCHUNKED else self._chunked_loss
        loss: torch.Tensor = compute(features, None)
        return loss


class CrossEncoderRanker(Ranker):
    """A cross-encoder, trained to rank a question's passage above its hard negatives.

    The loss is a softmax over the list (ListNet, Cao et al. 2007; for reranking Gao et al. 2021). The base may be an
    embedder, whose body gets a new head.
    """

    def __init__(self, base: str, negatives: int) -> None:
        silence_kernel_warning()
        from sentence_transformers import CrossEncoder
        from sentence_transformers.cross_encoder.losses import ListNetLoss

        with hide_progress_bar(), no_new_head_warning():
            model = CrossEncoder(
                str(find_model(base, "embedder" if base == "bundled" else "reranker")),
                num_labels=1,
                activation_fn=torch.nn.Identity(),
                local_files_only=True,
            )
        super().__init__(model, negatives)
        self._loss = ListNetLoss(self.model, mini_batch_size=_CHUNK)

    def loss(self, examples: Sequence[RankingExample]) -> torch.Tensor:
        """The mean loss; the positive comes first in each list."""
        questions = [example.question for example in examples]
        lists = [[example.positive, *example.negatives] for example in examples]
        labels = [torch.tensor([_POSITIVE_LABEL] + [0.0] * len(example.negatives)) for example in examples]
        loss: torch.Tensor = self._loss([questions, lists], labels)
        return loss


@contextmanager
def no_new_head_warning() -> Iterator[None]:
    """Silence the warning of transformers that the head is newly initialized, which is intended."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
