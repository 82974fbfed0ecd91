"""Train an embedder or a reranker on questions about a collection, and test whether it gets better.

questions ─split─┬→ learn ─mine→ examples ─train→ model
├→ choose: the best epoch, and the weight of a reranker
└→ test ─search→ before.run, after.run ─paired test→ better, beyond noise?
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError, UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import ProgressCallback, ignore_progress, with_stage
from ragfm.core.types import Reranker, Vectors
from ragfm.evaluation.question_sets import Question
from ragfm.evaluation.retrieval_evaluation import evaluate_retrieval
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.model_lookup import find_model
from ragfm.retrieval.rerank import load_reranker
from ragfm.retrieval.search import Mode
from ragfm.store.collection_store import Store
from ragfm.training.adapter_card import CARD, base_facts, base_line, card_text
from ragfm.training.hard_negatives import QuestionSplit, load_or_mine
from ragfm.training.output_checks import check_output_folder
from ragfm.training.ranker_models import CrossEncoderRanker, EmbedderRanker, Ranker
from ragfm.training.ranker_trainer import train_ranker

Part: TypeAlias = Literal["embedder", "reranker"]
RECORD = "ragfm-retriever.json"
BEFORE, AFTER = "before.run", "after.run"
STATE = ".training"
"""The folder of checkpoints and caches, deleted at the end. Its weights are two folders down, so that nothing mistakes
them for the model."""
RERANK_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""The weights of a reranker's scores that are tried."""
_PARTS: Mapping[Part, tuple[Callable[[str, int], Ranker], int, float, int]] = {
    "embedder": (EmbedderRanker, 32, 3e-5, 1),
    "reranker": (CrossEncoderRanker, 8, 5e-5, 4),
}
"""The model of each part, and its default batch size, learning rate, and number of hard negatives."""
_K = 10  # hits that are evaluated


@dataclass(frozen=True, slots=True)
class RetrieverSettings:
    """Settings of a retriever's training run. None is the default of the part.

    - `part`: `embedder` or `reranker`.
    - `base`: name or path of the model to start from.
    - `epochs`: number of passes over the examples.
    - `batch`: number of questions per step.
    - `rate`: peak learning rate.
    - `negatives`: number of hard negatives per question.
    - `seed`: random seed.
    """

    part: Part = "embedder"
    base: str = "bundled"
    epochs: int = 3
    batch: int | None = None
    rate: float | None = None
    negatives: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RetrieverReport:
    """The result of training a retriever.

    - `base`: name, model, sha256 and licence of the model that training started from.
    - `questions`: number of questions per part of the split.
    - `lessons`: number of training examples.
    - `numbers`: figures of the training loop.
    - `differences`: measures after against before, over the test questions.
    - `dense`: the same for vector search alone, for an embedder.
    - `weight`: the best weight of a reranker's scores in search.
    - `by_weight`: nDCG@10 by weight, over the questions that chose it.
    - `seconds`: duration of the whole run.
    """

    settings: RetrieverSettings
    base: Mapping[str, str]
    questions: Mapping[str, int]
    lessons: int
    numbers: Mapping[str, Any]
    differences: tuple[Difference, ...]
    dense: tuple[Difference, ...] = ()
    weight: float | None = None
    by_weight: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def better(self) -> bool:
        """Whether nDCG@10 is higher than before, beyond noise."""
        return not self.differences[0].noise and self.differences[0].difference > 0


def adapt_retriever(
    collection: Collection,
    split: QuestionSplit,
    out: str | Path,
    settings: RetrieverSettings = RetrieverSettings(),
    *,
    progress: ProgressCallback | None = None,
) -> RetrieverReport:
    """Train a retriever into the folder `out` and compare retrieval before and after; an interrupted run continues.

    Checkpoints are in `out/.training/fit`. The collection does not change: `reembed` adopts an embedder, `[search]
    reranker` in ragfm.toml a reranker. Progress has the stages "mine negatives", "train",
    "re-embed", "rerank weight W" and "search RUN". Raises DataError if there is nothing to train on or `out` holds a
    retriever already, UnsupportedError for a base that cannot be trained, and ModelNotFoundError.
    """
    report_progress = progress or ignore_progress
    start, folder = time.monotonic(), Path(out)
    if (folder / RECORD).exists():
        raise DataError(f"{folder} already contains a retriever.", "Use another folder, or delete this one.")
    part = settings.part
    base = find_model(settings.base, "embedder" if settings.base == "bundled" else part)
    if base.is_file():
        raise UnsupportedError(
            f"'{base}' is a GGUF file, which cannot be trained.", "Use a sentence-transformers folder."
        )
    check_output_folder(folder, base, checkpoint=STATE)
    ranker_class, batch, rate, negatives = _PARTS[part]
    ranker = ranker_class(settings.base, negatives if settings.negatives is None else settings.negatives)
    state = folder / STATE
    make_output(folder)
    (state / "fit").mkdir(parents=True, exist_ok=True)
    examples = load_or_mine(collection, split.learn, state / "learn.json", report_progress)
    figures = train_ranker(
        ranker,
        examples,
        load_or_mine(collection, split.choose, state / "choose.json"),
        state / "fit",
        epochs=settings.epochs,
        batch=settings.batch or batch,
        rate=settings.rate or rate,
        seed=settings.seed,
        facts={"retriever": asdict(settings)},
        progress=report_progress,
    )
    ranker.save(folder)
    compare = _compare_embedder if part == "embedder" else _compare_reranker
    comparison = compare(collection, split, folder, report_progress)  # writes the runs that `_differences` reads
    report = RetrieverReport(
        settings=settings,
        base=base_facts(settings.base, base, "embedder"),
        questions={name: len(getattr(split, name)) for name in ("learn", "choose", "test")},
        lessons=len(examples),
        numbers=figures,
        differences=_differences(folder),
        seconds=round(time.monotonic() - start, 1),
        **comparison,
    )
    lines = [
        f"# {part.capitalize()} for retrieval",
        "",
        "Fine-tuned with ragfm on questions about a collection, and tested on questions about other documents.",
        "",
        base_line(report.base),
        "- Questions: {learn} to train, {choose} to choose the epoch, {test} to test".format(**report.questions),
        "",
        "| measure | before | after | difference, 95 % interval |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.measure} | {row.a:.3f} | {row.b:.3f} | {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}] |"
        for row in report.differences
    ]
    card = card_text({"base_model": report.base["model"], "tags": ["rag", "ragfm"]}, lines)
    write_durably(folder / CARD, card.encode())
    write_durably(folder / RECORD, json.dumps({"format": 1, **asdict(report)}, indent=1).encode() + b"\n")
    shutil.rmtree(state)
    return report


def _compare_embedder(
    collection: Collection, split: QuestionSplit, folder: Path, progress: ProgressCallback
) -> dict[str, Any]:
    """Search the test questions in the collection, and in a copy that is embedded by the new model."""
    modes: tuple[Mode, ...] = ("hybrid", "dense")
    for mode in modes:
        _search(collection, split.test, _run_file(folder, BEFORE, mode), progress, mode)
    # The copy survives an interruption, so that nothing is embedded twice.
    path = folder / STATE / "copy" / ".ragfm"
    backup = path.with_name("backup")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collection.backup(backup, force=True)
        with Collection.open(path, settings=collection.settings) as copy:
            copy.restore(backup)
        backup.unlink()
    with Collection.open(path, settings=collection.settings) as copy:
        copy.reembed(str(folder), progress=with_stage(progress, "re-embed"))
        for mode in modes:
            _search(copy, split.test, _run_file(folder, AFTER, mode), progress, mode)
    return {"dense": _differences(folder, "dense")}


def _compare_reranker(
    collection: Collection, split: QuestionSplit, folder: Path, progress: ProgressCallback
) -> dict[str, Any]:
    """Choose the weight of the reranker by the `choose` questions, then search the test questions with and without."""
    reranker = _CachedReranker(load_reranker(str(folder)))
    scores: dict[float, float] = {}
    for weight in RERANK_WEIGHTS:
        with _open_reranked(collection, reranker, weight) as handle:
            report = evaluate_retrieval(
                handle, split.choose, k=_K, progress=with_stage(progress, f"rerank weight {weight}")
            )
        scores[weight] = report.measures[f"nDCG@{_K}"].value
    best = max(RERANK_WEIGHTS, key=lambda weight: scores[weight])
    _search(collection, split.test, folder / BEFORE, progress)
    with _open_reranked(collection, reranker, best) as handle:
        _search(handle, split.test, folder / AFTER, progress)
    return {"weight": best, "by_weight": {str(weight): round(score, 4) for weight, score in scores.items()}}


def _search(
    collection: Collection, questions: Sequence[Question], out: Path, progress: ProgressCallback, mode: Mode = "hybrid"
) -> None:
    report = with_stage(progress, f"search {out.stem}")
    evaluate_retrieval(collection, questions, mode=mode, k=_K, out=out, progress=report)


def _run_file(folder: Path, name: str, mode: Mode) -> Path:
    return folder / (name if mode == "hybrid" else f"{mode}-{name}")


def _differences(folder: Path, mode: Mode = "hybrid") -> tuple[Difference, ...]:
    return compare_runs(_run_file(folder, BEFORE, mode), _run_file(folder, AFTER, mode)).differences


def _open_reranked(collection: Collection, reranker: Reranker, weight: float) -> Collection:
    search = collection.settings.search.model_copy(update={"rerank_weight": weight, "rerank_budget_ms": None})
    settings = collection.settings.model_copy(update={"search": search})
    return Collection(Store(collection.store.database, settings, collection.embedder, reranker))


class _CachedReranker:
    """A reranker that scores each pair of query and text once."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self._scores: dict[tuple[str, str], float] = {}

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if (query, text) not in self._scores]
        if new:
            scores = self._reranker.rerank(query, new).tolist()
            self._scores |= {(query, text): score for text, score in zip(new, scores, strict=True)}
        return np.array([self._scores[query, text] for text in texts], dtype=np.float32)
