"""A judge: a reader that says whether an answer is right, held to a verdict as strictly as it can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ragfm.core.errors import UnsupportedError
from ragfm.core.types import Message, Sampling
from ragfm.generation.prompt import neutralize_control_tokens

if TYPE_CHECKING:
    from ragfm.core.types import Reader

__all__ = ["judged", "way_of_judging"]

_SYSTEM = "You mark exams. You say yes where an answer is right, and no where it is wrong or says something else."
_AS_JSON = ' Say {"right": true} or {"right": false}, and nothing else.'
_SCHEMA = {"type": "object", "properties": {"right": {"type": "boolean"}}, "required": ["right"]}
_VERDICT = re.compile(r'"right"\s*:\s*(true|false)\b')
_GRAMMAR = Sampling(max_tokens=8, grammar='root ::= "yes" | "no"')
_FREE = Sampling()
_TRIAL = ("What is the capital of France?", ("Paris",), "It is Paris.")


def way_of_judging(reader: Reader) -> Sampling:
    """How the reader gives a verdict, found by a trial: under a grammar, else by a JSON schema, else in its own words.

    Raises UnsupportedError where it gives none, and what asking it raises.
    """
    for way in (_GRAMMAR, Sampling(schema=_SCHEMA)):
        with suppress(UnsupportedError):
            judged(reader, way, *_TRIAL)
            return way
    judged(reader, _FREE, *_TRIAL)
    return _FREE


def judged(reader: Reader, way: Sampling, question: str, answers: Sequence[str], text: str) -> bool:
    """Whether the reader holds `text` to be right, given the right answers. Raises UnsupportedError for no verdict."""
    asked = f"Question: {question}\nRight: {' / '.join(answers)}\nAnswer: {text}\n\nIs the answer right?"
    asked += "" if way.grammar else _AS_JSON
    messages = [Message("system", _SYSTEM), Message("user", neutralize_control_tokens(asked))]
    with reader.stream(messages, way) as stream:
        said = "".join(stream)
    if way.grammar:
        return said == "yes"
    verdicts = _VERDICT.findall(said)
    if not verdicts:
        raise UnsupportedError(f"The judge gave no verdict: {said[:80]!r}.", "Name another model for --judge.")
    return bool(verdicts[-1] == "true")  # a model may think aloud before it
