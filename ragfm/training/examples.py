"""Examples: what the reader is asked, as it is asked when it serves, and what it should say.

A JSON object in each line: {"messages": [{"role", "content"}…], "completion", "meta": {…}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ragfm.core.errors import DataError
from ragfm.core.types import Message

TRAIN, VALID, CARD = "train.jsonl", "valid.jsonl", "card.json"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the completion that is learned. `meta` says what it was made from; nothing is learned from it."""

    messages: tuple[Message, ...]
    completion: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def to_lines(examples: Sequence[Example]) -> bytes:
    """The content of a file of examples."""
    return b"".join(json.dumps(asdict(example), ensure_ascii=False).encode() + b"\n" for example in examples)


def digest(examples: Sequence[Example]) -> str:
    """A hash of all prompts and completions."""
    return sha256(to_lines([Example(example.messages, example.completion) for example in examples])).hexdigest()


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a file. Raises DataError, which names the line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file of examples {str(path)!r}.", "`ragfm adapt data` makes them.")
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            messages = tuple(Message(turn["role"], turn["content"]) for turn in record["messages"])
            words = [*(message.content for message in messages), record["completion"]]
            if not messages or not all(isinstance(text, str) for text in words) or not words[-1].strip():
                raise ValueError("messages and completion are texts, and not empty")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is no example: {error}.", "See docs/adaptation.md.") from error
        examples.append(Example(messages, record["completion"], record.get("meta", {})))
    return examples


def read_card(folder: Path) -> dict[str, Any]:
    """The card that lies beside examples; empty where there is none."""
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no JSON: {error}.", "Make the examples again with `ragfm adapt data`.") from error
