"""Train an embedder on questions about a collection, and test whether it finds more than before.

questions ─split─┬→ learn ─mine→ examples ─train→ model
├→ choose: the best epoch
└→ test ─search→ before.run, after.run ─paired test→ better, beyond noise?
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import ProgressCallback, ignore_progress, with_stage
from ragfm.evaluation.retrieval_evaluation import evaluate_retrieval
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.model_lookup import find_model
from ragfm.retrieval.search import Mode
from ragfm.training.adapter_card import CARD, base_facts, base_line, card_text
from ragfm.training.embedder_training import train_embedder
from ragfm.training.hard_negatives import QuestionSplit, load_or_mine
from ragfm.training.output_checks import check_output_folder

RECORD = "ragfm-retriever.json"
BEFORE, AFTER = "before.run", "after.run"
STATE = ".training"
"""The folder of checkpoints and caches, deleted at the end. Its weights are two folders down, so that nothing mistakes
them for the model."""
_MODES: tuple[Mode, ...] = ("hybrid", "dense")
_K = 10  # hits that are evaluated


@dataclass(frozen=True, slots=True)
class RetrieverReport:
    """The result of training a retriever.

    - `base`: name, model, sha256 and licence of the model that training started from.
    - `questions`: number of questions per part of the split.
    - `lessons`: number of training examples.
    - `numbers`: figures of the training loop.
    - `differences`: measures after against before, over the test questions.
    - `dense`: the same for vector search alone.
    - `seconds`: duration of the whole run.
    """

    settings: Mapping[str, Any]
    base: Mapping[str, str]
    questions: Mapping[str, int]
    lessons: int
    numbers: Mapping[str, Any]
    differences: tuple[Difference, ...]
    dense: tuple[Difference, ...]
    seconds: float = 0.0

    @property
    def better(self) -> bool:
        """Whether nDCG@10 is higher than before, beyond noise."""
        return not self.differences[0].noise and self.differences[0].difference > 0


def adapt_retriever(
    collection: Collection,
    split: QuestionSplit,
    out: str | Path,
    *,
    base: str = "bundled",
    epochs: int = 3,
    batch: int = 32,
    rate: float = 3e-5,
    negatives: int = 1,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> RetrieverReport:
    """Train an embedder into the folder `out` and compare retrieval before and after; an interrupted run continues.

    `base` is the embedder to start from; the other parameters are those of `train_embedder`. Checkpoints are in
    `out/.training/fit`. The collection does not change: `reembed` adopts the embedder. Progress has
    the stages "mine negatives", "train", "re-embed" and "search RUN". Raises DataError if there is nothing to train on
    or `out` holds a retriever already, and ModelNotFoundError.
    """
    report_progress = progress or ignore_progress
    start, folder = time.monotonic(), Path(out)
    if (folder / RECORD).exists():
        raise DataError(f"{folder} already contains a retriever.", "Use another folder, or delete this one.")
    path_of_base = find_model(base, "embedder")
    check_output_folder(folder, path_of_base, checkpoint=STATE)
    state = folder / STATE
    make_output(folder)
    (state / "fit").mkdir(parents=True, exist_ok=True)
    settings = {"base": base, "epochs": epochs, "batch": batch, "rate": rate, "negatives": negatives, "seed": seed}
    examples = load_or_mine(collection, split.learn, state / "learn.json", report_progress)
    figures = train_embedder(
        examples=examples,
        valid=load_or_mine(collection, split.choose, state / "choose.json"),
        folder=folder,
        checkpoints=state / "fit",
        base=base,
        epochs=epochs,
        batch=batch,
        rate=rate,
        negatives=negatives,
        seed=seed,
        facts={"retriever": settings},
        progress=report_progress,
    )

    def search(handle: Collection, name: str) -> None:
        for mode in _MODES:
            shown = with_stage(report_progress, f"search {name.removesuffix('.run')}")
            evaluate_retrieval(handle, split.test, mode=mode, k=_K, out=_run_file(folder, name, mode), progress=shown)

    # The test questions are searched in the collection, and in a copy that is embedded by the new model. The copy
    # survives an interruption, so that nothing is embedded twice.
    search(collection, BEFORE)
    path = state / "copy" / ".ragfm"
    backup = path.with_name("backup")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        collection.backup(backup, force=True)
        with Collection.open(path, settings=collection.settings) as copy:
            copy.restore(backup)
        backup.unlink()
    with Collection.open(path, settings=collection.settings) as copy:
        copy.reembed(str(folder), progress=with_stage(report_progress, "re-embed"))
        search(copy, AFTER)

    hybrid, dense = (
        compare_runs(_run_file(folder, BEFORE, mode), _run_file(folder, AFTER, mode)).differences for mode in _MODES
    )
    report = RetrieverReport(
        settings=settings,
        base=base_facts(base, path_of_base, "embedder"),
        questions={name: len(getattr(split, name)) for name in ("learn", "choose", "test")},
        lessons=len(examples),
        numbers=figures,
        differences=hybrid,
        dense=dense,
        seconds=round(time.monotonic() - start, 1),
    )
    lines = [
        "# Embedder for retrieval",
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


def _run_file(folder: Path, name: str, mode: Mode) -> Path:
    return folder / (name if mode == "hybrid" else f"{mode}-{name}")
