"""A retriever adapted: learned from the collection's own questions, and held against what there was before.

questions ─parted─→ learn ─mine→ lessons ─fit→ a model    choose: which epoch, which weight
                    test ─search→ before.run, after.run ─paired test→ is it better, beyond noise?
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.evaluation.retrieval_evaluation import evaluate_retrieval
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.model_lookup import find_model, weights_sha256
from ragfm.retrieval.rerank import load_reranker
from ragfm.training.hard_negatives import Parts, mined_once
from ragfm.training.output_checks import check_folder
from ragfm.training.ranker_models import CrossEncoderRanker, EmbedderRanker, Ranker
from ragfm.training.ranker_trainer import FitSettings, fit

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Reranker, Vectors
    from ragfm.evaluation.question_sets import Question
    from ragfm.retrieval.search import Mode

Part: TypeAlias = Literal["embedder", "reranker"]
PARTS: tuple[Part, ...] = get_args(Part)
RECORD = "ragfm-retriever.json"
BEFORE, AFTER = "before.run", "after.run"
TRAINING = ".training"
"""What is needed to go on, until the end. Weights lie two folders down, where nobody takes them for the model's."""
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Of a reranker's scores, that are tried."""
RATES: Mapping[Part, float] = {"embedder": 3e-5, "reranker": 5e-5}
BATCHES: Mapping[Part, int] = {"embedder": 32, "reranker": 8}
NEGATIVES: Mapping[Part, int] = {"embedder": 1, "reranker": 4}
_K = 10  # places that are measured

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what is being done, and how much of it is."""


@dataclass(frozen=True, slots=True)
class RetrieverSettings:
    """How it is trained; None: the default of the part."""

    part: Part = "embedder"
    base: str = "bundled"
    epochs: int = 3
    batch: int | None = None
    rate: float | None = None
    negatives: int | None = None
    seed: int = 0

    @property
    def fitting(self) -> FitSettings:
        """What `fit` needs of it."""
        return FitSettings(
            self.epochs, self.batch or BATCHES[self.part], self.rate or RATES[self.part], seed=self.seed
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetrieverReport:
    """What came out. `differences` are after against before, over the `test` questions that nothing was learned from.

    `dense` has those of a search by vectors alone, for an embedder. `weight` is what a reranker's scores should count
    beside the search's own; `by_weight` has nDCG@10 of the questions that chose it.
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
        """Whether nDCG@10 is higher, beyond noise."""
        first = self.differences[0]
        return not first.noise and first.difference > 0


def adapt_retriever(
    collection: Collection, parts: Parts, out: str | Path, settings: RetrieverSettings = RetrieverSettings(), *,
    progress: Progress = lambda *_: None,
) -> RetrieverReport:  # fmt: skip
    """Train into the folder `out`, and compare; an interrupted run goes on there.

    Nothing of the collection changes: an embedder is adopted by `reembed`, a reranker by `[search] reranker`. Raises
    DataError where nothing can be learned from, or `out` holds a retriever already.
    """
    start, folder = time.monotonic(), Path(out)
    if (folder / RECORD).exists():
        raise DataError(f"{folder} holds a retriever already.", "Name another folder, or remove it.")
    base = find_model(settings.base, "embedder" if settings.base == "bundled" else settings.part)
    check_folder(folder, base, goes_on=TRAINING)
    ranker = _ranker(settings)
    state = folder / TRAINING
    make_output(folder)
    (state / "fit").mkdir(parents=True, exist_ok=True)
    lessons = mined_once(collection, parts.learn, state / "learn.json", _told(progress, "mining"))
    valid = mined_once(collection, parts.choose, state / "choose.json")
    numbers = fit(ranker, lessons, valid, state / "fit", settings.fitting, facts={"retriever": asdict(settings)},
                  progress=_told(progress, "learning"))  # fmt: skip
    ranker.save(folder)
    compare = _compare_embedder if settings.part == "embedder" else _compare_reranker
    found = compare(collection, parts, folder, progress)
    report = RetrieverReport(
        settings=settings,
        base={"name": settings.base, "sha256": weights_sha256(base)},
        questions={name: len(getattr(parts, name)) for name in ("learn", "choose", "test")},
        lessons=len(lessons),
        numbers=numbers,
        differences=_differences(folder),
        seconds=round(time.monotonic() - start, 1),
        **found,
    )
    write_durably(folder / RECORD, json.dumps({"format": 1, **asdict(report)}, indent=1).encode() + b"\n")
    shutil.rmtree(state)
    return report


# --- Inside ------------------------------------------------------------------------------------------------------


def _ranker(settings: RetrieverSettings) -> Ranker:
    kind = EmbedderRanker if settings.part == "embedder" else CrossEncoderRanker
    return kind(settings.base, NEGATIVES[settings.part] if settings.negatives is None else settings.negatives)


def _compare_embedder(collection: Collection, parts: Parts, folder: Path, progress: Progress) -> dict[str, Any]:
    """All runs are written; after is a copy of the collection with the new embedder."""
    modes: tuple[Mode, ...] = ("hybrid", "dense")
    for mode in modes:
        _run(collection, parts.test, _file(folder, BEFORE, mode), progress, mode)
    with _copied(collection, folder / TRAINING / "copy") as copy:
        copy.reembed(str(folder), progress=_told(progress, "embedding"))
        for mode in modes:
            _run(copy, parts.test, _file(folder, AFTER, mode), progress, mode)
    return {"dense": _differences(folder, "dense")}


def _compare_reranker(collection: Collection, parts: Parts, folder: Path, progress: Progress) -> dict[str, Any]:
    """The weight is chosen by some questions, and both runs are over others."""
    reranker = _Remembering(load_reranker(str(folder)))
    values = {}
    for weight in WEIGHTS:
        with _reranked(collection, reranker, weight) as handle:
            report = evaluate_retrieval(handle, parts.choose, k=_K, progress=_told(progress, f"weight {weight}"))
            values[weight] = report.measures[f"nDCG@{_K}"].value
    best = max(WEIGHTS, key=lambda weight: values[weight])
    _run(collection, parts.test, folder / BEFORE, progress)
    with _reranked(collection, reranker, best) as handle:
        _run(handle, parts.test, folder / AFTER, progress)
    return {"weight": best, "by_weight": {str(weight): round(value, 4) for weight, value in values.items()}}


def _differences(folder: Path, mode: Mode = "hybrid") -> tuple[Difference, ...]:
    return compare_runs(_file(folder, BEFORE, mode), _file(folder, AFTER, mode)).differences


def _file(folder: Path, run: str, mode: Mode) -> Path:
    return folder / (run if mode == "hybrid" else f"{mode}-{run}")


def _run(
    collection: Collection, questions: Sequence[Question], out: Path, progress: Progress, mode: Mode = "hybrid"
) -> None:
    told = _told(progress, f"asking, {out.stem}")
    evaluate_retrieval(collection, questions, mode=mode, k=_K, out=out, progress=told)


@contextmanager
def _copied(collection: Collection, place: Path) -> Iterator[Collection]:
    """A copy, which stays after an interruption so that nothing is embedded twice."""
    from ragfm.collection import Collection

    path = place / ".ragfm"
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        collection.backup(place / "backup", force=True)
        with Collection.open(path, settings=collection.settings) as copy:
            copy.restore(place / "backup")
        (place / "backup").unlink()
    with Collection.open(path, settings=collection.settings) as copy:
        yield copy


@contextmanager
def _reranked(collection: Collection, reranker: Reranker, weight: float) -> Iterator[Collection]:
    from ragfm.collection import Collection

    search = collection.settings.search.model_copy(update={"rerank_weight": weight, "rerank_budget_ms": None})
    settings = collection.settings.model_copy(update={"search": search})
    with Collection.open(collection.path, settings=settings, embedder=collection.embedder, reranker=reranker) as handle:
        yield handle


class _Remembering:
    """A reranker that scores each pair once."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self._known: dict[tuple[str, str], float] = {}

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """Scores; there is no budget."""
        import numpy as np

        new = [text for text in dict.fromkeys(texts) if (query, text) not in self._known]
        if new:
            scores = self._reranker.rerank(query, new).tolist()
            self._known |= {(query, text): score for text, score in zip(new, scores, strict=True)}
        return np.array([self._known[query, text] for text in texts], dtype=np.float32)


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
