"""The file of a run: a line that says what was asked of what, then a line for each question, written as it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import DataError

if TYPE_CHECKING:
    from ragfm.evaluation.question_sets import Question

FORMAT = 1


def read_run(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run is about, and its questions. A last line that was torn off is left out.

    Raises DataError where it is no run.
    """
    about, records, _ = _read(Path(path))
    return about, records


def resume_run(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make a run's file ready to be appended to; gives the questions that it has already.

    Raises DataError where the file is of another run, and names what differs.
    """
    about = json.loads(json.dumps({"format": FORMAT, **about}))
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_line(about), encoding="utf-8")
        return []
    there, records, whole = _read(path)
    different = [key for key in {**about, **there} if about.get(key) != there.get(key)]
    if different:
        names = ", ".join(f"{key} {_short(there.get(key))} there, {_short(about.get(key))} now" for key in different)
        raise DataError(f"{path} is a run of something else: {names}.", "Name another file, or remove it.")
    with path.open("r+b") as file:
        file.truncate(whole)
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a question to a run's file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def kept(path: str | Path | None, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a run's file has already, by id; nothing without a file. Raises DataError as `resume_run` does."""
    return {record["id"]: record for record in resume_run(Path(path), about)} if path else {}


def asked(
    questions: Sequence[Question],
    ask: Callable[[Question], Mapping[str, Any]],
    done: Mapping[str, Mapping[str, Any]],
    path: str | Path | None,
    progress: Callable[[int, int], None] | None,
    *,
    partial: bool,
) -> list[Mapping[str, Any]]:
    """The record of each question in turn: the one that is `done`, else what `ask` gives, added to the run's file.

    With `partial`, a Ctrl-C gives those that there are until then, if there are any.
    """
    records: list[Mapping[str, Any]] = []
    try:
        for number, question in enumerate(questions, 1):
            record = done.get(question.id)
            if record is None:
                record = ask(question)
                if path:
                    append(Path(path), record)
            records.append(record)
            if progress:
                progress(number, len(questions))
    except KeyboardInterrupt:
        if not partial or not records:
            raise
    return records


def how_many(done: int, about: Mapping[str, Any]) -> str:
    """How many questions a run has, and of how many where it was stopped."""
    count = int(about["questions"]["count"])
    return f"{count}" if done == count else f"stopped: {done} of {count}"


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """What it is about, its questions, and how many bytes of it are whole lines."""
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}.", "`ragfm eval retrieval DATA --out FILE` writes one.")
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is no JSON: {error}.",
                "It is damaged, or no run of an evaluation: name another file.",
            ) from error
    if not records or not isinstance(records[0], dict) or records[0].get("format") != FORMAT:
        raise DataError(f"{path} is no run of an evaluation.", "`ragfm eval retrieval DATA --out FILE` writes one.")
    return records[0], records[1:], whole


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
