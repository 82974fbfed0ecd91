"""Score the answers of a model during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ragfm.core.abstention import is_abstention
from ragfm.core.types import Message
from ragfm.evaluation.answer_matching import token_f1
from ragfm.generation.readers.torch_model import cache_argument, has_virtual_tokens, rope_holder, virtual_cache
from ragfm.training.base_model import Base
from ragfm.training.examples import Example

MAX_EXAMPLES = 40
_MAX_ANSWER_TOKENS = 48


def score_answers(model: Any, base: Base, examples: Sequence[Example]) -> float:
    """The mean score of the first 40 examples, from 0 to 1.

    The score of an answer is its token F1 with the completion. If either of them is an abstention, the score is 1 if
    both are, else 0.
    """
    scores = []
    for example in examples[:MAX_EXAMPLES]:
        answer = generate_greedy(model, base, example.messages, _MAX_ANSWER_TOKENS)
        if is_abstention(example.completion) or is_abstention(answer):
            scores.append(float(is_abstention(example.completion) and is_abstention(answer)))
        else:
            scores.append(token_f1(answer, example.completion))
    return sum(scores) / len(scores)


def generate_greedy(model: Any, base: Base, messages: Sequence[Message], max_tokens: int) -> str:
    """The model's answer by greedy decoding, up to the end of its turn."""
    answer: list[int] = []
    inputs, cache, argument = base.prompt(messages), None, cache_argument(base.model)
    images = base.image_inputs(messages, len(inputs))
    if (holder := rope_holder(base.model)) is not None:
        holder.rope_deltas = None  # of an earlier prompt with images
    with torch.no_grad():
        if has_virtual_tokens(model):
            cache, model = virtual_cache(model), base.model
        while len(answer) < max_tokens:
            ids = torch.tensor([inputs], device=base.device)
            prepared = {name: tensor.to(base.device) for name, tensor in images.items()}
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{argument: cache}, **prepared)
            token, cache = int(output.logits[0, -1].argmax()), output[argument]
            if token in base.ends:
                break
            answer.append(token)
            inputs, images = [token], {}
    return str(base.tokenizer.decode(answer, skip_special_tokens=True)).strip()
