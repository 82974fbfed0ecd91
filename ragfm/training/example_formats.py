"""Training examples in the formats of other trainers.

trl       {"prompt": [messages], "completion": [message]}: TRL's conversational prompt-completion format;
          preferences have "chosen" and "rejected" if all are pairs, else "completion" and "label"
alpaca    {"system", "instruction", "input", "output", "history"}: LLaMA-Factory; Axolotl and others read it, too
sharegpt  {"conversations": [{"from": "system" | "human" | "gpt", "value"}…]}: Axolotl, Unsloth, LLaMA-Factory
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.training.dataset import Dataset
from ragfm.training.examples import TRAIN, Example

ExampleFormat: TypeAlias = Literal["trl", "alpaca", "sharegpt"]
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def write_example_format(dataset: Dataset, folder: str | Path, form: ExampleFormat) -> Path:
    """Write a dataset as `FORMAT/train.jsonl` and `FORMAT/validation.jsonl` in a folder; returns the path of the first.

    `datasets.load_dataset` reads such a folder as two splits. Raises UnsupportedError if the format cannot hold a
    prompt, or preferences, and for examples with images.
    """
    everything = [*dataset.train, *dataset.valid]
    if any(message.images for example in everything for message in example.messages):
        raise UnsupportedError(
            f"There are examples with images, which are not written as {form}.",
            "Omit --format, or use parse.images = false.",
        )
    if form != "trl" and any(example.rejected for example in everything):
        raise UnsupportedError(f"The {form} format holds no preferences.", "Use --format trl.")
    convert = _CONVERTERS[form]
    if any(example.rejected for example in everything):
        paired = all(example.rejected and example.completion for example in everything)
        convert = _to_trl_pair if paired else _to_trl_ratings
    target = make_output(Path(folder) / form)
    for name, examples in ((TRAIN, dataset.train), ("validation.jsonl", dataset.valid)):
        rows = (row for example in examples for row in convert(example))
        write_durably(target / name, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return target / TRAIN


def _prompt(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in example.messages]


def _answer(text: str | None) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text or ""}]


def _to_trl(example: Example) -> list[dict[str, Any]]:
    return [{"prompt": _prompt(example), "completion": _answer(example.completion)}]


def _to_trl_pair(example: Example) -> list[dict[str, Any]]:
    sides = {"chosen": _answer(example.completion), "rejected": _answer(example.rejected)}
    return [{"prompt": _prompt(example), **sides}]


def _to_trl_ratings(example: Example) -> list[dict[str, Any]]:
    answers = ((example.completion, True), (example.rejected, False))
    return [
        {"prompt": _prompt(example), "completion": _answer(text), "label": label} for text, label in answers if text
    ]


def _to_alpaca(example: Example) -> list[dict[str, Any]]:
    messages = list(example.messages)
    system = messages.pop(0).text if messages[0].role == "system" else ""
    if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2) + ["user"]:
        raise UnsupportedError(
            "The alpaca format holds only turns of user and assistant, one after the other.", "Use --format sharegpt."
        )
    texts: Sequence[str] = [message.text for message in messages]
    history = [[user, assistant] for user, assistant in zip(texts[:-1:2], texts[1::2], strict=True)]
    answer = {"input": "", "output": example.completion}
    return [{"system": system, "instruction": texts[-1], **answer, "history": history}]


def _to_sharegpt(example: Example) -> list[dict[str, Any]]:
    turns = [{"from": _SHAREGPT_ROLES[message.role], "value": message.text} for message in example.messages]
    return [{"conversations": [*turns, {"from": "gpt", "value": example.completion}]}]


_CONVERTERS: dict[ExampleFormat, Callable[[Example], list[dict[str, Any]]]] = {
    "trl": _to_trl,
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
}
