"""Compare readers, adapters, strategies and passage counts on the same questions: quality, time and memory.

Each contender answers in a process of its own, so that its memory can be measured and a failure does not affect the
others. The runs are kept in a folder, and a second comparison resumes them.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bind
from hashlib import blake2b
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.collection import Collection
from ragfm.core.config import Settings
from ragfm.core.errors import DataError, RagfmError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.registry import plugin_and_model
from ragfm.evaluation.answer_evaluation import evaluate_answers
from ragfm.evaluation.metrics import Estimate, StatusCount
from ragfm.evaluation.question_sets import Question
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.model_card import read_licence
from ragfm.models.model_lookup import find_model
from ragfm.rag import Rag

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MEASURE = "f1"
"""The measure that decides which contender is best, over all questions: token F1, and 1 for a right abstention."""
_MAX_NAME_BYTES = 160  # of a file name; file systems allow 255


@dataclass(frozen=True, slots=True)
class Contender:
    """A reader, its adapter, the number of passages that it is given, and its strategy.

    None means the setting of the collection or, for the adapter, the one that ragfm ships for the reader, if any.
    """

    reader: str
    adapter: str | None = None
    k: int | None = None
    strategy: str | None = None

    @property
    def name(self) -> str:
        """A label with all settings that are not None."""
        parts = [self.reader + (f" + {self.adapter}" if self.adapter else "")]
        if self.k:
            parts.append(f"k = {self.k}")
        if self.strategy:
            parts.append(self.strategy)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ContenderResult:
    """The result of a contender. Times of `latency_ms` in milliseconds, memory in MB.

    - `quality`: the measures of answers in the context `retrieved`.
    - `statuses`: how many answers are answered, unsure and withheld, and their precision.
    - `prompt_tokens`, `completion_tokens`, `seconds`: means over answers.
    - `adapter`: the adapter that was loaded, including one that ragfm ships.
    - `data_goes`: where questions and passages are sent.
    - `beside_best`: this run against the best one; None for the best one itself.
    - `error`: why there is no result.
    """

    contender: Contender
    quality: Mapping[str, Estimate] = field(default_factory=dict)
    latency_ms: Mapping[str, Estimate] = field(default_factory=dict)
    statuses: Mapping[str, StatusCount] = field(default_factory=dict)
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    peak_mb: int = 0
    licence: str | None = None
    adapter: str | None = None
    seconds: float = 0.0
    data_goes: str = "nowhere: it runs on this machine"
    beside_best: Difference | None = None
    error: str | None = None


def contender_grid(
    readers: Sequence[str],
    adapters: Sequence[str | None] = (),
    ks: Sequence[int | None] = (),
    strategies: Sequence[str | None] = (),
) -> list[Contender]:
    """All combinations of readers, adapters, passage counts and strategies."""
    return [Contender(*parts) for parts in product(readers, adapters or [None], ks or [None], strategies or [None])]


def compare_readers(
    contenders: Sequence[Contender],
    questions: Sequence[Question],
    collection: str | Path,
    folder: Path,
    *,
    settings: Settings | None = None,
    about: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    partial: bool = False,
) -> list[ContenderResult]:
    """Let all contenders answer the same questions, one after the other; returns the results, best first.

    Contenders that fail come last. The run files are in `folder`; a run that is there is resumed.

    - `settings`: those of the collection by default.
    - `about`: further facts to store in the run files.
    - `progress`: its stage is the contender's name.
    - `partial`: a Ctrl-C leaves out the contenders that have not finished; without a finished one it is raised.

    The processes import the main module, so a script calls this under `if __name__ == "__main__":`. Raises DataError if
    all contenders fail.
    """
    make_output(folder)
    results: dict[Contender, ContenderResult] = {}
    stopped = False
    try:
        for contender in contenders:
            evaluate = bind(
                _evaluate,
                questions=questions,
                collection=collection,
                settings=settings,
                out=run_path(contender, folder),
                about={"reader": contender.reader, **(about or {})},
            )
            results[contender] = _run(contender, evaluate, progress)
    except KeyboardInterrupt:
        if not partial:
            raise
        stopped = True
    succeeded = [result for result in results.values() if result.error is None]
    failed = [result for result in results.values() if result.error is not None]
    if not succeeded:
        if stopped:
            raise KeyboardInterrupt
        raise DataError(f"No reader could be compared: {failed[0].contender.name}: {failed[0].error}")
    succeeded.sort(key=lambda result: -result.quality[f"{MEASURE}, all"].value)
    best = succeeded[0].contender
    rows = []
    for result in succeeded:
        if result.contender != best:
            differences = compare_runs(run_path(best, folder), run_path(result.contender, folder)).differences
            result = replace(result, beside_best=next(row for row in differences if row.measure == MEASURE))
        rows.append(result)
    return [*rows, *failed]


def run_path(contender: Contender, folder: Path) -> Path:
    """The run file of a contender in the folder of a comparison."""
    name = re.sub(r"[^\w.=-]+", "_", contender.name)
    if len(name.encode()) > _MAX_NAME_BYTES:  # names of models may be long paths
        name = f"{blake2b(contender.name.encode(), digest_size=8).hexdigest()}_{name[-_MAX_NAME_BYTES // 4 :]}"
    return folder / f"{name}.jsonl"


def _run(
    contender: Contender, evaluate: Callable[..., ContenderResult], progress: ProgressCallback | None
) -> ContenderResult:
    """The result of `evaluate` in a process of its own."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(contender, evaluate, sender))
    process.start()
    sender.close()
    try:
        while isinstance(message := receiver.recv(), Progress):
            if progress:
                progress(replace(message, stage=contender.name))
        process.join()
        return message if isinstance(message, ContenderResult) else ContenderResult(contender, error=str(message))
    except EOFError:
        process.join()
        code = process.exitcode or 0
        why = f"it ended with exit code {code}"
        if code < 0:
            why = f"it was killed by signal {-code}" + (": out of memory?" if code == -signal.SIGKILL else "")
        return ContenderResult(contender, error=why)
    finally:
        process.terminate()
        process.join()


def _answer(contender: Contender, evaluate: Callable[..., ContenderResult], sender: Connection) -> None:
    """The process of a contender: sends its progress, then a `ContenderResult`, or the reason why there is none."""
    os.dup2(2, 1)  # libraries may print, and standard output is the parent's
    try:
        sender.send(evaluate(contender, progress=sender.send))
    except RagfmError as error:
        sender.send(f"{error.message} {error.hint}".strip())
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or the parent has ended
        sys.exit(1)
    except OSError as error:
        sender.send(f"{error}. Check the path, its permissions and the free space.")
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}. This is a bug in ragfm.")


def _evaluate(
    contender: Contender,
    questions: Sequence[Question],
    collection: str | Path,
    settings: Settings | None,
    out: Path,
    about: dict[str, Any],
    progress: ProgressCallback,
) -> ContenderResult:
    with Collection.open(collection, settings=settings) as handle:
        rag = Rag(handle, **asdict(contender))
        data_goes = getattr(rag.reader, "data_goes", None)
        if data_goes:
            about["data_goes"] = data_goes
        report = evaluate_answers(rag, questions, contexts=("retrieved",), out=out, about=about, progress=progress)
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak_mb = max(usage.ru_maxrss for usage in usages) // 1024
    every = [result.outcomes["retrieved"] for result in report.results]
    outcomes = [outcome for outcome in every if not outcome.error]
    if not outcomes:
        return ContenderResult(contender, error=f"no question could be answered: {every[0].error}")
    licence = None
    with suppress(RagfmError):
        licence = read_licence(find_model(plugin_and_model("readers", contender.reader)[1], "reader"))
    return ContenderResult(
        contender=contender,
        quality=report.measures["retrieved"],
        latency_ms=report.latency_ms["retrieved"],
        statuses=report.statuses,
        prompt_tokens=sum(outcome.prompt_tokens for outcome in outcomes) / len(outcomes),
        completion_tokens=sum(outcome.completion_tokens for outcome in outcomes) / len(outcomes),
        peak_mb=peak_mb,
        licence=licence,
        adapter=report.about["adapter"],
        seconds=sum(outcome.seconds for outcome in outcomes) / len(outcomes),
        **({"data_goes": data_goes} if data_goes else {}),
    )
