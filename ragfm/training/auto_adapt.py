"""Adapt the reader to a collection without questions: the reader writes them, and a refresh trains on them and decides.

    collection ─generate_questions→ written.jsonl ─refresh→ trained, tested on held-out questions, adopted or not

The time is divided: questions are written in the first part, training ends with the second; what is left is for the
test. Each part continues after an interruption.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably
from ragfm.core.output_folder import make_output
from ragfm.core.progress import ProgressCallback
from ragfm.core.types import Reader
from ragfm.evaluation.question_generation import generate_questions
from ragfm.evaluation.question_sets import Question
from ragfm.training.refresh import DECISION, RefreshReport, RefreshSettings, adapters_folder, next_folder, refresh

_WRITING, _TRAINING = 0.3, 0.4  # shares of the time
_PORTION = 20  # questions between two looks at the clock
_MAX_QUESTIONS = 2000


def adapt_automatically(
    collection: Collection,
    reader: Reader,
    hours: float,
    *,
    reader_name: str = "",
    seed: int = 0,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> RefreshReport:
    """Train an adapter on questions that `reader` writes about the collection, and adopt it if it is better.

    `hours` is the time for writing, training and the test; only the test may exceed it. `out` is the folder of the
    adapters, by default `.ragfm-adapters` next to the collection. Progress has the stages of `generate_questions`
    and `refresh`. Raises the errors of both.
    """
    parent = adapters_folder(collection, out)
    defaults = RefreshSettings()
    training = replace(defaults.training, seed=seed, max_seconds=_TRAINING * hours * 3600)
    path = parent / "written.jsonl"
    settings = replace(defaults, training=training, questions=path)
    folder: Path | None = None
    if path.is_file():  # of an earlier run, which may have been interrupted while training
        folder, changed = next_folder(collection, settings, parent)
        if changed or not folder.is_dir() or (folder / DECISION).exists():
            folder = None
    if folder is None:
        make_output(parent, mode=0o700)
        questions = _write_questions(
            collection, reader, parent / "written.run", _WRITING * hours * 3600, reader_name, seed, progress
        )
        lines = (
            {
                "id": question.id,
                "question": question.text,
                "answers": list(question.answers),
                "uri": question.gold[0].uri,
                "start": question.gold[0].start,
                "end": question.gold[0].end,
            }
            for question in questions
        )
        write_durably(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        folder, _ = next_folder(collection, settings, parent)
    return refresh(collection, folder, settings, progress=progress)


def _write_questions(
    collection: Collection,
    reader: Reader,
    run: Path,
    seconds: float,
    reader_name: str,
    seed: int,
    progress: ProgressCallback | None,
) -> Sequence[Question]:
    """Write questions for some time; those that an earlier run wrote are there already."""
    start, questions = time.monotonic(), list[Question]()
    for count in range(_PORTION, _MAX_QUESTIONS + 1, _PORTION):
        before = len(questions)
        questions = generate_questions(
            collection,
            reader,
            count,
            seed=seed,
            answers=True,
            out=run,
            reader_name=reader_name,
            progress=progress,
        )
        if time.monotonic() - start >= seconds or len(questions) in (before, 0):
            break
    return questions
