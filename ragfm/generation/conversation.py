"""Conversations in files: one line of JSON per question and answer, so that they can be continued later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import DataError
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
            turns.append(TypeAdapter(Turn).validate_json(line))
        except ValidationError as error:
            raise DataError(f"{path}, line {number}, is not a turn of a conversation.", "Name another file.") from error
    return turns


def write_turns(path: Path, turns: Sequence[Turn]) -> None:
    """Write the turns to a file that only its owner can read. Raises DataError if it cannot be written."""
    data = "".join(json.dumps(asdict(turn), ensure_ascii=False) + "\n" for turn in turns)
    try:
        write_durably(path, data.encode(), mode=0o600)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
