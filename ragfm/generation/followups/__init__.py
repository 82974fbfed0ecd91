"""Follow-ups: a question that leans on those before it, made into one that stands alone.

Passages are searched for by the stand-alone form. Rules make it, without a model, or the reader does.

english    by rules, in English
phrases    the noun phrases of a question
listed     what an answer lists
reader     by the reader
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from ragfm.generation.followups.english_rules import Turn, rewrite_with_rules
from ragfm.generation.followups.reader_rewrite import rewrite_with_reader

if TYPE_CHECKING:
    from ragfm.core.types import Message, Reader

__all__ = ["Followup", "stand_alone"]

Followup: TypeAlias = Literal["rules", "reader", "off"]
_TURNS = 8  # are looked back at


def stand_alone(
    question: str, history: Sequence[Message], *, how: Followup = "rules", reader: Reader | None = None
) -> str:
    """The question as one that stands alone; unchanged where it does.

    `history` holds the turns before, oldest first. `rules` know English, and leave other languages as they are; with
    `reader`, that one rewrites, and where what it says can't be meant, rules do. Raises UnsupportedError for a reader
    that takes no grammar.
    """
    before: list[Turn] = []
    for asked, answer in _turns(history)[-_TURNS:]:
        before.append(Turn(rewrite_with_rules(asked, before) if before else asked, answer))
    if not before or how == "off":
        return question
    if how == "reader" and reader and (said := rewrite_with_reader(question, before, reader)):
        return said
    return rewrite_with_rules(question, before)


def _turns(history: Sequence[Message]) -> list[tuple[str, str]]:
    """Each question with the answer that followed, if one did."""
    turns: list[tuple[str, str]] = []
    for message in history:
        if message.role == "user":
            turns.append((message.content, ""))
        elif message.role == "assistant" and turns:
            turns[-1] = (turns[-1][0], message.content)
    return [(asked, answer) for asked, answer in turns if asked.strip()]
