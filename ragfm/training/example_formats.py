"""Training examples in the formats of other trainers.

trl       {"prompt": [messages], "completion": [message]}: TRL's conversational prompt-completion format;
          preferences have "chosen" and "rejected" if all are pairs, else "completion" and "label"
sharegpt  {"conversations": [{"from": "system" | "human" | "gpt", "value"}…]}: Axolotl, Unsloth, LLaMA-Factory
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragfm.core.durable_files import write_durably
from ragfm.core.errors import UnsupportedError
from ragfm.core.output_folder import make_output
from ragfm.training.dataset import Dataset
from ragfm.training.examples import TRAIN, Example

ExampleFormat: TypeAlias = Literal["trl", "sharegpt"]
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def write_example_format(dataset: Dataset, folder: str | Path, form: ExampleFormat) -> Path:
    """Write a dataset as `FORMAT/train.jsonl` and `FORMAT/validation.jsonl` in a folder; returns the path of the first.

    `datasets.load_dataset` reads such a folder as two splits. Raises UnsupportedError if the format cannot hold
    preferences.
    """
    everything = [*dataset.train, *dataset.valid]
    preferences = any(example.rejected for example in everything)
    if form != "trl" and preferences:
        raise UnsupportedError(f"The {form} format holds no preferences.", "Use --format trl.")
    paired = preferences and all(example.rejected and example.completion for example in everything)

    def rows(example: Example) -> Iterator[dict[str, Any]]:
        if form == "sharegpt":
            turns = [{"from": _SHAREGPT_ROLES[message.role], "value": message.text} for message in example.messages]
            yield {"conversations": [*turns, {"from": "gpt", "value": example.completion}]}
            return
        prompt = {"prompt": [{"role": message.role, "content": message.text} for message in example.messages]}
        good, bad = ([{"role": "assistant", "content": text}] for text in (example.completion, example.rejected or ""))
        if paired:
            yield {**prompt, "chosen": good, "rejected": bad}
        elif not preferences:
            yield {**prompt, "completion": good}
        else:
            if example.completion:
                yield {**prompt, "completion": good, "label": True}
            if example.rejected:
                yield {**prompt, "completion": bad, "label": False}

    target = make_output(Path(folder) / form)
    for name, examples in ((TRAIN, dataset.train), ("validation.jsonl", dataset.valid)):
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for example in examples for row in rows(example))
        write_durably(target / name, b"".join(lines))
    return target / TRAIN
