"""Run files: one JSON line that describes the run, then one line for each question, appended as it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ragfm.core.errors import DataError
from ragfm.core.progress import Progress, ProgressCallback
from ragfm.core.text import counted
from ragfm.evaluation.question_sets import Question

FORMAT = 1
T = TypeVar("T")


def read_run(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The description of a run and the records of its questions. An incomplete last line is ignored.

    Raises DataError if the file does not exist or is not a run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.", "`ragfm eval retrieval DATA --out FILE` writes one.")
    content = path.read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}.",
                "The file is damaged, or is not a run file: specify another one.",
            ) from error
    if not records or not isinstance(records[0], dict) or records[0].get("format") != FORMAT:
        raise DataError(f"{path} is not a run file.", "`ragfm eval retrieval DATA --out FILE` writes one.")
    return records[0], records[1:]


def parse_records(result: type[T], records: Sequence[Mapping[str, Any]]) -> list[T]:
    """The records of a run as values of a dataclass, such as `AnsweredQuestion`."""
    return TypeAdapter(list[result]).validate_python(records)  # type: ignore[valid-type]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append the record of a question to a run file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def load_finished(path: str | Path | None, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Create a run file, or prepare an existing one for appending; returns its records by question id.

    Empty without a path. Raises DataError if the file belongs to a different run, and names the differences.
    """
    if not path:
        return {}
    path = Path(path)
    about = json.loads(json.dumps({"format": FORMAT, **about}))
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_line(about), encoding="utf-8")
        return {}
    stored, records = read_run(path)
    different = [key for key in {**about, **stored} if about.get(key) != stored.get(key)]
    if different:
        names = ", ".join(
            f"{key} {_shorten(stored.get(key))} there, {_shorten(about.get(key))} now" for key in different
        )
        raise DataError(f"{path} belongs to a different run: {names}.", "Specify another file, or remove it.")
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)  # removes an incomplete last line
    return {record["id"]: record for record in records}


def run_questions(
    questions: Sequence[Question],
    ask: Callable[[Question], Mapping[str, Any]],
    finished: Mapping[str, Mapping[str, Any]],
    path: str | Path | None,
    *,
    stage: str,
    progress: ProgressCallback | None,
    partial: bool,
) -> list[Mapping[str, Any]]:
    """The record of each question, in order: from `finished`, else from `ask`, which is appended to the run file.

    With `partial`, a Ctrl-C returns the records so far; without any record it is raised.
    """
    records: list[Mapping[str, Any]] = []
    try:
        for number, question in enumerate(questions, 1):
            record = finished.get(question.id)
            if record is None:
                record = ask(question)
                if path:
                    append_record(Path(path), record)
            records.append(record)
            if progress:
                progress(Progress(stage, number, len(questions)))
    except KeyboardInterrupt:
        if path:  # the last record may have been written and not counted
            written = {record["id"]: record for record in read_run(path)[1]}
            records = [written[question.id] for question in questions if question.id in written]
        if not partial or not records:
            raise
    return records


def question_count(done: int, about: Mapping[str, Any]) -> str:
    """The size of a run, as in `500 questions`, or `stopped: 20 of 500 questions` if it was interrupted."""
    count = int(about["questions"]["count"])
    questions = counted(question=count)
    return questions if done == count else f"stopped: {done} of {questions}"


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
