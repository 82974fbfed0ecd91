"""Adapt the reader to a collection without questions: the reader writes them, and a refresh trains on them and decides.

    collection ─generate_questions→ written.jsonl ─refresh→ trained, tested on held-out questions, adopted or not

The time is divided: questions are written in the first part, training ends with the second; what is left is for the
test. Each part continues after an interruption. Questions are written once for the same documents, writer and seed; a
later run adds to them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from ragfm.collection import Collection
from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output
from ragfm.core.progress import ProgressCallback
from ragfm.core.types import Reader
from ragfm.evaluation.question_generation import generate_questions
from ragfm.evaluation.retrieval_evaluation import collection_content
from ragfm.rag import Rag
from ragfm.training.refresh import (
    DECISION,
    RefreshReport,
    RefreshSettings,
    adapters_folder,
    check_refreshable,
    next_folder,
    refresh,
)

_WRITING, _TRAINING = 0.6, 0.25  # shares of the time: a question takes longer to write than to train on and to test
_MIN_QUESTIONS, _MAX_QUESTIONS = 20, 2000


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
    and `refresh`. Raises the errors of both, and DataError for fewer than 20 questions.
    """
    parent = adapters_folder(collection, out)
    defaults = RefreshSettings()
    training = replace(defaults.training, seed=seed, max_seconds=_TRAINING * hours * 3600)
    path = parent / "written.jsonl"
    settings = replace(defaults, training=training, questions=path)
    check_refreshable(Rag(collection), settings)
    inputs = json.dumps([reader_name, seed, collection_content(collection)[1], dict(collection.contract)])
    run = parent / f"written-{blake2b(inputs.encode(), digest_size=4).hexdigest()}.run"
    folder: Path | None = None
    if path.is_file() and run.is_file():  # of an earlier run, which may have been interrupted while training
        folder, changed = next_folder(collection, settings, parent)
        if changed or not folder.is_dir() or (folder / DECISION).exists():
            folder = None
    if folder is None:
        make_output(parent, mode=0o700)
        questions = generate_questions(
            collection,
            reader,
            _MAX_QUESTIONS,
            seed=seed,
            answers=True,
            seconds=_WRITING * hours * 3600,
            out=run,
            reader_name=reader_name,
            progress=progress,
        )
        if len(questions) < _MIN_QUESTIONS:
            raise DataError(
                f"{len(questions)} written questions are too few: {_MIN_QUESTIONS} are needed to train and to test.",
                "Run the command again, which adds to them, or use a larger --writer or more --hours.",
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
