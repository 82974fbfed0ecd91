"""Conversations in files: one line of JSON per question and answer, so that they can be continued later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
from ragfm.core.table_rows import TableRow
from ragfm.core.types import Answer, Citation, Message


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer as it was shown, and the answer's citations."""

    question: str
    answer: str
    citations: tuple[Citation, ...] = ()

    @classmethod
    def of(cls, answer: Answer) -> Turn:
        """The turn of an answer."""
        return cls(answer.question, answer.shown, answer.citations)


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """The turns as messages, for the history of `Rag.ask`."""
    return [m for turn in turns for m in (Message("user", turn.question), Message("assistant", turn.answer))]


def read_turns(path: Path) -> list[Turn]:
    """Read the turns of a file; none if it does not exist. Raises DataError if it is not a conversation."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)  # not `splitlines`, which also splits at U+2028
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    turns: list[Turn] = []
    for number, line in enumerate(lines, 1):
        try:
            given = json.loads(line)
            turn = Turn(given["question"], given["answer"], tuple(map(_citation, given["citations"])))
            if not (isinstance(turn.question, str) and isinstance(turn.answer, str)):
                raise TypeError("a question or an answer is not a string")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}, line {number}, is not a turn of a conversation.", "Name another file.") from error
        turns.append(turn)
    return turns


def write_turns(path: Path, turns: Sequence[Turn]) -> None:
    """Write the turns to a file that only its owner can read. Raises DataError if it cannot be written."""
    data = "".join(json.dumps(asdict(turn), ensure_ascii=False) + "\n" for turn in turns)
    try:
        write_durably(path, data.encode(), mode=0o600)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error


def _citation(values: dict[str, Any]) -> Citation:
    fields = _without_lists(values)
    if fields.get("row"):
        fields["row"] = TableRow(**_without_lists(fields["row"]))
    return Citation(**fields)


def _without_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
