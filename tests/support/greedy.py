"""Greedy answers by transformers, to compare readers with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ragfm.core.types import Message, Sampling
from ragfm.generation.readers import load_reader
from ragfm.generation.readers.torch_model import cache_argument, has_virtual_tokens, virtual_cache
from ragfm.models.adapters import read_record
from ragfm.models.model_lookup import find_model
from ragfm.training.adapter_export import load_adapter
from ragfm.training.base_model import Base
from ragfm.training.examples import Example


def generate_greedy(model: Any, base: Base, messages: Sequence[Message], max_tokens: int) -> str:
    """The model's answer by greedy decoding, up to the end of its turn."""
    answer: list[int] = []
    inputs, cache, argument = base.prompt(messages), None, cache_argument(base.model)
    with torch.no_grad():
        if has_virtual_tokens(model):
            cache, model = virtual_cache(model), base.model
        while len(answer) < max_tokens:
            ids = torch.tensor([inputs], device=base.device)
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{argument: cache})
            token, cache = int(output.logits[0, -1].argmax()), output[argument]
            if token in base.ends:
                break
            answer.append(token)
            inputs = [token]
    return str(base.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def readers_agree(adapter: Path, gguf: Path, examples: Sequence[Example], *, base: str | None = None) -> bool:
    """Whether transformers, with an adapter, and llama.cpp, with its GGUF export, give the same greedy texts.

    `base` is the GGUF file that llama.cpp serves, by default the one that the adapter was trained on.
    """
    trained = read_record(adapter).base["name"]
    served = find_model(base or trained, "reader")
    loaded = Base(trained)
    model, reader = load_adapter(loaded, adapter), load_reader(f"llama-cpp:{served}")
    for example in examples:
        with reader.stream(example.messages, Sampling(max_tokens=48, adapter=str(gguf))) as stream:
            text = "".join(stream).strip()
        if text != generate_greedy(model, loaded, example.messages, 48):
            return False
    return True
