"""A judge: a reader that says whether an answer is right, under a grammar that leaves it no other words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragfm.prompt import without_control_tokens
from ragfm.types import Message, Sampling

if TYPE_CHECKING:
    from ragfm.types import Reader

__all__ = ["judged"]

_SYSTEM = "You mark exams. You say yes where an answer is right, and no where it is wrong or says something else."
_VERDICT = Sampling(max_tokens=8, grammar='root ::= "yes" | "no"')


def judged(reader: Reader, question: str, answers: Sequence[str], text: str) -> bool:
    """Whether the reader holds `text` to be right, given the right answers.

    Raises UnsupportedError for a reader that takes no grammar.
    """
    asked = f"Question: {question}\nRight: {' / '.join(answers)}\nAnswer: {text}\n\nIs the answer right?"
    messages = [Message("system", _SYSTEM), Message("user", without_control_tokens(asked))]
    with reader.stream(messages, _VERDICT) as stream:
        return "".join(stream) == "yes"
