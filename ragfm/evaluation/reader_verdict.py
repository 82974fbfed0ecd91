"""Use a reader as a judge that says whether an answer is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.prompt import neutralize_control_tokens

_SYSTEM = "You mark exams. You say yes where an answer is right, and no where it is wrong or says something else."
_AS_JSON = ' Say {"right": true} or {"right": false}, and nothing else.'
_SCHEMA = {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]}
_VERDICT = re.compile(r'"right"\s*:\s*(true|false)\b')
_GRAMMAR = Sampling(max_tokens=8, grammar='root ::= "yes" | "no"')
_TRIAL = ("What is the capital of France?", ("Paris",), "It is Paris.")


def verdict_sampling(reader: Reader) -> Sampling:
    """The strictest sampling under which the reader gives a verdict: a grammar, a JSON schema, or free text.

    Each is tried with an example question. Raises UnsupportedError if the reader gives no verdict under any of them.
    """
    for sampling in (_GRAMMAR, Sampling(schema=_SCHEMA)):
        with suppress(UnsupportedError):
            judge_answer(reader, sampling, *_TRIAL)
            return sampling
    judge_answer(reader, Sampling(), *_TRIAL)
    return Sampling()


def judge_answer(reader: Reader, sampling: Sampling, question: str, answers: Sequence[str], text: str) -> bool:
    """Whether the reader rates `text` as right, given the right answers. Raises UnsupportedError without a verdict."""
    prompt = f"Question: {question}\nRight: {' / '.join(answers)}\nAnswer: {text}\n\nIs the answer right?"
    if not sampling.grammar:
        prompt += _AS_JSON
    messages = [Message("system", _SYSTEM), Message("user", neutralize_control_tokens(prompt))]
    with reader.stream(messages, sampling) as stream:
        output = "".join(stream)
    if sampling.grammar:
        return output == "yes"
    verdicts = _VERDICT.findall(output)
    if not verdicts:
        raise UnsupportedError(f"The judge gave no verdict: {output[:80]!r}.", "Use another model for --judge.")
    return bool(verdicts[-1] == "true")  # the last one: a model may reason before it
