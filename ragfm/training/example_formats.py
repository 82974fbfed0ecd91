"""Training examples in the formats of other trainers.

trl       {"prompt": [messages], "completion": [message]}: TRL's conversational prompt-completion format
alpaca    {"system", "instruction", "input", "output", "history"}: LLaMA-Factory; Axolotl and others read it, too
sharegpt  {"conversations": [{"from": "system" | "human" | "gpt", "value"}…]}: Axolotl, Unsloth, LLaMA-Factory
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.training.dataset import Dataset
from ragfm.training.examples import TRAIN, Example

ExampleFormat: TypeAlias = Literal["trl", "alpaca", "sharegpt"]
EXAMPLE_FORMATS: tuple[ExampleFormat, ...] = get_args(ExampleFormat)
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def write_example_format(dataset: Dataset, folder: str | Path, form: ExampleFormat) -> Path:
    """Write a dataset as `FORMAT/train.jsonl` and `FORMAT/validation.jsonl` in a folder; returns the path of the first.

    `datasets.load_dataset` reads such a folder as two splits. Raises UnsupportedError if the format cannot hold a
    prompt.
    """
    target, convert = make_output(Path(folder) / form), _CONVERTERS[form]
    for name, examples in ((TRAIN, dataset.train), ("validation.jsonl", dataset.valid)):
        lines = (json.dumps(convert(example), ensure_ascii=False).encode() + b"\n" for example in examples)
        write_durably(target / name, b"".join(lines))
    return target / TRAIN


def _to_trl(example: Example) -> dict[str, Any]:
    prompt = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": example.completion}]}


def _to_alpaca(example: Example) -> dict[str, Any]:
    messages = list(example.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2) + ["user"]:
        raise UnsupportedError(
            "The alpaca format holds only turns of user and assistant, one after the other.", "Use --format sharegpt."
        )
    texts: Sequence[str] = [message.content for message in messages]
    history = [[user, assistant] for user, assistant in zip(texts[:-1:2], texts[1::2], strict=True)]
    return {
        "system": system,
        "instruction": texts[-1],
        "input": "",
        "output": example.completion,
        "history": history,
    }


def _to_sharegpt(example: Example) -> dict[str, Any]:
    turns = [{"from": _SHAREGPT_ROLES[message.role], "value": message.content} for message in example.messages]
    return {"conversations": [*turns, {"from": "gpt", "value": example.completion}]}


_CONVERTERS: dict[ExampleFormat, Callable[[Example], dict[str, Any]]] = {
    "trl": _to_trl,
    "alpaca": _to_alpaca,
    "sharegpt": _to_sharegpt,
}
