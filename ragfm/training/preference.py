"""Preference tuning: learn from answers that were rated good or bad (KTO, Ethayarajh et al. 2024, eq. 8).

It compares the model with a reference, the model that training starts from, by r = log π(answer) - log π_ref(answer):

    loss = λ (1 - σ(β (r - z))) for a good answer, λ (1 - σ(β (z - r))) for a bad answer

z estimates the divergence between the two models as the mean r of prompts with answers to other prompts, at least 0. It
has no gradient. The reference log-probabilities do not change, so they are computed once, before the first step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ragfm.core.errors import DataError
from ragfm.training.base_model import Base, Encoded
from ragfm.training.examples import Example
from ragfm.training.train_settings import Objective

BETA = 0.1
"""Strength with which the model is kept close to the one that training starts from."""


@dataclass
class Sequences:
    """The encoded examples of a training run, and the values that a preference loss needs for each.

    - `examples`: the examples that are not too long; with kto one for each rated answer.
    - `encoded`: a sequence for each.
    - `too_long`: number of examples that are skipped.
    - `good`: whether an answer was rated good (kto).
    - `mismatched`: the prompt of each sequence with the answer to another prompt (kto).
    - `reference`, `mismatched_reference`: log-probabilities of the answers by the model that training starts from.
    """

    examples: list[Example]
    encoded: list[Encoded]
    too_long: int = 0
    good: list[bool] = field(default_factory=list)
    mismatched: list[Encoded] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    mismatched_reference: list[float] = field(default_factory=list)

    @property
    def good_and_bad_weights(self) -> tuple[float, float]:
        """λ of good and bad answers, so that both kinds weigh the same (Ethayarajh et al. 2024, section 4.2)."""
        good = sum(self.good)
        bad = len(self.good) - good
        return (max(1.0, bad / good) if good else 1.0), (max(1.0, good / bad) if bad else 1.0)


def encode_sequences(
    base: Base,
    examples: Sequence[Example],
    objective: Objective,
    max_tokens: int,
    *,
    wanted: bool = True,
    others: Sequence[Example] = (),
) -> Sequences:
    """Encode the examples that an objective can use.

    The mismatched answers of kto may also be those of `others`. Raises DataError if there is no example, unless not
    `wanted`, and if examples without an answer to learn would be used.
    """
    chosen = list(examples)
    if objective == "kto":
        chosen = [
            replace(example, completion=text, rejected=None if good else text)
            for example in examples
            for text, good in ((example.completion, True), (example.rejected, False))
            if text
        ]
    elif not all(example.completion for example in examples):
        raise DataError("There are examples with a bad answer and no good one.", "Train with the method kto.")
    encoded = [base.encode(example) for example in chosen]
    fits = [len(sequence.ids) <= max_tokens for sequence in encoded]
    result = Sequences(
        list(itertools.compress(chosen, fits)),
        list(itertools.compress(encoded, fits)),
        too_long=len(fits) - sum(fits),
    )
    if not result.examples and wanted:
        limit = f" of at most {max_tokens} tokens" if examples else ""
        if objective == "likelihood":
            raise DataError(f"There is no example{limit} to train with.", "Create examples with `ragfm adapt data`.")
        raise DataError(
            f"There is no rated answer{limit} to train with.",
            "Create examples with `ragfm adapt data --preferences`; rate and correct answers with `ragfm log`.",
        )
    if objective == "kto":
        result.good = [not example.rejected for example in result.examples]
        for index, example in enumerate(result.examples):  # its prompt with the next answer to another prompt
            candidates = itertools.chain(result.examples[index + 1 :], result.examples[:index], others)
            other = next((candidate for candidate in candidates if candidate.messages != example.messages), None)
            if other is None:
                raise DataError("All rated answers are to the same question.", "Rate answers to other questions, too.")
            mismatched = base.encode(replace(example, completion=other.completion))
            result.mismatched.append(replace(mismatched, ids=mismatched.ids[:max_tokens]))
    return result


def kto_losses(
    ratios: torch.Tensor, good: torch.Tensor, divergence: float, beta: float, weights: tuple[float, float]
) -> torch.Tensor:
    """The loss of each rated answer, from its log-ratio r. *Shape*: (answers,).

    `divergence` is z, at least 0; `weights` are λ of good and of bad answers.
    """
    values = torch.sigmoid(beta * torch.where(good, ratios - divergence, divergence - ratios))
    return torch.where(good, weights[0], weights[1]) * (1 - values)
