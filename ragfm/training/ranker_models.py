"""Models that rank, as they learn: an embedder and a cross-encoder, by the losses of sentence-transformers.

The training loop is that of `ragfm.training.ranker_trainer`: the library's own trainer needs `datasets` and keeps
checkpoints as pickles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ragfm.models.model_lookup import find_model, hide_progress_bar, silence_kernel_warning
from ragfm.training.checkpoint import saving
from ragfm.training.hard_negatives import Lesson

_AT_ONCE = 16  # texts that go through the network at once, which bounds the memory
_FEW = 96  # texts of a batch that go through it together: to keep no activations takes a third more time
_ALL = 10.0  # a label so high that softmax puts all on it


class Ranker(Protocol):
    """What `fit` trains."""

    model: Any
    negatives: int

    def loss(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """The mean loss of a batch, to be taken back."""

    def save(self, folder: Path) -> None:
        """Write the model as its library reads it."""


class EmbedderRanker:
    """An embedder: each question should be nearer to its passage than to all others of the batch, hard ones among them.

    InfoNCE (Henderson et al. 2017); in large batches over embeddings computed a few at a time (Gao et al. 2021).
    """

    def __init__(self, base: str, negatives: int) -> None:
        silence_kernel_warning()
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses

        with hide_progress_bar():
            self.model = SentenceTransformer(str(find_model(base, "embedder")), local_files_only=True)
        self.negatives = negatives
        _without_attention_dropout(self.model)
        self._together = losses.MultipleNegativesRankingLoss(self.model)
        self._in_turn = losses.CachedMultipleNegativesRankingLoss(self.model, mini_batch_size=_AT_ONCE)

    def loss(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """All lessons count as many negatives as the one that has the fewest."""
        negatives = min(len(lesson.wrong) for lesson in lessons)
        columns = [[lesson.question for lesson in lessons], [lesson.right for lesson in lessons]]
        columns += [[lesson.wrong[at] for lesson in lessons] for at in range(negatives)]
        features = [self._features(texts, "document" if at else "query") for at, texts in enumerate(columns)]
        loss_of = self._together if len(columns) * len(lessons) <= _FEW else self._in_turn
        loss: torch.Tensor = loss_of(features, None)
        return loss

    def save(self, folder: Path) -> None:
        """As sentence-transformers reads it."""
        with hide_progress_bar(), saving(folder):
            self.model.save_pretrained(str(folder), create_model_card=False)

    def _features(self, texts: list[str], prompt: str) -> dict[str, Any]:
        features = self.model.preprocess(texts, prompt=self.model.prompts.get(prompt) or None)
        return {key: value.to(self.model.device) if hasattr(value, "to") else value for key, value in features.items()}


class CrossEncoderRanker:
    """A cross-encoder: of a question's passage and its hard negatives, read with the question, the passage should win.

    Softmax over the list (Gao et al. 2021, Cao et al. 2007). The base may be an embedder, whose body gets a new head.
    """

    def __init__(self, base: str, negatives: int) -> None:
        silence_kernel_warning()
        from sentence_transformers import CrossEncoder
        from sentence_transformers.cross_encoder.losses import ListNetLoss

        with hide_progress_bar(), _without_report():
            self.model = CrossEncoder(
                str(find_model(base, "embedder" if base == "bundled" else "reranker")), num_labels=1,
                activation_fn=torch.nn.Identity(), local_files_only=True,
            )  # fmt: skip
        self.negatives = negatives
        _without_attention_dropout(self.model)
        self._loss = ListNetLoss(self.model, mini_batch_size=_AT_ONCE)

    def loss(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """The passage that is right stands first in each list."""
        questions = [lesson.question for lesson in lessons]
        lists = [[lesson.right, *lesson.wrong] for lesson in lessons]
        labels = [torch.tensor([_ALL] + [0.0] * len(lesson.wrong)) for lesson in lessons]
        loss: torch.Tensor = self._loss([questions, lists], labels)
        return loss

    def save(self, folder: Path) -> None:
        """As sentence-transformers reads it."""
        with hide_progress_bar(), saving(folder):
            self.model.save_pretrained(str(folder), create_model_card=False)


@contextmanager
def _without_report() -> Iterator[None]:
    """Of a new head, which is to be new."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _without_attention_dropout(model: torch.nn.Module) -> None:
    """It takes as long as all matrices do on a processor, since it forbids the fused kernel of attention."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and name.endswith("attention.self.dropout"):
            module.p = 0.0
