"""Training examples: a prompt, built as when the reader serves, and the completion to learn.

A file of examples has one JSON object per line: {"messages": [{"role", "content"}…], "completion", "meta": {…}}.
With images, the content is a list of parts, {"type": "text", "text"} and {"type": "image", "image"}; `image` is the
path of a PNG, JPEG or WebP file within the folder of the file.
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
from ragfm.core.types import Hit, ImagePart, Message
from ragfm.parsing.figures import image_type

TRAIN, VALID, CARD = "train.jsonl", "valid.jsonl", "card.json"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completion to learn. `meta` says what the example was made from; training does not use it.

    For preference tuning, `rejected` is a worse completion; with it, `completion` may be empty.
    """

    messages: tuple[Message, ...]
    completion: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    rejected: str | None = None


def supported_answer(question: str, answer: str, shown: Sequence[Hit], judge: Judge | None) -> ComposedAnswer | None:
    """The sentences of an answer that passages support, with markers; None if no sentence is verified."""
    sentences = Grounding(question, shown, None, judge).cite(answer)
    composed = compose(sentences, strict=True, contradictions=False)
    return composed if any(citation.verified for citation in composed.citations) else None


def examples_to_jsonl(examples: Sequence[Example]) -> bytes:
    """The content of a file of examples. Images are named by `image_file`."""

    def content(message: Message) -> str | list[dict[str, str]]:
        if not message.images:
            return message.text
        return [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": image_file(part)}
            for part in message.parts
        ]

    lines = []
    for example in examples:
        turns = [{"role": message.role, "content": content(message)} for message in example.messages]
        record = {"messages": turns, "completion": example.completion, "meta": dict(example.meta)}
        if example.rejected is not None:
            record["rejected"] = example.rejected
        lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return b"".join(lines)


def image_file(image: ImagePart) -> str:
    """The path of an image in a folder of examples, which includes its hash."""
    return f"images/{image.digest}.{image.media_type.removeprefix('image/')}"


def examples_digest(examples: Sequence[Example]) -> str:
    """The sha256 of all prompts and completions."""
    without_meta = [replace(example, meta={}) for example in examples]
    return sha256(examples_to_jsonl(without_meta)).hexdigest()


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a file, with their images. Raises DataError, which names the line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The file of examples {str(path)!r} does not exist.", "Create one with `ragfm adapt data`.")
    examples = []
    images: dict[str, ImagePart] = {}  # each is read once

    def part(item: Any) -> str | ImagePart:
        if item["type"] == "text" and isinstance(item["text"], str):
            return item["text"]
        if item["type"] != "image":
            raise ValueError("parts of the content must be texts or images")
        name = item["image"]
        if name not in images:
            images[name] = _read_image(path.parent, name)
        return images[name]

    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            contents = [turn["content"] for turn in record["messages"]]
            messages = tuple(
                Message(turn["role"], tuple(map(part, content)) if isinstance(content, list) else content)
                for turn, content in zip(record["messages"], contents, strict=True)
            )
            completion = record["completion"]
            rejected = record.get("rejected")
            texts = [*(content for content in contents if not isinstance(content, list)), completion, rejected or ""]
            if not messages or not all(isinstance(text, str) for text in texts):
                raise ValueError("messages and completion must be texts")
            if not completion.strip() and not (rejected or "").strip():
                raise ValueError("completion must not be empty")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not an example: {error}.", "See docs/adaptation.md.") from error
        examples.append(Example(messages, completion, record.get("meta", {}), rejected))
    return examples


def _read_image(folder: Path, name: str) -> ImagePart:
    """An image of an example. Raises ValueError."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"the image {name!r} is not in the folder {str(folder)!r}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"the image {name!r} cannot be read: {error.strerror}") from error
    media_type = image_type(data)
    if media_type is None:
        raise ValueError(f"{name!r} is not a PNG, JPEG or WebP image")
    return ImagePart(data, media_type)


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
