"""How right the answers of a model in training are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ragfm.core.abstention import is_abstention
from ragfm.evaluation.answer_matching import token_f1
from ragfm.training.examples import Example

if TYPE_CHECKING:
    from ragfm.training.base_model import Base

MOST = 40  # examples
_TOKENS = 48  # of an answer


def answers_score(model: Any, base: Base, examples: Sequence[Example]) -> float:
    """The mean over the first 40 examples: token F1 with the completion, or whether it abstains as the completion."""
    scores = []
    for example in examples[:MOST]:
        said = greedy(model, base, base.prompt(example.messages), _TOKENS)
        if is_abstention(example.completion) or is_abstention(said):
            scores.append(float(is_abstention(example.completion) and is_abstention(said)))
        else:
            scores.append(token_f1(said, example.completion))
    return sum(scores) / len(scores)


def greedy(model: Any, base: Base, prompt: Sequence[int], most: int) -> str:
    """What the model says, token by token the likeliest, up to the end of its turn."""
    ids = torch.tensor([list(prompt)], device=base.device)
    with torch.no_grad():
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
            eos_token_id=sorted(base.ends), pad_token_id=base.pad,
        )  # fmt: skip
    tokens = [int(token) for token in whole[0, len(prompt) :]]
    end = next((at for at, token in enumerate(tokens) if token in base.ends), len(tokens))
    return str(base.tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip()
