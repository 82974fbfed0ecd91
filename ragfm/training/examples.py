"""Training examples: a prompt, built as when the reader serves, and the completion to learn.

A file of examples has one JSON object per line: {"messages": [{"role", "content"}…], "completion", "meta": {…}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ragfm.answering.decision import ComposedAnswer, compose
from ragfm.answering.grounding import Grounding
from ragfm.answering.judge import Judge
from ragfm.core.errors import DataError
from ragfm.core.types import Hit, Message

TRAIN, VALID, CARD = "train.jsonl", "valid.jsonl", "card.json"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completion to learn. `meta` says what the example was made from; training does not use it."""

    messages: tuple[Message, ...]
    completion: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def supported_answer(question: str, answer: str, shown: Sequence[Hit], judge: Judge | None) -> ComposedAnswer | None:
    """The sentences of an answer that passages support, with markers; None if no sentence is verified."""
    sentences = Grounding(question, shown, None, judge).cite(answer)
    composed = compose(sentences, strict=True, contradictions=False)
    return composed if any(citation.verified for citation in composed.citations) else None


def examples_to_jsonl(examples: Sequence[Example]) -> bytes:
    """The content of a file of examples."""
    lines = []
    for example in examples:
        turns = [{"role": message.role, "content": message.text} for message in example.messages]
        record = {"messages": turns, "completion": example.completion, "meta": dict(example.meta)}
        lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return b"".join(lines)


def examples_digest(examples: Sequence[Example]) -> str:
    """The sha256 of all prompts and completions."""
    without_meta = [replace(example, meta={}) for example in examples]
    return sha256(examples_to_jsonl(without_meta)).hexdigest()


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a file. Raises DataError, which names the line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The file of examples {str(path)!r} does not exist.", "Create one with `ragfm adapt data`.")
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            messages = tuple(Message(turn["role"], turn["content"]) for turn in record["messages"])
            completion = record["completion"]
            texts = [*(message.content for message in messages), completion]
            if not messages or not all(isinstance(text, str) for text in texts):
                raise ValueError("messages and completion must be texts")
            if not completion.strip():
                raise ValueError("completion must not be empty")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not an example: {error}.", "See docs/adaptation.md.") from error
        examples.append(Example(messages, completion, record.get("meta", {})))
    return examples


def read_card(folder: Path) -> dict[str, Any]:
    """The data card in a folder of examples; empty if there is none. Raises DataError."""
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}.", "Create the examples again with `ragfm adapt data`."
        ) from error
