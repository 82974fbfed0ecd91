"""Readers, adapters and numbers of passages side by side on the same questions: what is best, what it costs.

Each runs in a process of its own (`ragfm eval answers`), so that its memory is known, and one that fails harms no
other. What was answered is kept in the folder, and a second run goes on there.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from ragfm.core.errors import DataError, RagfmError
from ragfm.core.output_folder import make_output
from ragfm.evaluation.metrics import Estimate
from ragfm.evaluation.run_comparison import Difference, compare_runs
from ragfm.models.adapters import read_record
from ragfm.models.model_card import licence_of
from ragfm.models.model_lookup import find_model

MEASURE = "f1"
"""By this, over all questions, the best is known: token F1, and 1 for a right abstention."""
_MOST_BYTES = 160  # of a file's name, where a file system takes 255: paths of models are long
_INTERRUPTED = 130  # the exit code after a Ctrl-C: not all questions were answered
_SAID = re.compile(r"answering: (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class Contender:
    """What answers: a reader, an adapter, how many passages it is given, and how it is asked.

    None stands for the collection's setting; as an adapter, for the one that ragfm brings for the reader, if it does.
    """

    reader: str
    adapter: str | None = None
    k: int | None = None
    strategy: str | None = None

    @property
    def name(self) -> str:
        """All of it, in few words."""
        with_adapter = self.reader + (f" + {self.adapter}" if self.adapter else "")
        return with_adapter + (f", k = {self.k}" if self.k else "") + (f", {self.strategy}" if self.strategy else "")


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender's row. Times in milliseconds, memory in MB, `cost` per 1,000 answers in the currency of the price.

    `quality` has the measures of the context `retrieved`. `data_goes` says where questions and passages go.
    `beside_best` is this run against the best one, None for that itself. `seconds` is the mean time of an answer,
    `training_seconds` what its adapter took, and `break_even` after how many answers that is saved, by those that cost
    more for an answer, or take longer where no price is known. `adapter` is what the reader had, be it the one that
    ragfm brings. `error` says why there is no result.
    """

    contender: Contender
    quality: Mapping[str, Estimate] = field(default_factory=dict)
    latency_ms: Mapping[str, Estimate] = field(default_factory=dict)
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


def contenders(
    readers: Sequence[str],
    adapters: Sequence[str | None] = (),
    ks: Sequence[int | None] = (),
    strategies: Sequence[str | None] = (),
) -> list[Contender]:
    """All combinations."""
    return [Contender(*parts) for parts in product(readers, adapters or [None], ks or [None], strategies or [None])]


def compare_readers(
    those: Sequence[Contender],
    command: Sequence[str],
    folder: Path,
    *,
    price_per_hour: float | None = None,
    progress: Callable[[Contender, int, int], None] | None = None,
    partial: bool = False,
) -> list[Entry]:
    """Have all of them answer, one after the other; the best comes first, then the others by what they are worth.

    `command` are the words that follow `ragfm eval answers`: the data, and what else it needs. With `partial`, a Ctrl-C
    leaves those out that have not answered all, and is raised only where none has. Raises DataError where none of them
    has answered.
    """
    make_output(folder)
    entries: dict[Contender, Entry] = {}
    stopped = False
    try:
        for one in those:
            entries[one] = _run(one, command, folder, price_per_hour, progress)
    except KeyboardInterrupt:
        if not partial:
            raise
        stopped = True
    done = [one for one, entry in entries.items() if entry.error is None]
    if not done:
        if stopped:
            raise KeyboardInterrupt
        first = next(iter(entries.values()))
        raise DataError(f"Nothing could be compared: {first.contender.name}: {first.error}")
    done.sort(key=lambda one: -entries[one].quality[f"{MEASURE}, all"].value)
    for one in done:
        paid = _break_even(entries[one], entries.values(), price_per_hour)
        entries[one] = replace(entries[one], break_even=paid)
    best = _path(done[0], folder)
    rows = [entries[done[0]]]
    for one in done[1:]:
        differences = compare_runs(best, _path(one, folder)).differences
        beside = next(difference for difference in differences if difference.measure == MEASURE)
        rows.append(replace(entries[one], beside_best=beside))
    return [*rows, *(entry for entry in entries.values() if entry.error)]


# --- Inside ------------------------------------------------------------------------------------------------------


def _run(
    one: Contender,
    command: Sequence[str],
    folder: Path,
    price: float | None,
    progress: Callable[[Contender, int, int], None] | None,
) -> Entry:
    words = [sys.executable, "-c", "from ragfm.cli import main; main()", "eval", "answers", *command, "--json",
             "--context", "retrieved", "--reader", one.reader, "--out", str(_path(one, folder))]  # fmt: skip
    words += ["--adapter", one.adapter] if one.adapter else []
    words += ["-k", str(one.k)] if one.k else []
    words += ["--strategy", one.strategy] if one.strategy else []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.PIPE, text=True, encoding="utf-8")  # noqa: S603
        assert process.stderr is not None
        last = ""
        try:
            for line in process.stderr:
                last = line.strip() or last
                if progress and (said := _SAID.search(line)):
                    progress(one, int(said[1]), int(said[2]))
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        out.seek(0)
        printed = out.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    told = json.loads(printed) if printed.startswith("{") else {}
    if "measures" not in told or process.returncode == _INTERRUPTED:
        return Entry(one, error=_why(told.get("error"), process.returncode, last))
    return _entry(one, told, _path(one, folder), used.ru_maxrss // 1024, price)


def _why(error: Mapping[str, str] | None, code: int, last: str) -> str:
    """Why a process gave no result: its own word, else how it ended and the last line that it wrote."""
    if error:
        return f"{error['message']} {error['hint']}".strip()
    why = f"it ended with exit code {code}"
    if code < 0:
        why = f"it was killed by signal {-code}" + (": out of memory?" if code == -signal.SIGKILL else "")
    return f"{why}; its last words: {last}" if last else why


def _entry(one: Contender, told: Mapping[str, Any], run: Path, peak_mb: int, price: float | None) -> Entry:
    asked = [json.loads(line)["outcomes"]["retrieved"] for line in run.read_text("utf-8").splitlines()[1:]]
    outcomes = [outcome for outcome in asked if not outcome["error"]]
    if not outcomes:
        return Entry(one, error=f"no question could be asked: {asked[0]['error']}")
    mean = {
        key: sum(o[key] for o in outcomes) / len(outcomes) for key in ("prompt_tokens", "completion_tokens", "seconds")
    }
    return Entry(
        contender=one,
        quality={name: Estimate(**value) for name, value in told["measures"]["retrieved"].items()},
        latency_ms={name: Estimate(**value) for name, value in told["latency_ms"]["retrieved"].items()},
        prompt_tokens=mean["prompt_tokens"],
        completion_tokens=mean["completion_tokens"],
        peak_mb=peak_mb,
        cost=_cost(outcomes, mean["seconds"], price),
        licence=_licence(one.reader),
        adapter=told["adapter"],
        seconds=mean["seconds"],
        training_seconds=_training_seconds(one.adapter),
        **({"data_goes": told["data_goes"]} if told.get("data_goes") else {}),
    )


def _cost(outcomes: Sequence[Mapping[str, Any]], seconds: float, price_per_hour: float | None) -> float | None:
    """Of 1,000 answers: what a server takes for them, else the time of this machine."""
    asked = [outcome.get("cost") for outcome in outcomes if outcome["prompt_tokens"]]
    costs = [float(cost) for cost in asked if cost is not None]
    if costs and len(costs) == len(asked):
        return 1000 * sum(costs) / len(outcomes)
    return None if price_per_hour is None else 1000 * price_per_hour * seconds / 3600


def _break_even(entry: Entry, entries: Iterable[Entry], price_per_hour: float | None) -> dict[str, int]:
    """Beside those without an adapter: by cost where an hour has a price, else by time; none where nothing is saved."""
    if entry.training_seconds is None:
        return {}
    found = {}
    for other in entries:
        if other.adapter or other.error:
            continue
        spent, saved = entry.training_seconds, other.seconds - entry.seconds
        if price_per_hour is not None and entry.cost is not None and other.cost is not None:
            spent, saved = spent / 3600 * price_per_hour, (other.cost - entry.cost) / 1000
        if saved > 0:
            found[other.contender.name] = math.ceil(spent / saved)
    return found


def _training_seconds(adapter: str | None) -> float | None:
    """What the adapter's record says; a bare GGUF file has none."""
    try:
        seconds = read_record(adapter).numbers.get("seconds") if adapter else None
    except RagfmError:
        return None
    return None if seconds is None else float(seconds)


def _path(one: Contender, folder: Path) -> Path:
    name = re.sub(r"[^\w.=-]+", "_", one.name)
    if len(name.encode()) > _MOST_BYTES:
        name = f"{blake2b(one.name.encode(), digest_size=8).hexdigest()}_{name[-_MOST_BYTES // 4 :]}"
    return folder / f"{name}.jsonl"


def _licence(reader: str) -> str | None:
    """What the model's own file says."""
    try:
        return licence_of(find_model(reader.rpartition(":")[2], "reader"))
    except RagfmError:
        return None
