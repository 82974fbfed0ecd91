"""Compare readers, adapters, strategies and passage counts on the same questions: quality, time, memory and cost.

Each contender answers in a process of its own (`comparison_worker`), so that its memory can be measured and a failure
does not affect the others. The runs are kept in a folder, and a second comparison resumes them.
"""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from ragfm.core.errors import DataError, RagfmError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.registry import plugin_and_model
from ragfm.evaluation.metrics import Estimate, StatusCount
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.adapters import read_record
from ragfm.models.model_card import read_licence
from ragfm.models.model_lookup import find_model

MEASURE = "f1"
"""The measure that decides which contender is best, over all questions: token F1, and 1 for a right abstention."""
INTERRUPTED = 130
"""Exit code of a worker after a Ctrl-C."""
_WORKER = "ragfm.evaluation.comparison_worker"
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
class QuestionSource:
    """The questions of a comparison, and the collection that answers them.

    - `data`: path of the questions; `split` as in `load_questions`.
    - `limit`: number of questions, sampled; all by default.
    - `collection`: folder of the collection, unless the data includes its documents; its settings apply to both.
    - `keep`: folder for the collection of the data's documents; temporary by default.
    - `embedder`: embedder of that collection.
    """

    data: str
    collection: str = ".ragfm"
    keep: str | None = None
    embedder: str | None = None
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class ContenderResult:
    """The result of a contender. Times of `latency_ms` in milliseconds, memory in MB.

    - `quality`: the measures of answers in the context `retrieved`.
    - `statuses`: how many answers are answered, unsure and withheld, and their precision.
    - `prompt_tokens`, `completion_tokens`, `seconds`: means over answers.
    - `cost`: cost of 1,000 answers, in the currency of the price.
    - `adapter`: the adapter that was loaded, including one that ragfm ships.
    - `training_seconds`: time that training the adapter took.
    - `break_even`: by the name of a contender without an adapter, the number of answers after which the training
      has paid for itself: by cost, or by time if there is no price.
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
    cost: float | None = None
    licence: str | None = None
    adapter: str | None = None
    seconds: float = 0.0
    training_seconds: float | None = None
    break_even: Mapping[str, int] = field(default_factory=dict)
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
    source: QuestionSource,
    folder: Path,
    *,
    price_per_hour: float | None = None,
    progress: ProgressCallback | None = None,
    partial: bool = False,
) -> list[ContenderResult]:
    """Let all contenders answer the same questions, one after the other; returns the results, best first.

    Contenders that fail come last. The run files are in `folder`; a run that is there is resumed. `price_per_hour` is
    the price of this machine. The stage of `progress` is the contender's name. With `partial`, a Ctrl-C leaves out the
    contenders that have not finished; without a finished one it is raised. Raises DataError if all contenders fail.
    """
    make_output(folder)
    results: dict[Contender, ContenderResult] = {}
    stopped = False
    try:
        for contender in contenders:
            results[contender] = _run(contender, source, folder, price_per_hour, progress)
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
        row = replace(result, break_even=break_even(result, results.values(), price_per_hour))
        if result.contender != best:
            differences = compare_runs(run_path(best, folder), run_path(result.contender, folder)).differences
            row = replace(row, beside_best=next(one for one in differences if one.measure == MEASURE))
        rows.append(row)
    return [*rows, *failed]


def break_even(
    result: ContenderResult, others: Iterable[ContenderResult], price_per_hour: float | None
) -> dict[str, int]:
    """The number of answers after which the training of a contender's adapter has paid for itself.

    It is compared with each contender without an adapter, by cost if there is a price, else by time. Contenders that
    are not more expensive (or slower) are left out.
    """
    if result.training_seconds is None:
        return {}
    answers = {}
    for other in others:
        if other.adapter or other.error:
            continue
        spent, saved = result.training_seconds, other.seconds - result.seconds
        if price_per_hour is not None and result.cost is not None and other.cost is not None:
            spent, saved = spent / 3600 * price_per_hour, (other.cost - result.cost) / 1000
        if saved > 0:
            answers[other.contender.name] = math.ceil(spent / saved)
    return answers


def run_path(contender: Contender, folder: Path) -> Path:
    """The run file of a contender in the folder of a comparison."""
    name = re.sub(r"[^\w.=-]+", "_", contender.name)
    if len(name.encode()) > _MAX_NAME_BYTES:  # names of models may be long paths
        name = f"{blake2b(contender.name.encode(), digest_size=8).hexdigest()}_{name[-_MAX_NAME_BYTES // 4 :]}"
    return folder / f"{name}.jsonl"


def _run(
    contender: Contender,
    source: QuestionSource,
    folder: Path,
    price_per_hour: float | None,
    progress: ProgressCallback | None,
) -> ContenderResult:
    path = run_path(contender, folder)
    result: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as job,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr,
    ):
        json.dump({"contender": asdict(contender), "source": asdict(source), "out": str(path)}, job)
        job.seek(0)
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", _WORKER], stdin=job, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:  # the worker died within a line
                    continue
                result, error = message.get("result", result), message.get("error", error)
                if progress and "progress" in message:
                    progress(Progress(contender.name, message["progress"]["done"], message["progress"]["total"]))
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        stderr.seek(0)
        last_line = next((line.strip() for line in reversed(stderr.readlines()) if line.strip()), "")
    if error:
        return ContenderResult(contender, error=f"{error['message']} {error['hint']}".strip())
    if result is None or process.returncode == INTERRUPTED:
        why = f"it ended with exit code {process.returncode}"
        if process.returncode < 0:
            why = f"it was killed by signal {-process.returncode}"
            why += ": out of memory?" if process.returncode == -signal.SIGKILL else ""
        return ContenderResult(contender, error=f"{why}; the last line it printed: {last_line}" if last_line else why)

    # Means and costs from the run file, and the worker's own measures.
    records = [json.loads(line)["outcomes"]["retrieved"] for line in path.read_text("utf-8").splitlines()[1:]]
    outcomes = [outcome for outcome in records if not outcome["error"]]
    if not outcomes:
        return ContenderResult(contender, error=f"no question could be answered: {records[0]['error']}")
    prompt_tokens, completion_tokens, seconds = (
        sum(outcome[key] for outcome in outcomes) / len(outcomes)
        for key in ("prompt_tokens", "completion_tokens", "seconds")
    )
    costs = [outcome.get("cost") for outcome in outcomes if outcome["prompt_tokens"]]
    if costs and None not in costs:  # a server's price, else the time of this machine
        cost: float | None = 1000 * sum(map(float, costs)) / len(outcomes)
    else:
        cost = None if price_per_hour is None else 1000 * price_per_hour * seconds / 3600
    licence = training_seconds = None
    with suppress(RagfmError):
        licence = read_licence(find_model(plugin_and_model("readers", contender.reader)[1], "reader"))
    with suppress(RagfmError):  # a GGUF file has no record
        training_seconds = read_record(contender.adapter).numbers.get("seconds") if contender.adapter else None
    return ContenderResult(
        contender=contender,
        quality={name: Estimate(**value) for name, value in result["measures"].items()},
        latency_ms={name: Estimate(**value) for name, value in result["latency_ms"].items()},
        statuses={
            name: StatusCount(row["count"], row["precision"] and Estimate(**row["precision"]))
            for name, row in result["statuses"].items()
        },
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        peak_mb=result["peak_mb"],
        cost=cost,
        licence=licence,
        adapter=result["adapter"],
        seconds=seconds,
        training_seconds=None if training_seconds is None else float(training_seconds),
        **({"data_goes": result["data_goes"]} if result.get("data_goes") else {}),
    )
